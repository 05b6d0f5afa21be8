"""Autocast: nn.LSTM's choice of types, and a cell state in float32 inside."""

from __future__ import annotations

import pytest
import torch
from oracle import rand
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from fused_lstm import FusedLSTM, FusedLSTMCell

T, B, D, H = 5, 4, 3, 6
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("state", [None, *DTYPES])
@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("input", DTYPES)
@pytest.mark.parametrize("kind", ["padded", "packed", "cell"])
def test_types_are_those_of_nn_lstm(device, kind, input, weights, state):
    if device == "cuda" and state not in (None, input):
        pytest.skip("cuDNN takes a state of the input's type only")
    x = rand(T, B, D, device=device, dtype=input)
    x = pack_padded_sequence(x, [5, 3, 2, 1]) if kind == "packed" else x[0] if kind == "cell" else x
    shape = (B, H) if kind == "cell" else (1, B, H)
    hx = None if state is None else tuple(rand(*shape, device=device, dtype=state) for _ in "hc")
    found = []
    for module in (FusedLSTMCell, nn.LSTMCell) if kind == "cell" else (FusedLSTM, nn.LSTM):
        with torch.autocast(device, torch.bfloat16):
            result = module(D, H, device=device, dtype=weights)(x, hx)
        if kind != "cell":
            output, states = result
            result = (output.data, *states)
        found.append([tensor.dtype for tensor in result])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_the_cell_state_is_float32_inside(device, kind):
    """1000 steps of 1/256 each: a bfloat16 sum would not go beyond 1."""
    module = FusedLSTM(D, H, device=device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0[: 2 * H] = 100.0  # all of the input and of the state pass
        module.bias_ih_l0[2 * H : 3 * H] = 1 / 256
    x = torch.zeros(1000, 1, D, device=device)
    x = pack_padded_sequence(x, [1000]) if kind == "packed" else x
    with torch.autocast(device, torch.bfloat16):
        _, (_, c_n), states = module(x, return_states=True)
    assert states.cells[0].data.dtype == torch.float32
    torch.testing.assert_close(
        c_n.float(), torch.full_like(c_n, 1000 / 256).float(), rtol=0.01, atol=0
    )
