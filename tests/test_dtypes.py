"""Complex numbers, and types that differ from one another, as nn.LSTM and nn.LSTMCell take them."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from oracle import evaluate, reference_lstm, twin
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from fused_lstm import FusedLSTM, FusedLSTMCell, replace_lstm

T, B, D, H = 4, 3, 2, 5
LAYERS = {
    "plain": {},
    "no bias": {"bias": False},
    "deep": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected": {"proj_size": 2, "bidirectional": True},
    "recompute": {"recompute": True},
}


def packed(x):
    return pack_padded_sequence(x, [T, 2, 1], enforce_sorted=False)


# Complex numbers


@pytest.mark.parametrize("complex_dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["padded", "packed", "unbatched"])
def test_complex_layers(kind, layer, complex_dtype):
    module = FusedLSTM(D, H, **LAYERS[layer], dtype=complex_dtype)
    x = torch.randn((T, D) if kind == "unbatched" else (T, B, D), dtype=complex_dtype)
    if module.batch_first and kind != "unbatched":
        x = x.transpose(0, 1)
    if kind == "packed":
        x = pack_padded_sequence(x, [T, 2, 1], batch_first=module.batch_first)
    torch.testing.assert_close(evaluate(module, x), evaluate(twin(module), x))


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": torch.tensor([4, 0, 2])},
        {"reset": torch.arange(T * B).reshape(T, B) % 4 == 0, "reset_to": "initial"},
        {"return_states": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_complex_options(options):
    module = FusedLSTM(D, H, 2, bidirectional=True, dtype=torch.complex128)
    x = torch.randn(T, B, D, dtype=torch.complex128)
    expected = evaluate(module, x, call=lambda *a, **o: reference_lstm(module, *a, **o), **options)
    torch.testing.assert_close(evaluate(module, x, **options), expected)
    if "lengths" in options:
        output = module(x, **options)[0]
        for b, length in enumerate(options["lengths"].tolist()):
            if length:
                torch.testing.assert_close(output[:length, b], twin(module)(x[:length, b])[0])
            assert not output[length:, b].any()


def test_complex_cells():
    results = []
    for kind in (FusedLSTMCell, nn.LSTMCell):
        torch.manual_seed(0)
        cell = kind(D, H, dtype=torch.complex64)
        x = torch.randn(B, D, dtype=torch.complex64, requires_grad=True)
        h, c = cell(x, cell(x))
        gradients = torch.autograd.grad(
            (h * c).abs().sum(), [x, *cell.parameters()], create_graph=True
        )
        second = torch.autograd.grad(gradients[0].abs().sum(), cell.weight_ih)
        results.append([h, c, *gradients, *second])
    torch.testing.assert_close(*results)


def test_a_complex_model_swapped_and_compiled():
    model = nn.Sequential(nn.LSTM(D, H, dtype=torch.complex64))
    x = torch.randn(T, B, D, dtype=torch.complex64)
    expected = model(x)
    replace_lstm(model, verbose=False)
    torch.testing.assert_close(model(x), expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


# Mixtures

KINDS = ["padded", "packed", "projected", "cell"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def call(kind, fused, dtype, cell, biases, grad):
    """The results by name, then the gradients; all made in float32 of the same numbers."""
    torch.manual_seed(0)
    if kind == "cell":
        module = (FusedLSTMCell if fused else nn.LSTMCell)(D, H, dtype=dtype)
        x, hx = torch.randn(B, D), (torch.randn(B, H), torch.randn(B, H))
    else:
        P = 2 if kind == "projected" else 0
        module = (FusedLSTM if fused else nn.LSTM)(D, H, proj_size=P, dtype=dtype)
        x, hx = torch.randn(T, B, D), (torch.randn(1, B, P or H), torch.randn(1, B, H))
    for name, parameter in list(module.named_parameters()):
        if name.startswith("bias"):
            setattr(module, name, nn.Parameter(parameter.detach().to(biases)))
    leaves = [x.to(dtype), hx[0].to(dtype), hx[1].to(cell)]
    leaves = [leaf.requires_grad_(grad) for leaf in leaves]
    leaves += list(module.requires_grad_(grad).parameters())
    x = packed(leaves[0]) if kind == "packed" else leaves[0]
    result = module(x, (leaves[1], leaves[2]))
    if kind == "cell":
        results = list(result)
    else:
        results = [getattr(result[0], "data", result[0]), *result[1]]
    if not grad:
        return results
    total = sum(t.double().square().sum() for t in results)
    return results + list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_mixtures_that_nn_lstm_takes(kind, dtype, grad):
    """Its results' types and numbers, and gradients in the leaves' own types."""
    taken = 0
    for cell, biases in product(DTYPES, [dtype, torch.float32]):
        try:
            expected = call(kind, False, dtype, cell, biases, grad)
        except RuntimeError:
            continue
        found = call(kind, True, dtype, cell, biases, grad)
        assert [t.dtype for t in found] == [t.dtype for t in expected], (cell, biases)
        low = torch.finfo(dtype).bits == 16
        tolerance = {"rtol": 0.05, "atol": 0.1} if low else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found, expected, **tolerance)
        taken += 1
    assert taken >= 1


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["padded", "packed", "projected", "recompute"])
def test_a_float32_cell_state_and_biases_are_not_rounded(device, kind, low):
    """All of the state passes, and the candidate is a bias that `low` cannot hold."""
    size = {"proj_size": 2} if kind == "projected" else {}
    size |= {"recompute": kind == "recompute", "bidirectional": True}
    module = FusedLSTM(D, H, device=device, dtype=low, **size)
    bias = torch.zeros(4 * H, device=device)
    bias[: 2 * H] = 100.0  # the input and the forget gate are 1
    bias[2 * H : 3 * H] = torch.linspace(0.11, 0.17, H)
    for name, parameter in list(module.named_parameters()):
        with torch.no_grad():
            parameter.zero_()
        if name.startswith("bias_ih"):
            setattr(module, name, nn.Parameter(bias.clone()))
        elif name.startswith("bias_hh"):
            setattr(module, name, nn.Parameter(torch.zeros_like(bias)))
    x = torch.zeros(T, B, D, device=device, dtype=low)
    hidden = torch.zeros(2, B, 2 if kind == "projected" else H, device=device, dtype=low)
    c_0 = torch.randn(2, B, H, device=device).requires_grad_()
    _, (_, c_n) = module(packed(x) if kind == "packed" else x, (hidden, c_0))
    steps = torch.tensor([T, 2, 1], device=device) if kind == "packed" else T
    steps = torch.as_tensor(steps, device=device).reshape(-1, 1)  # [B, 1] or [1, 1]
    expected = c_0 + steps * bias[2 * H : 3 * H].tanh()
    assert c_n.dtype == torch.float32
    torch.testing.assert_close(c_n, expected.expand_as(c_n), rtol=2e-5, atol=2e-5)
    incoming = torch.randn_like(c_n)
    for create_graph in (False, True):
        gradient, of_bias = torch.autograd.grad(
            c_n, [c_0, module.bias_ih_l0], incoming, retain_graph=True, create_graph=create_graph
        )
        assert gradient.dtype == of_bias.dtype == torch.float32
        assert torch.equal(gradient, incoming)
        assert of_bias[2 * H : 3 * H].abs().max() > 0


def test_a_narrower_cell_state(device):
    """Counts in the input's dtype."""
    module = FusedLSTM(D, H, 2, device=device)
    x = torch.randn(T, B, D, device=device)
    hx = torch.randn(2, 2, B, H, device=device).bfloat16().float().unbind()
    found = module(x, (hx[0], hx[1].bfloat16()))
    torch.testing.assert_close(found, module(x, hx), rtol=0, atol=0)


def test_what_is_refused_names_the_argument(device):
    layer = FusedLSTM(D, H, device=device, dtype=torch.bfloat16)
    x, state = torch.zeros(T, B, D, device=device), torch.zeros(1, B, H, device=device)
    low, state_low = x.bfloat16(), state.bfloat16()
    with pytest.raises(RuntimeError, match=r"c_0 has dtype Double, .* BFloat16 or Float"):
        layer(low, (state_low, state.double()))
    with pytest.raises(RuntimeError, match=r"h_0 has dtype Float, must be .* BFloat16(?! or)"):
        layer(low, (state, state))
    layer.bias_hh_l0 = nn.Parameter(layer.bias_hh_l0.detach().double())
    with pytest.raises(RuntimeError, match=r"bias_hh has dtype Double, .* BFloat16 or Float"):
        layer(low)
