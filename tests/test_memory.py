"""What calls leave behind in memory: nothing once they are over, and little for backward."""

from __future__ import annotations

import gc
import random
import resource
from pathlib import Path

import pytest
import torch
from oracle import flatten, twin
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.profiler import ProfilerActivity, profile

from fused_lstm import FusedLSTM

STATM = Path("/proc/self/statm")

LONGEST, BATCH, FEATURES, HIDDEN = 50, 4, 16, 64
CALLS = 1000
# An output has 25 KB on average, so one that leaked each call would come to 25 MB. Where nothing
# does, the heap's own unrest has come to at most 0.5 MB.
GROWTH = 4 * 2**20


def resident_bytes() -> int:
    gc.collect()
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def call_with(module, kind, steps, training):
    """One call on sequences of up to `steps` steps."""
    x = torch.randn(steps, BATCH, FEATURES)
    lengths = torch.tensor([steps, *(random.randint(1, steps) for _ in range(BATCH - 1))])
    if kind == "packed":
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    options = {"lengths": lengths} if kind == "lengths" else {}
    with torch.set_grad_enabled(training):
        named = flatten(module(x, **options))
    if training:
        sum(value.sum() for value in named.values()).backward()


@pytest.mark.skipif(not STATM.exists(), reason="the system does not tell resident memory")
@pytest.mark.parametrize("training", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", ["padded", "lengths", "packed"])
def test_does_not_grow_over_calls_of_varying_lengths(kind, training):
    module = FusedLSTM(FEATURES, HIDDEN)
    random.seed(0)

    def call(times):
        for _ in range(times):
            call_with(module, kind, random.randint(1, LONGEST), training)

    call(200)  # the libraries' first calls, all gradients, every length
    before = resident_bytes()
    call(CALLS)
    grown = resident_bytes() - before
    assert grown < GROWTH, f"{grown / 2**20:.1f} MB more after {CALLS} calls"


def forward_bytes(module, x, hx=None):
    """Bytes that a forward leaves: saved for backward, and those with its results together.

    Whole storages, each once; those of the parameters, the input and the state are not counted.
    """
    inputs = (x.data, x.batch_sizes) if isinstance(x, PackedSequence) else (x,)
    inputs += hx or ()
    given = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *inputs)}
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = flatten(module(x, hx)).values()

    def size(tensors):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(bytes for address, bytes in storages.items() if address not in given)

    return size(saved), size([*saved, *results])


SHAPES = {  # T, B, D, H and the module's options
    "one step": (1, 1, 64, 64, {}),
    "long": (100, 1, 32, 128, {}),
    "batch": (20, 32, 10, 64, {}),
    "odd": (7, 3, 5, 13, {}),
    "two layers": (20, 8, 64, 64, {"num_layers": 2}),
    "two directions": (20, 8, 64, 64, {"bidirectional": True}),
    "projection": (20, 8, 64, 64, {"proj_size": 16}),
}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_saves_no_more_for_backward_than_nn_lstm(shape, dtype, packed):
    T, B, D, H, options = shape
    ours = FusedLSTM(D, H, **options, dtype=dtype)
    x = torch.randn(T, B, D, dtype=dtype)
    if packed:
        x = pack_padded_sequence(x, torch.linspace(T, max(1, T // 4), B).long())
    saved, _ = forward_bytes(ours, x)
    theirs, _ = forward_bytes(twin(ours), x)
    if packed and B == 1 and dtype == torch.bfloat16 and torch.__version__ < (2, 13):
        # nn.LSTM does not take oneDNN for it there. Its own steps save all but the last output,
        # which it returns.
        theirs += H * dtype.itemsize
    assert saved <= theirs, f"{saved} bytes, {saved / theirs:.2f} times nn.LSTM's"


@pytest.mark.parametrize("kind", [FusedLSTM, torch.nn.LSTM])
def test_what_is_saved_is_seen(kind):
    """C++ nodes too hold nothing that the test above misses: the allocator counts the same."""
    module = kind(64, 64, num_layers=2, bidirectional=True)
    x, state = torch.randn(20, 8, 64), torch.zeros(4, 8, 64)
    hx = (state, state)  # a call that is not profiled makes fewer zeros of its own
    _, expected = forward_bytes(module, x, hx)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as memory:
        results = module(x, hx)
    assert sum(event.self_cpu_memory_usage for event in memory.key_averages()) == expected
    del results  # which had to be kept until here
