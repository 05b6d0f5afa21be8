"""FusedLSTMCell: nn.LSTMCell, one step at a time."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from oracle import assert_accurate, cast, rand
from rounding import model
from torch import nn

from fused_lstm import FusedLSTM, FusedLSTMCell, reference

NAMES = ["h", "c", "grad of input", "grad of h", "grad of c"]
NAMES += [f"grad of {name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def pair(device="cpu", dtype=torch.float64, sizes=(3, 5), bias=True):
    cells = []
    for kind in (FusedLSTMCell, nn.LSTMCell):
        torch.manual_seed(0)
        cells.append(kind(*sizes, bias, device, dtype))
    return cells


def evaluate(cell, x, hx, call=None):
    """The next states and all gradients of a call of the cell, or of `call`."""
    leaves = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in hx)]
    states = (call or cell)(leaves[0], tuple(leaves[1:]))
    incoming = [torch.ones_like(states[0]), 2 * torch.ones_like(states[1])]
    gradients = torch.autograd.grad(states, [*leaves, *cell.parameters()], incoming)
    return [*states, *gradients]


@pytest.mark.parametrize("bias", [True, False])
def test_construction(bias):
    ours, theirs = pair(bias=bias)
    assert repr(ours) == repr(theirs).replace("LSTM", "FusedLSTM")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    nn.init.uniform_(ours.weight_ih)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight_ih, theirs.weight_ih)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 17), (65, 129)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3, 65])
def test_parity(device, sizes, batch, bias):
    ours, theirs = pair(device, sizes=sizes, bias=bias)
    x = rand(batch, sizes[0], device=device)
    hx = (rand(batch, sizes[1], device=device), rand(batch, sizes[1], device=device))
    torch.testing.assert_close(evaluate(ours, x, hx), evaluate(theirs, x, hx))
    torch.testing.assert_close(ours(x), theirs(x))


def test_accuracy(device, dtype):
    ours, _ = pair(device, dtype, (17, 33))
    wide = copy.deepcopy(ours).double()
    call = [rand(5, n, device=device, dtype=dtype) for n in (17, 33, 33)]

    def by_reference(x, hx):
        return reference.cell(x, *hx, list(wide.parameters()))

    def named(cell, x, *hx, call=None):
        return dict(zip(NAMES, evaluate(cell, x, hx, call), strict=True))

    truth = model(
        lambda: named(wide, *cast(tuple(call), torch.float64), call=by_reference),
        dtype,
        5,
        {parameter.shape for parameter in ours.parameters()},
    )
    assert_accurate(named(ours, *call), truth)


def test_without_a_batch(device):
    ours, theirs = pair(device)
    x, hx = rand(3, device=device), (rand(5, device=device), rand(5, device=device))
    torch.testing.assert_close(evaluate(ours, x, hx), evaluate(theirs, x, hx))
    torch.testing.assert_close(ours(x), theirs(x))


def test_steps_are_the_layer(device):
    ours, _ = pair(device)
    layer = FusedLSTM(3, 5, device=device, dtype=torch.float64)
    layer.load_state_dict({f"{name}_l0": p for name, p in ours.state_dict().items()})
    x, state = rand(6, 2, 3, device=device), None
    hidden = []
    for step in x:
        state = ours(step, state)
        hidden.append(state[0])
    output, (h_n, c_n) = layer(x)
    torch.testing.assert_close(torch.stack(hidden), output)
    torch.testing.assert_close(state, (h_n[0], c_n[0]))


def halve(state):
    state *= 0.5


def clear_a_row(state):
    state[0] = 0.0


def drop(state):
    torch.manual_seed(1)
    nn.functional.dropout(state, 0.5, inplace=True)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("changed", [0, 1], ids=["h", "c"])
@pytest.mark.parametrize("change", [halve, clear_a_row, drop])
def test_states_changed_in_place_train_as_nn_lstmcell(device, dtype, change, changed, batched):
    """The backward reads neither result; the changed state goes into the next step."""

    def gradients(cell):
        shape = (4, 2, 3) if batched else (4, 3)
        x = rand(*shape, device=device, dtype=dtype).requires_grad_()
        state = None
        for step in x:
            state = cell(step, state)
            change(state[changed])
        sum(s.float().square().sum() for s in state).backward()
        return [x.grad, *(p.grad for p in cell.parameters())]

    ours, theirs = pair(device, dtype)
    torch.manual_seed(0)
    found = gradients(ours)
    torch.manual_seed(0)
    expected = gradients(theirs)
    low = dtype in (torch.bfloat16, torch.float16)  # nn.LSTMCell keeps c in it: a few roundings
    tolerance = {"rtol": 0.05, "atol": 0.05} if low else {}
    torch.testing.assert_close(found, expected, **tolerance)


def test_the_reference(device):
    ours, theirs = pair(device)
    call = (rand(2, 3, device=device), rand(2, 5, device=device), rand(2, 5, device=device))
    found = reference.cell(*call, list(ours.parameters()))
    torch.testing.assert_close(found, theirs(call[0], call[1:]))


def test_copies():
    ours, _ = pair()
    x = rand(2, 3)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(x)[0], ours(x)[0])


def test_autocast(device):
    ours, _ = pair(device, torch.float32)
    x = rand(2, 3, device=device, dtype=torch.float32)
    with torch.autocast(device, torch.bfloat16):
        hidden, _ = ours(x)
    torch.testing.assert_close(hidden.float(), ours(x)[0], rtol=0.05, atol=0.02)
    hidden.sum().backward()
    assert ours.weight_ih.grad.dtype == torch.float32
