"""lengths=: each sequence as if it were alone, whatever its padding holds."""

from __future__ import annotations

import pytest
import torch
from oracle import (
    assert_close,
    assert_same_bits,
    assert_same_without_boundaries,
    evaluate,
    flatten,
    rand,
    rand_state,
    twin,
)
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fused_lstm import FusedLSTM

T, D, H = 6, 3, 5
LENGTHS = [3, 0, 6, 1, 6]
B = len(LENGTHS)
LAYERS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "deep": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 2, "bidirectional": True, "bias": False},
}
each_layer = pytest.mark.parametrize("layer", LAYERS)


def make(layer, device, dtype=torch.float64):
    module = FusedLSTM(D, H, device=device, dtype=dtype, **LAYERS[layer])
    x = rand(T, B, D, device=device, dtype=dtype)
    lengths = torch.tensor(LENGTHS, device=device)
    return module, x.transpose(0, 1) if module.batch_first else x, lengths, rand_state(module, B)


def past_the_end(module, device):
    """[T, B, 1] bool, or [B, T, 1]: what is padding."""
    mask = torch.arange(T, device=device)[:, None] >= torch.tensor(LENGTHS, device=device)
    return (mask.t() if module.batch_first else mask)[..., None]


@each_layer
def test_each_sequence_alone(device, layer):
    module, x, lengths, (hidden, cell) = make(layer, device)
    alone = twin(module)
    output, (h_n, c_n) = module(x, (hidden, cell), lengths=lengths)
    for b, length in enumerate(LENGTHS):
        one = x[b] if module.batch_first else x[:, b]
        found = output[b] if module.batch_first else output[:, b]
        assert not found[length:].any()
        h_b, c_b = hidden[:, b].contiguous(), cell[:, b].contiguous()
        expected = alone(one[:length], (h_b, c_b)) if length else (found[:0], (h_b, c_b))
        assert_close(flatten((found[:length], (h_n[:, b], c_n[:, b]))), flatten(expected))


@each_layer
def test_gradients_as_of_a_packed_sequence(device, layer):
    module, x, lengths, hx = make(layer, device)
    some = [b for b, length in enumerate(LENGTHS) if length]  # no packed sequence is empty
    x = (x[some] if module.batch_first else x[:, some]).contiguous()
    hx = tuple(state[:, some].contiguous() for state in hx)
    first = module.batch_first

    def through_packing(x, hx):
        packed = pack_padded_sequence(x, lengths[some].cpu(), first, enforce_sorted=False)
        output, state = twin_of_module(packed, hx)
        return pad_packed_sequence(output, first)[0], state

    twin_of_module = twin(module)
    found = evaluate(module, x, hx, lengths=lengths[some])
    assert_close(found, evaluate(twin_of_module, x, hx, call=through_packing))


@each_layer
def test_padding_changes_no_bit(device, dtype, layer):
    module, x, lengths, hx = make(layer, device, dtype)
    padding = past_the_end(module, device)
    clean = evaluate(module, x.masked_fill(padding, 0), hx, lengths=lengths, return_states=True)
    for value in (torch.nan, torch.inf, 7.0):
        dirty = x.masked_fill(padding, value)
        found = evaluate(module, dirty, hx, lengths=lengths, return_states=True)
        assert_same_bits(found, clean)
        assert all(tensor.isfinite().all() for tensor in found.values())
        assert not found["grad of input"].masked_select(padding).any()


def test_gradients_of_padded_outputs_reach_nothing(device):
    module, x, lengths, _ = make("deep", device)
    padding = past_the_end(module, device)
    results = []
    for value in (0.0, 5.0, torch.nan):
        output, _ = module(x, lengths=lengths)
        incoming = torch.ones_like(output).masked_fill(padding, value)
        results.append(torch.autograd.grad(output, list(module.parameters()), incoming))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_other_sequences_change_no_bit(device, dtype):
    """Not even by NaN: what a sequence gives does not depend on the rest of the batch."""
    module, x, lengths, hx = make("deep", device, dtype)
    output, state = module(x, hx, lengths=lengths)
    x[:, 2] = torch.nan
    hx[0][:, 4] = torch.nan
    others = [0, 1, 3]
    found, found_state = module(x, hx, lengths=lengths)
    assert torch.equal(found[:, others], output[:, others])
    for a, b in zip(found_state, state, strict=True):
        assert torch.equal(a[:, others], b[:, others])
    assert found[0, 2].isnan().all()


def test_order_of_the_batch(device):
    module, x, lengths, hx = make("projected", device)
    order = torch.tensor([4, 2, 0, 3, 1], device=device)
    output, state = module(x, hx, lengths=lengths)
    found, found_state = module(x[:, order], tuple(s[:, order] for s in hx), lengths=lengths[order])
    torch.testing.assert_close(found, output[:, order])
    torch.testing.assert_close(found_state, tuple(s[:, order] for s in state))


@each_layer
def test_full_lengths_are_no_lengths(device, layer):
    module, x, lengths, hx = make(layer, device)
    full = torch.full_like(lengths, T)
    with_lengths = evaluate(module, x, hx, lengths=full)
    assert_same_without_boundaries(device, with_lengths, evaluate(module, x, hx))


def test_no_steps_at_all(device):
    module, x, lengths, hx = make("deep", device)
    found = evaluate(module, x, hx, lengths=torch.zeros_like(lengths))
    assert not found["output"].any()
    assert torch.equal(found["h_n"], hx[0])
    assert torch.equal(found["c_n"], hx[1])
    assert not any(found[f"grad of {name}"].any() for name, _ in module.named_parameters())
    assert found["grad of h_0"].any()


def test_one_sequence_without_a_batch(device):
    module = FusedLSTM(D, H, 2, device=device, dtype=torch.float64)
    x = rand(T, D, device=device)
    output, state = module(x, lengths=torch.tensor(4, device=device))
    expected, expected_state = twin(module)(x[:4])
    torch.testing.assert_close(output[:4], expected)
    torch.testing.assert_close(state, expected_state)
    assert not output[4:].any()
