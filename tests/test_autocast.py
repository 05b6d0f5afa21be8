"""Autocast: nn.LSTM's choice of types, and a cell state in float32 inside."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from oracle import rand, with_data
from torch import nn
from torch.func import jvp, vjp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fused_lstm import FusedLSTM, FusedLSTMCell

T, B, D, H = 5, 4, 3, 6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["padded", "packed", "unbatched", "projected", "packed and projected", "cell"]


def call_of(kind, device, input, weights, state):
    """A module's arguments by name, and its input and hx; input, weights and state are dtypes."""
    shape = {"unbatched": (T, D), "cell": (B, D)}.get(kind, (T, B, D))
    x = rand(*shape, device=device, dtype=input)
    if kind.startswith("packed"):
        x = pack_padded_sequence(x, [5, 3, 2, 1])
    arguments = {"device": device, "dtype": weights}
    if kind == "cell":
        shapes = [(B, H), (B, H)]
    else:
        arguments |= {"num_layers": 2, "bidirectional": True}
        arguments |= {"proj_size": 2} if kind.endswith("projected") else {}
        batch = () if kind == "unbatched" else (B,)
        shapes = [(4, *batch, arguments.get("proj_size", H)), (4, *batch, H)]
    hx = None if state is None else tuple(rand(*s, device=device, dtype=state) for s in shapes)
    return arguments, (x, hx)


def pair_of(kind):
    return (FusedLSTMCell, nn.LSTMCell) if kind == "cell" else (FusedLSTM, nn.LSTM)


def tensors_of(result):
    """output, h_n and c_n, or the cell's h and c."""
    first, second = result
    if not isinstance(second, tuple):
        return [first, second]
    return [first.data if isinstance(first, PackedSequence) else first, *second]


def types(lstm, autocast, arguments, inputs):
    with torch.autocast(arguments["device"], autocast):
        result = lstm(D, H, **arguments)(*inputs)
    return [tensor.dtype for tensor in tensors_of(result)]


def states(device, input):
    return [None, input] if device == "cuda" else [None, *DTYPES]  # all that cuDNN takes


NO_FLOAT16 = (
    None
    if torch.ops.mkldnn._is_mkldnn_fp16_supported()
    else "nn.LSTM asks oneDNN for float16, which needs a processor with AVX512-FP16 or AMX-FP16"
)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_types_are_those_of_nn_lstm(device, kind, autocast):
    padded = kind in ("padded", "unbatched")
    if NO_FLOAT16 and device == "cpu" and padded and autocast == torch.float16:
        pytest.skip(NO_FLOAT16)
    compared = 0
    ours, theirs = pair_of(kind)
    for input, weights in product(DTYPES, DTYPES):
        for state in states(device, input):
            call = call_of(kind, device, input, weights, state)
            if input == torch.float16 and padded:
                continue  # below
            try:
                expected = types(theirs, autocast, *call)
            except RuntimeError:  # packed float16 in layers under bfloat16, in torch.cat
                continue
            assert types(ours, autocast, *call) == expected, (input, weights, state)
            compared += 1
    assert compared >= 2 * len(DTYPES) * len(states(device, torch.float32))


@pytest.mark.skipif(bool(NO_FLOAT16), reason=str(NO_FLOAT16))
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["padded", "unbatched"])
def test_types_of_padded_float16(kind, autocast):
    """nn.LSTM has two answers, one with gradients and one without; FusedLSTM always the latter."""
    call = call_of(kind, "cpu", torch.float16, torch.float32, torch.float32)
    with torch.no_grad():
        without = types(nn.LSTM, autocast, *call)
        assert types(FusedLSTM, autocast, *call) == without
    assert types(FusedLSTM, autocast, *call) == without
    assert types(nn.LSTM, autocast, *call) != without


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(device, kind):
    """Near those of a call without autocast, gradients in the leaves' own types."""
    arguments, (x, hx) = call_of(kind, device, torch.float32, torch.float32, torch.float32)
    module = pair_of(kind)[0](D, H, **arguments)
    results = []
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            tensors = tensors_of(module(x, hx))
        sum(tensor.float().square().sum() for tensor in tensors).backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        results.append([*(tensor.detach().float() for tensor in tensors), *gradients])
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.05)


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


def near(found, expected):
    """Equal up to a few roundings of the type."""
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    for ours, theirs in zip(found, expected, strict=True):
        eps = torch.finfo(ours.dtype).eps
        size = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=8 * eps, atol=8 * eps * size)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_transforms_give_the_types_and_numbers_of_a_call(device, kind, state, autocast):
    if device == "cuda" and state == torch.bfloat16:
        pytest.skip("cuDNN takes states of the input's type only")
    arguments, (x, hx) = call_of(kind, device, torch.float32, torch.float32, state)
    module = pair_of(kind)[0](D, H, **arguments)
    data = x.data if isinstance(x, PackedSequence) else x

    def call(data):
        input = with_data(x, data) if kind.startswith("packed") else data
        return tuple(tensors_of(module(input, hx)))

    leaf = data.clone().requires_grad_()
    with torch.autocast(device, autocast):
        expected = call(leaf)
        found, pull = vjp(call, data)
        along, tangents = jvp(call, (data,), (torch.ones_like(data),))
    near(found, expected)
    near(along, expected)
    incoming = tuple(rand(*t.shape, device=device, dtype=t.dtype) for t in expected)
    (gradient,) = torch.autograd.grad(expected, leaf, incoming)
    low = 16 * torch.finfo(autocast).eps  # the gradients of what autocast rounds
    torch.testing.assert_close(pull(incoming)[0], gradient, rtol=low, atol=4 * low)
    total = sum((t.float() * g.float()).sum() for t, g in zip(tangents, incoming, strict=True))
    torch.testing.assert_close(total, gradient.sum(), rtol=0.1, atol=0.5)


@pytest.mark.parametrize("kind", ["padded", "projected", "cell"])
def test_vmap_gives_the_types_and_numbers_of_calls(device, kind):
    arguments, (x, hx) = call_of(kind, device, torch.float32, torch.float32, torch.float32)
    module = pair_of(kind)[0](D, H, **arguments)
    many = torch.stack([x, -x])
    with torch.autocast(device, torch.bfloat16):
        found = vmap(lambda x: tuple(tensors_of(module(x, hx))))(many)
        for k, one in enumerate(many):
            near([t[k] for t in found], tensors_of(module(one, hx)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_reference_inside_autocast(device, kind):
    """create_graph and is_grads_batched differentiate it, with the types of the call."""
    arguments, (x, hx) = call_of(kind, device, torch.float32, torch.float32, torch.float32)
    module = pair_of(kind)[0](D, H, **arguments)
    with torch.autocast(device, torch.bfloat16):
        results = tensors_of(module(x, hx))
        incoming = [torch.ones_like(t) for t in results]
        leaves = list(module.parameters())
        expected = torch.autograd.grad(results, leaves, incoming, retain_graph=True)
        again = torch.autograd.grad(results, leaves, incoming, create_graph=True)
        batched = torch.autograd.grad(
            results, leaves, [g[None] for g in incoming], is_grads_batched=True
        )
    in_float32 = kind == "cell" or kind.startswith("packed") or kind == "projected"
    exact = device == "cpu" and in_float32
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if exact else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(again, expected, **tolerance)
    torch.testing.assert_close([g[0] for g in batched], list(expected), **tolerance)
