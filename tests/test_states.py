"""return_states=True: every cell state and every gate, in the layout of the output."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from oracle import assert_close, evaluate, rand, rand_state, reference_lstm, twin
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fused_lstm import FusedLSTM, LSTMStates

T, B, D, H = 5, 3, 4, 6
LAYERS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 2, "bidirectional": True},
}
each_layer = pytest.mark.parametrize("layer", LAYERS)
LENGTHS = [4, 0, 5]


def make(layer, device, **more):
    return FusedLSTM(D, H, device=device, **{"dtype": torch.float64} | LAYERS[layer] | more)


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
def test_shapes(device, layer, batch_first):
    module = make(layer, device, batch_first=batch_first)
    count = module.num_layers * (2 if module.bidirectional else 1)
    rows = (B, T) if batch_first else (T, B)
    for shape in (rows, (T,)):
        output, _, states = module(rand(*shape, D, device=device), return_states=True)
        assert isinstance(states, LSTMStates)
        assert output.shape[:-1] == shape
        assert [cells.shape for cells in states.cells] == [(*shape, H)] * count
        assert [gates.shape for gates in states.gates] == [(*shape, 4, H)] * count


def test_shapes_of_a_packed_sequence(device):
    module = make("deep", device)
    packed = pack_padded_sequence(rand(T, B, D, device=device), [2, 5, 3], enforce_sorted=False)
    _, _, states = module(packed, return_states=True)
    for cells, gates in zip(*states, strict=True):
        assert type(cells) is type(gates) is PackedSequence
        assert cells.data.shape == (10, H)
        assert gates.data.shape == (10, 4, H)
        assert cells.batch_sizes is packed.batch_sizes
        assert cells.unsorted_indices is packed.unsorted_indices


def test_dtypes(device, dtype):
    module = make("plain", device, dtype=dtype)
    x = rand(T, B, D, device=device, dtype=dtype)
    _, _, states = module(x, return_states=True)
    assert states.cells[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert states.gates[0].dtype == dtype


@each_layer
@pytest.mark.parametrize("options", ["padded", "packed", "lengths", "reset"])
def test_values_and_gradients(device, layer, options):
    module = make(layer, device)
    x, hx = rand(T, B, D, device=device), rand_state(module, B)
    given = {"return_states": True}
    if options == "packed":
        x = pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False)
    elif options == "lengths":
        given["lengths"] = torch.tensor(LENGTHS, device=device)
    elif options == "reset":
        given["reset"] = torch.arange(T * B, device=device).reshape(T, B) % 4 == 0
    expected = evaluate(module, x, hx, call=partial(reference_lstm, module), **given)
    assert_close(evaluate(module, x, hx, **given), expected)


def test_what_they_mean(device):
    """c_t = f c_(t-1) + i g and h_t = o tanh(c_t): the states give the output back."""
    module = make("deep", device)
    x, (h_0, c_0) = rand(T, B, D, device=device), rand_state(module, B)
    output, (h_n, c_n), (cells, gates) = module(x, (h_0, c_0), return_states=True)
    plain, state = module(x, (h_0, c_0))
    assert torch.equal(plain, output)
    assert torch.equal(state[0], h_n)
    for k in range(4):
        i, f, g, o = gates[k].unbind(2)
        c, reverse = cells[k], bool(k % 2)
        before = torch.cat([c[1:], c_0[k][None]] if reverse else [c_0[k][None], c[:-1]])
        torch.testing.assert_close(f * before + i * g, c)
        torch.testing.assert_close(c[0 if reverse else -1], c_n[k])
        hidden = o * c.tanh()
        torch.testing.assert_close(hidden[0 if reverse else -1], h_n[k])
        if k >= 2:
            torch.testing.assert_close(hidden, output[..., (k - 2) * H : (k - 1) * H])


def test_past_the_end(device):
    module = make("deep", device)
    lengths = torch.tensor(LENGTHS, device=device)
    x, hx = rand(T, B, D, device=device), rand_state(module, B)
    _, (_, c_n), states = module(x, hx, lengths=lengths, return_states=True)
    for k, (cells, gates) in enumerate(zip(*states, strict=True)):
        for b, length in enumerate(LENGTHS):
            assert not gates[length:, b].any()
            # What the walk left there: the last state forward, the initial one in reverse
            held = hx[1][k, b] if k % 2 else c_n[k, b]
            assert torch.equal(cells[length:, b], held.expand(T - length, H))


def test_states_alone_carry_gradients(device):
    module = make("deep", device)
    x = rand(T, B, D, device=device)
    for kept in ("cells", "gates"):

        def call(x, kept=kept):
            *_, states = module(x, return_states=True)
            return tuple(getattr(states, kept))

        assert torch.autograd.gradcheck(call, x.clone().requires_grad_(), fast_mode=True)


def test_they_need_no_gradient(device):
    module = make("projected", device)
    x = rand(T, B, D, device=device)
    with torch.no_grad():
        _, _, without = module(x, return_states=True)
    _, _, states = module(x, return_states=True)
    for a, b in zip((*without.cells, *without.gates), (*states.cells, *states.gates), strict=True):
        assert not a.requires_grad
        assert torch.equal(a, b)


def test_nn_lstm_through_the_definition(device):
    """The definition gives the states of an nn.LSTM too."""
    module = make("deep", device)
    x = rand(T, B, D, device=device)
    _, _, expected = reference_lstm(twin(module), x, return_states=True)
    _, _, states = module(x, return_states=True)
    torch.testing.assert_close(tuple(states), tuple(expected))
