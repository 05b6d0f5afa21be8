"""Errors against float64: as rounding explains them, and on the whole as small as nn.LSTM's."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import pytest
import torch
from oracle import (
    assert_accurate,
    assert_close,
    cast,
    evaluate,
    rand,
    rand_state,
    reference_lstm,
    truth_of,
    twin,
)
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from fused_lstm import FusedLSTM

# T, B, D, H: every odd size somewhere, on each side of a vector and of a tile.
SHAPES = [
    (1, 1, 1, 1),
    (1, 3, 17, 65),
    (1, 5, 65, 17),
    (1, 13, 129, 130),
    (1, 63, 130, 127),
    (3, 65, 3, 17),
    (5, 2, 65, 129),
    (17, 5, 1, 3),
    (4, 129, 17, 3),
    (65, 1, 3, 17),
    (129, 3, 3, 1),
]
LAYERS = {
    "plain": {},
    "no bias": {"bias": False},
    "deep": {"num_layers": 3},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "projected": {"proj_size": 2, "bidirectional": True},
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_sizes(device, dtype, shape):
    T, B, D, H = shape
    module = FusedLSTM(D, H, device=device, dtype=dtype)
    call = (rand(T, B, D, device=device, dtype=dtype), rand_state(module, B))
    assert_accurate(evaluate(module, *call), truth_of(module, *call))


@pytest.mark.parametrize("layers", LAYERS)
def test_layers(device, dtype, layers):
    module = FusedLSTM(17, 33, device=device, dtype=dtype, **LAYERS[layers])
    call = (rand(7, 5, 17, device=device, dtype=dtype), rand_state(module, 5))
    assert_accurate(evaluate(module, *call), truth_of(module, *call))


@pytest.mark.parametrize("layers", LAYERS)
def test_packed(device, dtype, layers):
    module = FusedLSTM(3, 17, device=device, dtype=dtype, **LAYERS[layers])
    padded = rand(9, 5, 3, device=device, dtype=dtype)
    packed = pack_padded_sequence(padded, [9, 7, 7, 2, 1])
    call = (packed, rand_state(module, 5))
    assert_accurate(evaluate(module, *call), truth_of(module, *call))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_on_the_whole_as_accurate_as_nn_lstm(device, dtype):
    """Root mean square errors over those of nn.LSTM: the geometric mean of all results.

    nn.LSTM's are those of this machine's libraries, and single ones a matter of luck or of a sum's
    order: over 5 inputs of each shape, the mean of some 100 results is not.
    """
    logarithms = []
    for T, B, D, H in SHAPES[1:10]:
        squares = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
        for _ in range(5):
            module = FusedLSTM(D, H, device=device, dtype=dtype)
            call = (rand(T, B, D, device=device, dtype=dtype), rand_state(module, B))
            truth = evaluate(twin(module, dtype=torch.float64), *cast(call, torch.float64))
            for k, found in enumerate((evaluate(module, *call), evaluate(twin(module), *call))):
                for name, true in truth.items():
                    squares[name][k] += (found[name].double() - true).square().mean().cpu()
        logarithms += [(s[0] / s[1]).log() / 2 for s in squares.values()]
    assert len(logarithms) >= 80
    ratio = torch.stack(logarithms).mean().exp().item()
    assert ratio <= 1.25


@pytest.mark.parametrize("layers", LAYERS)
def test_the_reference_is_nn_lstm(device, layers):
    module = FusedLSTM(3, 5, device=device, dtype=torch.float64, **LAYERS[layers])
    call = (rand(4, 3, 3, device=device), rand_state(module, 3))
    ours = evaluate(module, *call, call=partial(reference_lstm, module))
    assert_close(ours, evaluate(twin(module, nn.LSTM), *call))


def test_the_cell_state_of_16_bits_does_not_stall(device):
    """c grows by 2^-9 a step: past 2 (bfloat16) it would stop, were it kept in 16 bits."""
    T = 2048
    module = FusedLSTM(1, 1, bias=False, device=device, dtype=torch.bfloat16)
    x = torch.ones(T, 1, 1, device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
        # i = f = o = 1 (saturated), g = 2^-9
        module.weight_ih_l0.copy_(torch.tensor([[100.0], [100.0], [2.0**-9], [100.0]]))
        _, (_, c_n) = module(x)
    assert c_n.item() == pytest.approx(T * 2.0**-9, rel=2.0**-7)
