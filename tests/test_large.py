"""More than 2^31 elements in one tensor, forward and backward: 14 GB, on a CPU without AMX more, so
only if FUSED_LSTM_LARGE=1 asks for it."""

from __future__ import annotations

import os

import pytest
import torch
from oracle import error

from fused_lstm import FusedLSTM, ops

T, B, D, H = 32_800, 1024, 1, 16
pytestmark = pytest.mark.skipif(
    not os.environ.get("FUSED_LSTM_LARGE"), reason="needs FUSED_LSTM_LARGE=1"
)
# Cell states go over from step to step in float32, and so do not fit through a bfloat16 argument:
# the last LAST steps are compared with those of a run over SEEN, which has forgotten its beginning.
LAST, SEEN = 1000, 2000


def arguments():
    """x, the initial state and the weights, for which gates have more than 2^31 elements."""
    assert T * B * 4 * H > 2**31
    module = FusedLSTM(D, H, dtype=torch.bfloat16)
    x = torch.randn(T, B, D, dtype=torch.bfloat16)
    return x, torch.zeros(1, B, H, dtype=torch.bfloat16), list(module.parameters())


@torch.no_grad()
def test_gates_beyond_the_reach_of_32_bits():
    """The last steps of a long sequence are what they are as a sequence of their own."""
    x, start, weights = arguments()
    output, h_n, c_n, cells, gates = ops.layer(x, start, start, weights, keep_states=True)
    found = ops.layer(x[-SEEN:], start, start, weights, keep_states=True)
    torch.testing.assert_close(found[0][-LAST:], output[-LAST:])
    torch.testing.assert_close(found[1:3], (h_n, c_n))
    torch.testing.assert_close(found[3][:, -LAST:], cells[:, -LAST:])
    torch.testing.assert_close(found[4][:, -LAST:], gates[:, -LAST:])
    assert gates[0, 0].any()


def test_gradients_beyond_the_reach_of_32_bits():
    """Of a loss of the last steps: what all earlier ones add to the weights' gradients is zero, and
    so they are those of a short sequence too."""
    x, start, weights = arguments()

    def gradients(steps):
        own = x[-steps:].clone().requires_grad_()
        output = ops.layer(own, start, start, weights)[0]
        incoming = torch.zeros_like(output)
        incoming[-LAST:] = 1
        return torch.autograd.grad(output, [own, *weights], incoming)

    expected, *expected_weights = gradients(SEEN)
    found, *found_weights = gradients(T)
    torch.testing.assert_close(found[-LAST:], expected[-LAST:])
    assert found[-LAST:].any()
    assert not found[: -2 * SEEN].any()
    for ours, theirs in zip(found_weights, expected_weights, strict=True):
        size = theirs.abs().max().item()
        assert error(ours, theirs.double()) <= 2 * torch.finfo(torch.bfloat16).eps * size
