"""Streams: a step at a time what a frozen layer computes of the whole sequence, and nothing
allocated on the way."""

from __future__ import annotations

import copy
import gc
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from oracle import assert_close, in_fresh_process, rand
from torch import nn

from fused_lstm import freeze

FORMATS = ["float32", "bfloat16", "int8"]
D, H = 6, 10
STATM = Path("/proc/self/statm")
LAYERS = {
    "one layer": {},
    "no bias": {"bias": False},
    "layers": {"num_layers": 3},
    "projection": {"num_layers": 2, "proj_size": 4},
    "batch first": {"num_layers": 2, "batch_first": True},
}


def frozen_layer(name="layers", kind="float32"):
    return freeze(nn.LSTM(D, H, **LAYERS[name]), kind)


def inputs(batch=1, steps=8):
    return rand(batch, steps, D, dtype=torch.float32)


def whole(frozen, x, hx=None):
    """The output [B, T, P] of x [B, T, D], and the state, in one call of the layer."""
    if frozen.batch_first:
        return frozen(x, hx)
    output, state = frozen(x.transpose(0, 1), hx)
    return output.transpose(0, 1), state


def assert_state(stream, expected):
    named = [dict(zip("hc", state, strict=True)) for state in (stream.state, expected)]
    assert_close(*named)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_steps_and_chunks(name, batch, kind):
    frozen, x = frozen_layer(name, kind), inputs(batch)
    expected, state = whole(frozen, x)
    stream = frozen.stream(batch)
    assert stream.batch_size == batch
    found = [stream(x[:, 0]).clone()[:, None]]
    for first, last in ((1, 4), (4, 5), (5, 8)):
        chunk = stream(x[:, first:last])
        assert chunk.shape == (batch, last - first, expected.size(2))
        found.append(chunk.clone())
    tolerance = 1e-6 if kind == "float32" else 2e-3
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(stream.state, state, atol=tolerance, rtol=0)


def test_results_are_views_of_the_stream_s_buffer():
    frozen, x = frozen_layer(), inputs(2)
    stream = frozen.stream(2)
    step = stream(x[:, 0])
    before = step.clone()
    assert stream(x[:, 1]) is step
    assert not torch.equal(step, before)
    chunk = stream(x[:, 2:5])
    assert stream(x[:, 5:8]) is chunk
    kept = chunk.clone()
    stream(x[:, :4])  # of another length
    assert torch.equal(chunk, kept)


def test_a_result_outlives_its_stream():
    frozen, x = frozen_layer(), inputs()
    stream = frozen.stream()
    outputs = [stream(x[:, 0]), stream(x)]
    kept = [output.clone() for output in outputs]
    del stream, frozen
    gc.collect()
    [torch.full((100,), 7.0) for _ in range(1000)]
    assert all(map(torch.equal, outputs, kept))


def test_a_stream_outlives_its_layer():
    """And goes on with the weights that it was made with."""
    frozen, x = frozen_layer(), inputs()
    expected, _ = whole(frozen, x)
    stream = frozen.stream()
    frozen.load_state_dict({k: torch.zeros_like(v) for k, v in frozen.state_dict().items()})
    del frozen
    gc.collect()
    torch.testing.assert_close(stream(x), expected)


def test_a_result_cannot_be_resized():
    y = frozen_layer().stream()(inputs()[:, 0])
    with pytest.raises(RuntimeError, match="not resizable"):
        y.resize_(1000)


def test_autograd_sees_that_a_result_was_overwritten():
    stream, linear = frozen_layer().stream(), nn.Linear(H, 2)
    x = inputs()
    loss = linear(stream(x[:, 0])).sum()
    stream(x[:, 1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_inference_mode():
    frozen, x = frozen_layer(), inputs()
    with torch.inference_mode():
        stream = frozen.stream()
        first = stream(x[:, 0])
        assert stream.fork()(x) is not None
    assert stream(x[:, 1]) is first
    assert not first.is_inference()


@pytest.mark.parametrize("name", LAYERS)
def test_state(name):
    frozen, x = frozen_layer(name), inputs(3)
    P, L = frozen.proj_size or H, frozen.num_layers
    stream = frozen.stream(3)
    assert [tuple(s.shape) for s in stream.state] == [(L, 3, P), (L, 3, H)]
    assert not any(s.any() for s in stream.state)
    hx = (rand(L, 3, P, dtype=torch.float32), rand(L, 3, H, dtype=torch.float32))
    stream.state = hx
    assert all(map(torch.equal, stream.state, hx))
    expected, state = whole(frozen, x, hx)
    torch.testing.assert_close(stream(x), expected)
    assert_state(stream, state)
    h, c = stream.state
    h.zero_()  # a copy
    assert_state(stream, state)
    stream.state = [h.double(), c.transpose(1, 2).contiguous().transpose(1, 2)]
    assert_state(stream, (torch.zeros_like(h), state[1]))


def test_reset():
    frozen, x = frozen_layer(), inputs(4)
    stream = frozen.stream(4)
    stream(x)
    before = [s.clone() for s in stream.state]
    mask = torch.tensor([False, True, True, False])
    stream.reset(mask)
    for now, then in zip(stream.state, before, strict=True):
        assert torch.equal(now[:, ~mask], then[:, ~mask])
        assert not now[:, mask].any()
    stream.reset(mask=~mask)
    assert not any(s.any() for s in stream.state)
    stream(x)
    stream.reset()
    torch.testing.assert_close(stream(x), whole(frozen, x)[0])


def test_fork():
    frozen, x = frozen_layer(), inputs(2)
    expected, _ = whole(frozen, x)
    stream = frozen.stream(2)
    stream(x[:, :3])
    other = stream.fork()
    torch.testing.assert_close(other(x[:, 3:]), expected[:, 3:])
    assert other.batch_size == 2
    torch.testing.assert_close(stream(x[:, 3:]), expected[:, 3:])
    del stream
    other.reset()
    torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.bfloat16(),
        lambda x: x.half(),
        lambda x: x.as_subclass(type("Sub", (torch.Tensor,), {})),
        lambda x: nn.Parameter(x, requires_grad=False),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: torch._neg_view(-x),
    ],
    ids=["float64", "bfloat16", "float16", "subclass", "parameter", "strided", "negative view"],
)
def test_other_tensors_are_converted(change):
    frozen, x = frozen_layer(), inputs(3)
    plain, changed = frozen.stream(3), frozen.stream(3)
    assert torch.equal(changed(change(x[:, 0])), plain(x[:, 0]))
    assert torch.equal(changed(change(x)), plain(x))


def wrong_calls():
    x = inputs(2)
    two = "must be \\[B, D\\] or \\[B, T, D\\] with B = 2, D = 6"
    yield (x[0, 0],), ValueError, f"x has shape \\[6\\], {two}"
    yield (x[:1, 0],), ValueError, f"x has shape \\[1, 6\\], {two}"
    yield (x[:, 0, 1:],), ValueError, f"x has shape \\[2, 5\\], {two}"
    yield (x[:, :0],), ValueError, "and one step or more"
    yield (x[..., 1:],), ValueError, f"x has shape \\[2, 8, 5\\], {two}"
    yield (x.long(),), TypeError, "x has dtype Long, must be a floating dtype"
    yield ([1.0],), TypeError, "x is a list, must be a tensor"
    yield (x.to("meta"),), ValueError, "x is on meta, must be on the CPU"
    yield (x[:, 0].clone().requires_grad_(),), RuntimeError, "x requires grad, but a frozen layer"
    yield (), TypeError, "a stream takes one argument"
    yield (x, x), TypeError, "a stream takes one argument"


@pytest.mark.parametrize(("arguments", "kind", "message"), list(wrong_calls()))
def test_errors_of_a_call(arguments, kind, message):
    stream = frozen_layer().stream(2)
    before = stream.state
    with pytest.raises(kind, match=message):
        stream(*arguments)
    assert all(map(torch.equal, stream.state, before))
    with pytest.raises(TypeError, match="one argument"):
        stream(inputs(2), mode=1)


def test_other_errors():
    frozen = frozen_layer()
    with pytest.raises(ValueError, match="batch_size is 0, must be 1 or more"):
        frozen.stream(0)
    with pytest.raises(TypeError):
        frozen.stream("1")
    both = freeze(nn.LSTM(D, H, bidirectional=True))
    with pytest.raises(ValueError, match="the layer is bidirectional, must have one direction"):
        both.stream()
    stream = frozen.stream(2)
    for mask, kind, message in (
        (
            torch.zeros(2),
            ValueError,
            "mask is Float of shape \\[2\\], must be Bool of shape \\[2\\]",
        ),
        (torch.zeros(3, dtype=torch.bool), ValueError, "must be Bool of shape \\[2\\]"),
        ([True, False], TypeError, "mask is a list, must be a tensor"),
    ):
        with pytest.raises(kind, match=message):
            stream.reset(mask)
    h, c = stream.state
    for state, kind, message in (
        (h, TypeError, "state must be a tuple of the hidden and the cell state"),
        ((h,), TypeError, "state must be a tuple"),
        ((h[1:], c), ValueError, r"state\[0\] has shape \[2, 2, 10\], must be \[3, 2, 10\]"),
        ((h, c[:, :1]), ValueError, r"state\[1\] has shape"),
        ((h, 1), TypeError, r"state\[1\] is a int, must be a tensor"),
    ):
        with pytest.raises(kind, match=message):
            stream.state = state
    with pytest.raises(TypeError, match="state must be a tuple"):
        del stream.state
    with pytest.raises(TypeError, match="cannot create"):
        type(stream)()
    with pytest.raises(TypeError, match="pickle"):
        copy.deepcopy(stream)
    assert repr(stream) == "Stream(6, 10, layers=3, batch_size=2)"


def test_no_python_object_is_allocated():
    stream, x = frozen_layer().stream(), inputs()[:, 0].contiguous()
    stream(x)
    gc.collect()

    def blocks_of(calls):
        before = sys.getallocatedblocks()
        for _ in range(calls):
            stream(x)
        return sys.getallocatedblocks() - before

    blocks_of(10)
    assert blocks_of(10_000) < 5


COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
static long count;
long allocations(void) { return count; }
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { ++count; return __libc_malloc(n); }
void* calloc(size_t n, size_t m) { ++count; return __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { ++count; return __libc_realloc(p, n); }
void* aligned_alloc(size_t a, size_t n) { ++count; return __libc_memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) {
  ++count;
  *p = __libc_memalign(a, n);
  return *p ? 0 : 12;
}
void* mmap(void* p, size_t n, int a, int b, int c, long d) {
  ++count;
  void* (*next)(void*, size_t, int, int, int, long) = dlsym(RTLD_NEXT, "mmap");
  return next(p, n, a, b, c, d);
}
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs glibc and cc")
def test_no_memory_is_allocated(tmp_path, monkeypatch):
    """A step reaches neither malloc nor mmap; the copy of a result shows that calls are counted."""
    (tmp_path / "count.c").write_text(COUNTER)
    library = tmp_path / "count.so"
    built = subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "count.c", "-ldl"],
        capture_output=True,
        text=True,
    )
    if built.returncode != 0:
        pytest.skip(built.stderr)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    in_fresh_process(
        """
        import ctypes, gc, torch
        from torch import nn
        from fused_lstm import freeze
        allocations = ctypes.CDLL(None).allocations
        allocations.restype = ctypes.c_long
        for kind in ("float32", "bfloat16", "int8"):
            for options in ({}, {"num_layers": 3}, {"proj_size": 4, "num_layers": 2}):
                for batch in (1, 5):
                    stream = freeze(nn.LSTM(6, 10, **options), kind).stream(batch)
                    x = torch.randn(batch, 6)
                    y = stream(x)
                    gc.disable()
                    before = allocations()
                    nothing = allocations() - before
                    before = allocations()
                    for _ in range(1000):
                        stream(x)
                    steps = allocations() - before
                    before = allocations()
                    y.clone()
                    copied = allocations() - before
                    gc.enable()
                    assert steps <= nothing, (kind, options, batch, steps, nothing)
                    assert copied > nothing
        """,
        tmp_path,
    )


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_streams_share_their_layer_s_weights():
    def resident():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()

    frozen = freeze(nn.LSTM(512, 512), "float32")
    weights = sum(buffer.nbytes for buffer in frozen.buffers())
    frozen.stream()(torch.randn(1, 512))
    before = resident()
    streams = [frozen.stream() for _ in range(20)]
    assert resident() - before < weights
    assert weights > 8_000_000
    assert len(streams) == 20


def test_one_thread_at_a_time():
    """A long call releases the interpreter's lock; meanwhile the stream refuses others."""
    frozen = freeze(nn.LSTM(64, 256), "float32")
    stream, x = frozen.stream(), torch.randn(1, 20_000, 64)
    refused, started = [], threading.Event()

    def advance():
        started.set()
        stream(x)

    thread = threading.Thread(target=advance)
    thread.start()
    started.wait()
    while thread.is_alive():
        try:
            stream.fork()
        except RuntimeError as error:
            refused.append(str(error))
    thread.join()
    assert any("advancing in another thread" in text for text in refused)
    assert stream(x[:, 0]) is not None


def test_streams_in_threads():
    """Each thread its own, of one layer."""
    frozen = freeze(nn.LSTM(D, 200, 2), "int8")
    x = [inputs(2, 50) for _ in range(4)]
    expected = [frozen.stream(2)(each).clone() for each in x]
    found = [None] * len(x)

    def run(k):
        stream = frozen.stream(2)
        for _ in range(5):
            stream.reset()
            found[k] = stream(x[k]).clone()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, expected))
