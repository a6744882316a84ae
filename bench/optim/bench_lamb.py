# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One LAMB step with decay and clipping over whole models.

Bytes per fp32 parameter: 4 (norm) + 24 (moments) + 16 (apply) = 44; 28 for torch's fused AdamW,
which has neither norm nor ratio.
"""

import pytest
from baselines import BASELINES
from shapes import SHAPES

import largebatch

FAMILY = {"largebatch": largebatch.optim.LAMB, **BASELINES["lamb"]}
BYTES = {"largebatch": 44, "torch AdamW fused": 28}


@pytest.mark.parametrize("implementation", FAMILY)
@pytest.mark.parametrize("shapes", SHAPES)
def bench_lamb(bench_optimizer, shapes, implementation):
    bench_optimizer(
        "lamb", implementation, shapes, FAMILY[implementation], BYTES.get(implementation)
    )
