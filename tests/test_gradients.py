"""Gradients: right to any order, whatever reaches them, and the same bits every time."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from emulated import EMULATED
from oracle import assert_close, assert_same_bits, evaluate, on_device, rand, rand_state, twin
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence

from fused_lstm import FusedLSTM, FusedLSTMCell, ops

T, B, D, H = 3, 2, 3, 2
LENGTHS = torch.tensor([3, 1])
RESET = torch.tensor([[False, True], [True, False], [False, False]])
OPTIONS = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "reset": {"reset": RESET},
    "reset to initial": {"reset": RESET, "lengths": LENGTHS, "reset_to_initial": True},
    "packed": {"batch_sizes": torch.tensor([2, 2, 1])},
}


@pytest.mark.parametrize("proj_size", [0, 1])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("options", OPTIONS)
def test_derivatives_of_the_layer(device, options, directions, proj_size):
    module = FusedLSTM(
        D,
        H,
        bidirectional=directions == 2,
        proj_size=proj_size,
        device=device,
        dtype=torch.float64,
    )
    given = on_device(OPTIONS[options], device)
    rows = (5,) if "batch_sizes" in given else (T, B)
    x = torch.randn(*rows, D, device=device, dtype=torch.float64)
    leaves = [x, *rand_state(module, B), *module._flat_weights]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def call(x, hidden, cell, *weights):
        return ops.layer(x, hidden, cell, weights, **given, keep_states=True)

    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves, fast_mode=True)


def test_derivatives_of_the_cell(device):
    module = FusedLSTMCell(D, H, device=device, dtype=torch.float64)
    shapes = [(B, D), (B, H), (B, H)]
    leaves = [torch.randn(shape, device=device, dtype=torch.float64) for shape in shapes]
    leaves = [leaf.detach().requires_grad_() for leaf in [*leaves, *module.parameters()]]

    def call(x, hidden, cell, *weights):
        return ops.cell(x, hidden, cell, weights)

    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves, fast_mode=True)


def test_gradients_of_any_strides(device):
    """Expanded, transposed and missing incoming gradients stand for their dense values."""
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    x = rand(T, B, D, device=device).requires_grad_()
    leaves = [x, *module.parameters()]

    def gradients(**incoming):
        output, (h_n, c_n) = module(x)
        named = {"output": output, "h_n": h_n, "c_n": c_n}
        results = [named[name] for name in incoming]
        return torch.autograd.grad(results, leaves, list(incoming.values()))

    dense = rand(T, B, H, device=device)
    h_n, c_n = rand(1, B, H, device=device), rand(1, B, H, device=device)
    zero = torch.zeros_like(h_n)
    once = torch.ones((), device=device, dtype=torch.float64)
    for one, other in [
        ({"output": once.expand(T, B, H)}, {"output": torch.ones_like(dense)}),
        ({"output": once.expand(T, B, H)}, {"output": torch.ones_like(dense), "h_n": zero}),
        ({"output": dense.mT.contiguous().mT}, {"output": dense, "h_n": zero, "c_n": zero}),
        ({"h_n": h_n.mT.contiguous().mT}, {"output": 0 * dense, "h_n": h_n, "c_n": zero}),
        ({"c_n": once.expand(1, B, H)}, {"output": 0 * dense, "c_n": torch.ones_like(c_n)}),
        (
            {"output": dense.repeat(1, 1, 2)[..., ::2]},
            {"output": dense.repeat(1, 1, 2)[..., ::2].clone()},
        ),
    ]:
        for a, b in zip(gradients(**one), gradients(**other), strict=True):
            assert torch.equal(a, b)


def test_inputs_of_any_strides(device):
    module = FusedLSTM(D, H, 2, bidirectional=True, device=device, dtype=torch.float64)
    x, (hidden, cell) = rand(T, B, D, device=device), rand_state(module, B)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    states = tuple(s.transpose(0, 2).contiguous().transpose(0, 2) for s in (hidden, cell))
    assert not strided.is_contiguous()
    assert not states[0].is_contiguous()
    assert_same_bits(evaluate(module, strided, states), evaluate(module, x, (hidden, cell)))
    wide = x.repeat(1, 1, 2)[..., D:]
    assert_same_bits(evaluate(module, wide, (hidden, cell)), evaluate(module, x, (hidden, cell)))
    row = x[:, :1]
    dense = evaluate(module, row.repeat(1, B, 1))
    assert_same_bits(evaluate(module, row.expand(T, B, D)), dense)


def test_weights_of_any_strides(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    expected = evaluate(module, x := rand(T, B, D, device=device))
    for name, weight in list(module.named_parameters()):
        if weight.dim() == 2:
            strided = weight.detach().t().contiguous().t()
            setattr(module, name, torch.nn.Parameter(strided))
            assert not getattr(module, name).is_contiguous()
    assert_same_bits(evaluate(module, x), expected)


def test_a_second_backward_gives_the_same_numbers(device, dtype):
    module = FusedLSTM(17, 33, 2, bidirectional=True, device=device, dtype=dtype)
    x = rand(5, 3, 17, device=device, dtype=dtype).requires_grad_()
    loss = module(x)[0].sum()
    leaves = [x, *module.parameters()]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


def test_two_runs_give_the_same_bits(device, dtype):
    module = FusedLSTM(17, 65, 2, bidirectional=True, device=device, dtype=dtype)
    steps, runs = (6, 1) if EMULATED else (30, 3)
    call = (rand(steps, 33, 17, device=device, dtype=dtype), rand_state(module, 33))
    first = evaluate(module, *call)
    for _ in range(runs):
        assert_same_bits(evaluate(module, *call), first)


@pytest.mark.parametrize("kind", ["layer", "cell"])
def test_batched_gradients(device, kind):
    """Many incoming gradients at once, as a vectorised Jacobian has them: vmap over backward."""
    if kind == "layer":
        module = FusedLSTM(D, H, 2, bidirectional=True, device=device, dtype=torch.float64)
        x = rand(T, B, D, device=device).requires_grad_()
    else:
        module = FusedLSTMCell(D, H, device=device, dtype=torch.float64)
        x = rand(B, D, device=device).requires_grad_()
    output = module(x)[0]
    leaves = [x, *module.parameters()]
    incoming = rand(5, *output.shape, device=device)
    found = torch.autograd.grad(output, leaves, incoming, retain_graph=True, is_grads_batched=True)
    for k, one in enumerate(incoming):
        expected = torch.autograd.grad(output, leaves, one, retain_graph=True)
        torch.testing.assert_close([gradients[k] for gradients in found], list(expected))


def test_gradients_accumulate(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    x = rand(T, B, D, device=device)
    module(x)[0].sum().backward()
    once = {name: p.grad.clone() for name, p in module.named_parameters()}
    module(x)[0].sum().backward()
    assert_close(
        {name: p.grad for name, p in module.named_parameters()}, {k: 2 * v for k, v in once.items()}
    )


NAMES = ["input", "h_0", "c_0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
SUBSETS = [subset for n in (1, 2, len(NAMES) - 1) for subset in combinations(NAMES, n)]


def test_any_subset_that_requires_grad(device):
    module = FusedLSTM(D, H, device=device, dtype=torch.float64)
    tensors = {"input": rand(T, B, D, device=device)}
    tensors |= dict(zip(["h_0", "c_0"], rand_state(module, B), strict=True))
    tensors |= dict(module.named_parameters())

    def gradients(names):
        for name in NAMES:
            tensors[name].requires_grad_(name in names)
        output, _ = module(tensors["input"], (tensors["h_0"], tensors["c_0"]))
        found = torch.autograd.grad(output.sum(), [tensors[name] for name in names])
        return dict(zip(names, found, strict=True))

    every = gradients(NAMES)
    for subset in SUBSETS:
        assert_same_bits(gradients(subset), {name: every[name] for name in subset})


def test_nothing_requires_grad(device):
    module = FusedLSTM(D, H, device=device).requires_grad_(False)
    output, (h_n, c_n) = module(rand(T, B, D, device=device, dtype=torch.float32))
    assert not any(tensor.requires_grad for tensor in (output, h_n, c_n))


# What a caller may change in place before the backward: what that does not read
KINDS = {
    "padded": {},
    "bidirectional": {"bidirectional": True},
    "projected": {"proj_size": 1},
    "recompute": {"recompute": True},
    "packed": {},
    "lengths": {"bidirectional": True, "recompute": True},
}


def results_of(module, kind, x):
    if kind == "packed":
        x = pack_padded_sequence(x, [len(x)] * B)
    options = {"lengths": torch.tensor([len(x), 0], device=x.device)} if kind == "lengths" else {}
    output, state = module(x, **options)
    return {"output": output.data if kind == "packed" else output, "h_n": state[0], "c_n": state[1]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("length", "changed"), [(1, "output"), (1, "h_n"), (1, "c_n"), (T, "h_n"), (T, "c_n")]
)
def test_results_changed_in_place(device, kind, length, changed):
    """The backward does not read them, nor the output of a single step."""
    module = FusedLSTM(D, H, 2, **KINDS[kind], device=device, dtype=torch.float64)
    x = rand(length, B, D, device=device).requires_grad_()
    found = []
    for change in (True, False):
        results = results_of(module, kind, x)
        loss = sum((k * t).sum() for k, t in enumerate(results.values(), 1))
        if change:
            with torch.no_grad():
                results[changed].zero_()
        found.append(torch.autograd.grad(loss, [x, *module.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_changed_in_place_is_noticed(device, kind):
    """The backward reads that of several steps: it must raise, not give wrong gradients."""
    module = FusedLSTM(D, H, **KINDS[kind], device=device)
    x = rand(T, B, D, device=device, dtype=torch.float32)
    output = results_of(module, kind, x)["output"]
    loss = (output * 2).sum()
    with torch.no_grad():
        output.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("packed", [False, True])
def test_backward_in_eval_mode(device, packed):
    module = FusedLSTM(D, H, 2, dropout=0.5, device=device, dtype=torch.float64).eval()
    x = rand(T, B, D, device=device)
    x = pack_padded_sequence(x, [3, 2]) if packed else x
    # cuDNN refuses a backward in eval mode: there the truth trains, without dropout.
    truth = twin(module).train()
    truth.dropout = 0.0
    assert_close(evaluate(module, x), evaluate(truth, x))


def test_a_penalty_on_the_gradient(device):
    """Double backward through several layers, as a gradient penalty takes it."""
    module = FusedLSTM(D, H, 2, bidirectional=True, device=device, dtype=torch.float64)
    other = twin(module)
    x = rand(T, B, D, device=device)

    def penalty(lstm):
        leaf = x.clone().requires_grad_()
        # cuDNN has no double backward: the truth comes from PyTorch's own kernels.
        with torch.backends.cudnn.flags(enabled=False):
            output, _ = lstm(leaf)
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf, create_graph=True)
        gradient.square().sum().backward()
        return {name: p.grad for name, p in lstm.named_parameters()}

    assert_close(penalty(module), penalty(other))
