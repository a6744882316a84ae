# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One Adan step with decay over whole models.

Bytes per fp32 parameter: weights, three averages and the previous gradient read and written, the
gradient read: 44, and 48 with clipping by the global norm. 28 for torch's fused AdamW, which keeps
two averages.
"""

import pytest
from baselines import BASELINES
from shapes import SHAPES

import largebatch


def _ours(params):
    return largebatch.optim.Adan(params, lr=1e-3, weight_decay=0.02)


def _clipping(params):
    return largebatch.optim.Adan(params, lr=1e-3, weight_decay=0.02, max_grad_norm=1.0)


FAMILY = {"largebatch": _ours, "largebatch, clipping": _clipping, **BASELINES["adan"]}
BYTES = {"largebatch": 44, "largebatch, clipping": 48, "torch AdamW fused": 28}


@pytest.mark.parametrize("implementation", FAMILY)
@pytest.mark.parametrize("shapes", SHAPES)
def bench_adan(bench_optimizer, shapes, implementation):
    bench_optimizer(
        "adan", implementation, shapes, FAMILY[implementation], BYTES.get(implementation)
    )
