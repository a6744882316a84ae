# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.simt import build


@pytest.fixture(scope="session")
def kernels():
    """Return the module of the executor's own test kernels."""
    return build.kernels()
