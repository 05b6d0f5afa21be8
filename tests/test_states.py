"""return_states=True: every cell state, gate and hidden state, in the layout of the output."""

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
        P = module.proj_size or H
        assert [hidden.shape for hidden in states.hidden] == [(*shape, P)] * count


def test_shapes_of_a_packed_sequence(device):
    module = make("deep", device)
    packed = pack_padded_sequence(rand(T, B, D, device=device), [2, 5, 3], enforce_sorted=False)
    _, _, states = module(packed, return_states=True)
    for cells, gates, hidden in zip(*states, strict=True):
        assert type(cells) is type(gates) is type(hidden) is PackedSequence
        assert cells.data.shape == hidden.data.shape == (10, H)
        assert gates.data.shape == (10, 4, H)
        assert cells.batch_sizes is packed.batch_sizes
        assert cells.unsorted_indices is packed.unsorted_indices


def test_dtypes(device, dtype):
    module = make("plain", device, dtype=dtype)
    x = rand(T, B, D, device=device, dtype=dtype)
    _, _, states = module(x, return_states=True)
    assert states.cells[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert states.gates[0].dtype == states.hidden[0].dtype == dtype


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
    output, (h_n, c_n), (cells, gates, hidden) = module(x, (h_0, c_0), return_states=True)
    plain, state = module(x, (h_0, c_0))
    assert torch.equal(plain, output)
    assert torch.equal(state[0], h_n)
    for k in range(4):
        i, f, g, o = gates[k].unbind(2)
        c, reverse = cells[k], bool(k % 2)
        before = torch.cat([c[1:], c_0[k][None]] if reverse else [c_0[k][None], c[:-1]])
        torch.testing.assert_close(f * before + i * g, c)
        torch.testing.assert_close(c[0 if reverse else -1], c_n[k])
        torch.testing.assert_close(hidden[k], o * c.tanh())
        assert torch.equal(hidden[k][0 if reverse else -1], h_n[k])
    assert torch.equal(torch.cat(hidden[2:], -1), output)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_hidden_states_of_lower_layers_are_before_dropout(device, bidirectional, proj_size):
    """They are the output of the lower layers alone; with dropout 1 the upper one reads zeros."""
    options = {"bidirectional": bidirectional, "proj_size": proj_size}
    module = FusedLSTM(D, H, 2, dropout=1.0, device=device, dtype=torch.float64, **options)
    lower = FusedLSTM(D, H, device=device, dtype=torch.float64, **options)
    lower.load_state_dict({k: v for k, v in module.state_dict().items() if "_l0" in k})
    x = rand(T, B, D, device=device)
    output, _, states = module(x, return_states=True)
    count = 1 + bidirectional
    assert torch.equal(torch.cat(states.hidden[:count], -1), lower(x)[0])
    assert torch.equal(torch.cat(states.hidden[count:], -1), output)
    assert torch.equal(output, module(torch.zeros_like(x))[0])


def test_past_the_end(device):
    module = make("deep", device)
    lengths = torch.tensor(LENGTHS, device=device)
    x, hx = rand(T, B, D, device=device), rand_state(module, B)
    _, (_, c_n), states = module(x, hx, lengths=lengths, return_states=True)
    for k, (cells, gates, hidden) in enumerate(zip(*states, strict=True)):
        for b, length in enumerate(LENGTHS):
            assert not gates[length:, b].any()
            assert not hidden[length:, b].any()
            # What the recurrence left there: the last state forward, the initial one in reverse
            held = hx[1][k, b] if k % 2 else c_n[k, b]
            assert torch.equal(cells[length:, b], held.expand(T - length, H))


def test_states_alone_carry_gradients(device):
    module = make("deep", device)
    x = rand(T, B, D, device=device)
    for kept in LSTMStates._fields:

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
    for kept, again in zip(without, states, strict=True):
        for a, b in zip(kept, again, strict=True):
            assert not a.requires_grad
            assert torch.equal(a, b)


def test_nn_lstm_through_the_reference(device):
    """The reference gives the states of an nn.LSTM too."""
    module = make("deep", device)
    x = rand(T, B, D, device=device)
    _, _, expected = reference_lstm(twin(module), x, return_states=True)
    _, _, states = module(x, return_states=True)
    torch.testing.assert_close(tuple(states), tuple(expected))
