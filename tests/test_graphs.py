"""What a CUDA graph could not hold, ruled out without a GPU: the host reading a device's values,
or giving it its own, and work on other streams. On a GPU test_cuda.py captures graphs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from oracle import rand
from torch.profiler import ProfilerActivity, profile

from fused_lstm import FusedLSTM, FusedLSTMCell

T, B, D, H = 5, 4, 3, 6
CSRC = Path(__file__).resolve().parents[1] / "csrc"

# Operators by which the host reads a tensor's values, or makes a tensor of its own
HOST = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "lift_fresh"}
# What waits for the device, allocates beside PyTorch's allocator, or works on another stream
FORBIDDEN = re.compile(
    r"[sS]ynchronize\(|cuda(Malloc|Free|Memcpy|StreamCreate|Event)\w*|getStreamFromPool|\.item[<(]"
)


def on_the_host(call):
    """Those of HOST that a call ran, inside other operators too."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return HOST & {event.key.removeprefix("aten::") for event in seen.key_averages()}


OPTIONS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([1, 2, 0, 5])},
    "reset": {"reset": torch.arange(T * B).reshape(T, B) % 4 == 0, "reset_to": "initial"},
    "inner states": {"return_states": True},
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_training_step_stays_on_the_device(options, recompute):
    module = FusedLSTM(D, H, 2, bidirectional=True, proj_size=2, dropout=0.5, recompute=recompute)
    x = rand(T, B, D, dtype=torch.float32).requires_grad_()

    def step():
        output, (h_n, c_n), *_ = module(x, **OPTIONS[options])
        (output.sum() + h_n.sum() + c_n.sum()).backward()

    assert not on_the_host(step)
    assert x.grad.any()


def test_a_step_of_the_cell_stays_on_the_device():
    cell, x = FusedLSTMCell(D, H), rand(B, D, dtype=torch.float32)
    assert not on_the_host(lambda: cell(x)[0].sum().backward())


@pytest.mark.parametrize("call", [torch.Tensor.item, torch.nonzero, lambda x: x.new_tensor([1.0])])
def test_what_does_not_is_seen(call):
    assert on_the_host(lambda: call(torch.ones(())))


@pytest.mark.skipif(not CSRC.exists(), reason="no sources here")
def test_nothing_in_the_sources_waits_or_leaves_the_stream():
    sources = "".join(path.read_text(encoding="utf-8") for path in CSRC.rglob("*.*"))
    assert not FORBIDDEN.search(sources)
    streams = re.findall(r"cudaStream_t \w+ = (.*);", sources)
    assert set(streams) == {"at::cuda::getCurrentCUDAStream()"}
