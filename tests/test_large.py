"""More than 2^31 numbers in one tensor: 9 GB, so only if FUSED_LSTM_LARGE=1 asks for it."""

from __future__ import annotations

import os

import pytest
import torch

from fused_lstm import FusedLSTM, ops

T, B, D, H = 32_800, 1024, 1, 16


@pytest.mark.skipif(not os.environ.get("FUSED_LSTM_LARGE"), reason="needs FUSED_LSTM_LARGE=1")
@torch.no_grad()
def test_gates_beyond_the_reach_of_32_bits():
    """The last steps of a long sequence are what they are as a sequence of their own."""
    assert T * B * 4 * H > 2**31
    module = FusedLSTM(D, H, dtype=torch.bfloat16)
    weights = list(module.parameters())
    x = torch.randn(T, B, D, dtype=torch.bfloat16)
    start = torch.zeros(1, B, H, dtype=torch.bfloat16)
    output, h_n, c_n, cells, gates = ops.layer(x, start, start, weights, keep_states=True)
    # c goes over from step to step in float32, and so does not fit through a bfloat16 argument: a
    # run that starts 1000 steps earlier has forgotten the difference.
    steps = slice(T - 1000, T)
    found = ops.layer(x[-2000:], start, start, weights, keep_states=True)
    torch.testing.assert_close(found[0][-1000:], output[steps])
    torch.testing.assert_close(found[1:3], (h_n, c_n))
    torch.testing.assert_close(found[3][:, -1000:], cells[:, steps])
    torch.testing.assert_close(found[4][:, -1000:], gates[:, steps])
    assert gates[0, 0].any()
