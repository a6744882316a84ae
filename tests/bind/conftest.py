# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from largebatch import _C

PLAIN = torch.zeros(3)  # made outside of any mode or transform that a test is in


@pytest.fixture(params=["exchange", "managed", "capsule", "protocol"])
def rung(request):
    """Every way of viewing an array, whatever this torch would take by itself."""
    before = _C._set_dlpack_rung(request.param)
    yield request.param
    _C._set_dlpack_rung(before)


@pytest.fixture
def refusal():
    """A function: the message that an array in second place is refused with."""

    def message_for(array, error=TypeError):
        with pytest.raises(error) as caught:
            _C.describe_arrays("lamb", "grads", [PLAIN, array])
        message = str(caught.value)
        assert message.startswith("lamb: grads[1] ")
        assert "\n" not in message
        return message.removeprefix("lamb: grads[1] ")

    return message_for
