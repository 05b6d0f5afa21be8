"""What only a GPU can show: streams, graphs, synchronisation, TF32, several devices, memory."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import (
    NO_CUDA,
    assert_close,
    assert_same_bits,
    evaluate,
    flatten,
    rand,
    rand_state,
    twin,
)
from torch import nn

from fused_lstm import FusedLSTM, FusedLSTMCell

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(NO_CUDA), reason=str(NO_CUDA))]

T, B, D, H = 20, 8, 16, 32


def make(dtype=torch.float32, **options):
    module = FusedLSTM(D, H, 2, bidirectional=True, device="cuda", dtype=dtype, **options)
    return module, rand(T, B, D, device="cuda", dtype=dtype)


def options_of(kind):
    if kind == "lengths":
        return {"lengths": torch.randint(0, T + 1, (B,), device="cuda")}
    if kind == "reset":
        return {"reset": torch.rand(T, B, device="cuda") < 0.2, "reset_to": "initial"}
    return {}


@pytest.mark.parametrize("kind", ["plain", "lengths", "reset"])
def test_no_synchronisation(dtype, kind):
    module, x = make(dtype)
    hx, options = rand_state(module, B), options_of(kind)
    evaluate(module, x, hx, **options)  # libraries set themselves up
    x.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output, (h_n, c_n) = module(x, hx, **options)
        (output.sum() + h_n.sum() + c_n.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_debug_mode_sees_a_synchronisation():
    """The test above can fail."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones((), device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream():
    """The work waits for what its stream holds: a long pause, then the input."""
    module, x = make()
    expected = evaluate(module, x)
    stream = torch.cuda.Stream()
    late = torch.full_like(x, torch.nan)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        found = evaluate(module, late)
    stream.synchronize()
    assert_same_bits(found, expected)


def test_a_graph_of_the_forward(dtype):
    module, x = make(dtype)
    hx = rand_state(module, B)
    with torch.no_grad():
        module(x, hx)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = module(x, hx)
        for _ in range(3):
            x.copy_(rand(T, B, D, device="cuda", dtype=dtype))
            graph.replay()
            assert_close(flatten(captured), flatten(module(x, hx)))


@pytest.mark.parametrize("kind", ["plain", "lengths", "reset"])
def test_a_graph_of_a_training_step(kind):
    module, x = make()
    options = options_of(kind)
    x.requires_grad_()
    leaves = [x, *module.parameters()]

    def step():
        output, (h_n, c_n) = module(x, **options)
        loss = output.square().sum() + h_n.sum() + c_n.sum()
        return torch.autograd.grad(loss, leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(rand(T, B, D, device="cuda", dtype=torch.float32))
        graph.replay()
        torch.testing.assert_close(captured, step())


@pytest.mark.parametrize("lstm", [FusedLSTM, nn.LSTM])
def test_a_graphed_callable(lstm):
    """PyTorch's own capture of forward and backward, replayed beside the module as it is."""
    module = lstm(D, H, 2, bidirectional=True, device="cuda")
    sample = rand(T, B, D, device="cuda", dtype=torch.float32).requires_grad_()
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(module), (sample,))
    for _ in range(20):
        x = rand(T, B, D, device="cuda", dtype=torch.float32).requires_grad_()
        gradients = []
        for each in (graphed, module):
            output, (h_n, c_n) = each(x)
            loss = output.square().sum() + h_n.sum() + c_n.sum()
            gradients.append(torch.autograd.grad(loss, [x, *each.parameters()]))
        torch.testing.assert_close(*gradients)


def test_a_graph_of_the_cell():
    cell = FusedLSTMCell(D, H, device="cuda")
    x = rand(B, D, device="cuda", dtype=torch.float32)
    with torch.no_grad():
        expected = cell(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = cell(x)
        graph.replay()
    torch.testing.assert_close(captured, expected)


# TF32 rounds products to 10 bits of mantissa, about 2^-11; float32 errs by about 2^-24.


def error_of_float32():
    torch.manual_seed(0)
    module = FusedLSTM(256, 256, device="cuda")
    x = torch.randn(4, 32, 256, device="cuda")
    with torch.no_grad():
        found = module(x)[0]
        truth = twin(module, FusedLSTM, torch.float64)(x.double())[0]
    return (found - truth).abs().max().item()


needs_tf32 = pytest.mark.skipif(
    not NO_CUDA and torch.cuda.get_device_capability()[0] < 8, reason="needs TF32 (8.0 or later)"
)


@needs_tf32
def test_tf32_as_allow_tf32_says(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert error_of_float32() < 2e-6
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert error_of_float32() > 1e-5


@needs_tf32
def test_tf32_as_fp32_precision_says(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    assert error_of_float32() < 2e-6
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    assert error_of_float32() > 1e-5


@needs_tf32
def test_tf32_of_other_products_does_not_matter(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    assert error_of_float32() < 2e-6


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_a_device_that_is_not_the_current_one():
    module, x = make()
    expected = evaluate(module, x)
    found = evaluate(module.to("cuda:1"), x.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(tensor.device.index == 1 for tensor in found.values())
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.cpu(), expected[name].cpu())


def test_the_same_bits_many_times(dtype):
    """At a size that fills the GPU, to see races."""
    module = FusedLSTM(512, 512, device="cuda", dtype=dtype)
    call = (rand(16, 128, 512, device="cuda", dtype=dtype), rand_state(module, 128))
    first = evaluate(module, *call)
    for _ in range(100):
        assert_same_bits(evaluate(module, *call), first)


def test_memory_does_not_grow():
    module, x = make()
    torch.cuda.synchronize()
    used = []
    for steps in (T, 5, T, 12, T):
        evaluate(module, x[:steps])
        used.append(torch.cuda.memory_allocated())
    assert len(set(used)) == 1


def test_inference_keeps_no_states():
    """Without gradients the largest buffer is one layer's preactivations."""
    module = FusedLSTM(64, 256, device="cuda", dtype=torch.float32)
    x = torch.zeros(200, 64, 64, device="cuda")
    peaks = []
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            module(x)  # the products' workspace
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            module(x)
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1]


def test_offsets_beyond_32_bits():
    """B * T * 4H above 2^31 elements: the last sequences are those of a small batch."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free memory")
    module = FusedLSTM(1, 256, device="cuda", dtype=torch.float16)
    x = rand(9, 2**18, 1, device="cuda", dtype=torch.float16)
    lengths = torch.full((2**18,), 9, device="cuda")
    with torch.no_grad():
        found = module(x, lengths=lengths)[0][:, -5:]
        expected = module(x[:, -5:].contiguous(), lengths=lengths[-5:])[0]
    torch.testing.assert_close(found, expected)
