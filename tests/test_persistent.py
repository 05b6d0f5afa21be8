"""The CUDA kernels that run all steps in one launch, each chosen by name: on a GPU, and on the
emulator (make emulate), where tensors on the CPU run them."""

from __future__ import annotations

import os

import pytest
import torch
from oracle import assert_accurate, assert_same_bits, evaluate, rand, rand_state, truth_of
from rounding import TF32
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_lstm
from fused_lstm import FusedLSTM
from fused_lstm.explain import GPUS, Gpu

EMULATED = os.environ.get("FUSED_LSTM_EMULATED") == "1"
# Of tests/emulator/cuda_runtime.cpp's profiles those that these tests run on
EMULATOR = {
    "hopper-132": Gpu(90, 132, 227 * 1024, 16),
    "hopper": Gpu(90, 12, 227 * 1024, 8),
    "one-cluster-of-4": Gpu(90, 4, 227 * 1024, 4),
    "a100": GPUS["A100"],
    "l4": GPUS["L4"],
}[os.environ.get("EMULATED_GPU", "hopper-132")]

# T, B, D, H: on each side of a tile of 8 sequences, of a tile of rows or depth, of a slice of the
# batch, and of what the registers of a block hold of the weights.
SHAPES = [
    (1, 1, 1, 20),
    (5, 3, 2, 17),
    (4, 9, 3, 33),
    (3, 33, 2, 48),
    (2, 17, 4, 100),
    (2, 41, 1, 20),
    (2, 1, 1, 200),
    (2, 9, 2, 256),  # on the grid of an H100, backward in clusters of blocks but for TF32
]
PRECISIONS = ["float32", "tf32", "bfloat16", "float16"]


@pytest.fixture(params=["block", "cluster", "grid"])
def kernel(request, device) -> str:
    if device == "cpu" and not EMULATED:
        pytest.skip("a CUDA kernel")
    if EMULATED and request.param == "cluster" and EMULATOR.largest_cluster == 0:
        pytest.skip("the GPU has no clusters")
    with fused_lstm.use_kernel(request.param):
        yield request.param


@pytest.fixture(params=PRECISIONS)
def precision(request, monkeypatch) -> torch.dtype:
    """A dtype; float32 with and without tensor cores."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", request.param == "tf32")
    return torch.float32 if request.param == "tf32" else getattr(torch, request.param)


def must_run(kernel: str, module: nn.Module, T: int, B: int) -> None:
    """Skips where the GPU cannot run the kernel; never on the emulator but for `block`.

    Without clusters the backward pass must run it there, whatever runs forward.
    """
    device = EMULATOR if EMULATED else module.weight_ih_l0.device
    plans = fused_lstm.explain(module, B, T, device=device)
    if all(plan.forward.kernel == plan.backward.kernel == kernel for plan in plans):
        return
    backward_alone = EMULATED and EMULATOR.largest_cluster == 0
    if backward_alone and all(plan.backward.kernel == kernel for plan in plans):
        return
    assert not EMULATED or kernel == "block", str(plans)
    pytest.skip(str(plans))


def assert_right(module: nn.Module, *call, **options) -> None:
    """No further from the truth than rounding explains, with TF32 that of the products' factors."""
    tf32 = module.weight_ih_l0.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    truth = truth_of(module, *call, factors=TF32 if tf32 else None, **options)
    assert_accurate(evaluate(module, *call, **options), truth)


def make(kernel, device, precision, T, B, D, H, **options):
    module = FusedLSTM(D, H, device=device, dtype=precision, **options)
    must_run(kernel, module, T, B)
    return module, rand(T, B, D, device=device, dtype=precision), rand_state(module, B)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(kernel, device, precision, shape):
    assert_right(*make(kernel, device, precision, *shape))


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"bias": False}], ids=str)
def test_layers(kernel, device, precision, options):
    assert_right(*make(kernel, device, precision, 4, 10, 3, 36, **options))


def test_packed(kernel, device, precision):
    """Slices whose sequences are long over, and slices that begin late, in either direction."""
    module, x, state = make(kernel, device, precision, 6, 43, 3, 24, bidirectional=True)
    lengths = torch.cat([torch.tensor([6, 6, 5]), torch.full((30,), 3), torch.ones(10)]).long()
    assert_right(module, pack_padded_sequence(x, lengths), state)


@pytest.mark.parametrize("kind", ["lengths", "zero", "initial", "both"])
def test_episodes_and_ends(kernel, device, precision, kind):
    T, B = 5, 11
    module, x, state = make(kernel, device, precision, T, B, 3, 24, bidirectional=True)
    options = {}
    if kind in ("lengths", "both"):
        options["lengths"] = torch.randint(0, T + 1, (B,), device=device)
    if kind != "lengths":
        options["reset"] = torch.rand(T, B, device=device) < 0.4
        options["reset_to"] = "zero" if kind == "both" else kind
    assert_right(module, x, state, **options)


@pytest.mark.parametrize(
    ("B", "kind"),
    [(70, "plain"), (33, "packed"), (20, "both"), (41, "initial"), (20, "states")],
)
def test_large_batches(kernel, device, precision, B, kind):
    """Slices of several groups of sequences: the emulator's GPU is one of 12 multiprocessors."""
    if kernel != "grid" or (EMULATED and EMULATOR.multiprocessors > 12):
        pytest.skip("slices would be of one group")
    if precision == torch.float16 and kind != "both":
        pytest.skip("as bfloat16")
    T, H, bidirectional = 3, 73 if EMULATED else 1000, kind != "plain"
    module = FusedLSTM(3, H, device=device, dtype=precision, bidirectional=bidirectional)
    if EMULATED:
        (plan,) = fused_lstm.explain(module, B, T, device=EMULATOR)
        assert plan.backward.kernel == "grid", plan
        assert plan.backward.candidates["grid"].sequences > 8, plan
    else:
        must_run(kernel, module, T, B)
    x, state = rand(T, B, 3, device=device, dtype=precision), rand_state(module, B)
    options = {"return_states": True} if kind == "states" else {}
    if kind == "packed":
        x = pack_padded_sequence(x, T - torch.arange(B) * T // B)
    elif kind == "both":
        options["lengths"] = torch.randint(0, T + 1, (B,), device=device)
    if kind in ("both", "initial"):
        options["reset"] = torch.rand(T, B, device=device) < 0.4
        options["reset_to"] = "initial" if kind == "initial" else "zero"
    assert_right(module, x, state, **options)


@pytest.mark.parametrize("kind", ["padded", "packed", "initial"])
def test_absent_states(kernel, device, precision, kind):
    """They are zero: forward, in backward, and where an episode starts from them."""
    T, B = 5, 11
    module, x, _ = make(kernel, device, precision, T, B, 3, 24, bidirectional=True)
    options = {}
    if kind == "packed":
        x = pack_padded_sequence(x, torch.tensor([5] * 4 + [3] * 4 + [1] * 3))
    elif kind == "initial":
        options = {"reset": torch.rand(T, B, device=device) < 0.4, "reset_to": "initial"}
    assert_right(module, x, **options)


def test_absent_gradients_of_states(kernel, device, precision):
    """Of h_n and c_n, too, where no initial state wants one."""
    module, x, (h_0, c_0) = make(kernel, device, precision, 5, 11, 3, 24)
    zeros = (torch.zeros_like(h_0), torch.zeros_like(c_0))
    parameters = list(module.parameters())
    absent, given = (
        torch.autograd.grad(output.sum(), parameters)
        for output in (module(x)[0], module(x, zeros)[0])
    )
    for one, other in zip(absent, given, strict=True):
        torch.testing.assert_close(one, other)


def test_states_and_their_gradients(kernel, device, precision):
    module, x, state = make(kernel, device, precision, 3, 5, 3, 24)
    assert_right(module, x, state, return_states=True)


def test_tf32_is_seen(kernel, device, monkeypatch):
    """The products differ in TF32: the tests of float32 have not taken it."""
    call = make(kernel, device, torch.float32, 3, 5, 3, 24)
    exact = evaluate(*call)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    must_run(kernel, call[0], 3, 5)
    rounded = evaluate(*call)
    assert (exact["output"] - rounded["output"]).abs().max() > 1e-5


def test_same_bits_every_time(kernel, device, precision):
    """Whoever comes first to a barrier: the emulator draws another order at each launch."""
    call = make(kernel, device, precision, 4, 12, 3, 40)
    first = evaluate(*call)
    for _ in range(4):
        assert_same_bits(evaluate(*call), first)


def test_inference_keeps_nothing(kernel, device, precision):
    module, x, state = make(kernel, device, precision, 4, 12, 3, 40)
    with torch.no_grad():
        output, (h_n, c_n) = module(x, state)
    trained = evaluate(module, x, state)
    assert_same_bits(
        {"output": output, "h_n": h_n, "c_n": c_n},
        {name: trained[name] for name in ("output", "h_n", "c_n")},
    )
