"""What a step of each persistent kernel and a small call cost, counted on the emulator."""

from __future__ import annotations

import emulated
import pytest
import torch
from test_persistent import EMULATOR
from torch.profiler import ProfilerActivity, profile

import fused_lstm

pytestmark = pytest.mark.skipif(not emulated.EMULATED, reason="needs the emulator: make emulate")

# Kernel, H and direction, with BATCH sequences of bfloat16; then of a step, over all blocks:
# products of a warp and barriers of a block, at most; bytes stored through L2 and sent within
# clusters. Bytes that are loaded while they are awaited depend on chance.
STEPS = [
    # 8 warps of 2 row tiles, 4 depth tiles of h and 2 of x; 4 warps of 1 row tile, 16 depth tiles
    ("block", 28, "forward", 96, 1, 0, 0),
    ("block", 28, "backward", 64, 2, 0, 0),
    # 4 blocks of 20 units: h to each of 4; of 32 units: partial sums of 128 units from each
    ("cluster", 72, "forward", 160, 0, 0, 4 * 4 * 20 * 8 * 2),
    ("cluster", 72, "backward", 256, 4, 0, 4 * 128 * 8 * 4),
    # 5 blocks of 16 units: h; 3 blocks of 32 units: 3 warps of 2 row tiles, 8 depth tiles, sums of
    # 72 units from each; 12 clusters of 4 blocks: four gates of 768 units, sums of 64 from each
    ("grid", 72, "forward", 960, 5, 5 * 16 * 8 * 2, 0),
    ("grid", 72, "backward", 3 * 3 * 16, 3, 3 * 72 * 8 * 4, 0),
    ("grid", 768, "backward", 48 * 8 * 24, 48, 4 * 768 * 8 * 4, 48 * 64 * 8 * 4),
]
BATCH = 8
if EMULATOR.multiprocessors == 12:  # test_without_clusters.py runs this file so
    # 4 slices of 2 groups, each of 3 blocks: 2 warps of 4 row tiles, 8 depth tiles; sums of 72
    # units from each
    BATCH = 64
    STEPS = [("grid", 72, "backward", 12 * 2 * 2 * 32, 12 * 2, 12 * 2 * 72 * 8 * 4, 0)]
elif EMULATOR.largest_cluster == 4:  # test_sequence_tiles.py runs this file so
    # 4 blocks of 32 units, 2 tiles: 4 warps of 2 row tiles, 8 depth tiles; partial sums as above
    BATCH = 16
    STEPS = [("cluster", 72, "backward", 2 * 256, 4, 0, 2 * 4 * 128 * 8 * 4)]
elif EMULATOR.largest_cluster == 0:  # likewise
    # 3 blocks of 32 units: 3 warps of 2 row tiles, 8 depth tiles; sums of 72 units from each
    STEPS = [("grid", 72, "backward", 3 * 3 * 16, 3, 3 * 72 * 8 * 4, 0)]


def count(kernel: str, H: int, direction: str, T: int) -> emulated.Counts:
    module = fused_lstm.FusedLSTM(3, H, dtype=torch.bfloat16)
    x = torch.zeros(T, BATCH, 3, dtype=torch.bfloat16)
    with fused_lstm.use_kernel(kernel):
        (plan,) = fused_lstm.explain(module, BATCH, T, device=EMULATOR)
        assert getattr(plan, direction).kernel == kernel
        before = emulated.counts()
        output, _ = module(x)
        if direction == "backward":
            before = emulated.counts()
            output.sum().backward()
    pairs = zip(emulated.counts(), before, strict=True)
    return emulated.Counts(*(after - before for after, before in pairs))


@pytest.mark.parametrize(("kernel", "H", "direction", "mma", "barriers", "stored", "sent"), STEPS)
def test_step(kernel, H, direction, mma, barriers, stored, sent):
    short, long = (count(kernel, H, direction, T) for T in (3, 7))
    step = emulated.Counts(*((b - a) / 4 for a, b in zip(short, long, strict=True)))
    assert 0 < step.mma <= mma
    assert step.block_barriers <= barriers
    assert (step.stored_bytes, step.sent_bytes) == (stored, sent)
    assert step.loaded_bytes >= step.stored_bytes
    assert step.launches == 0


# Operators of ATen that compute nothing: views, and memory as it is
NO_LAUNCH = {
    *("as_strided", "detach", "empty", "empty_strided", "expand", "narrow", "select", "slice"),
    *("t", "to", "transpose", "unsqueeze", "view"),
}


def launches_of(event) -> int:
    """Of an operator of ATen, on a GPU: each that calls no other is one."""
    children = [child for child in event.cpu_children if child.name.startswith("aten::")]
    if event.name == "aten::sum":  # which copies and fills on a CPU
        return 1
    if children:
        return sum(map(launches_of, children))
    return event.name.removeprefix("aten::") not in NO_LAUNCH


def launches_and_allocations(call) -> tuple[int, int]:
    """Of our kernels, cuBLAS and ATen; of tensors. Zeros from memset do not count."""
    before = emulated.counts()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    after = emulated.counts()
    launches = after.launches - before.launches + after.gemms - before.gemms
    for event in profiled.events():
        parent = event.cpu_parent
        if event.name.startswith("aten::") and not (parent and parent.name.startswith("aten::")):
            launches += launches_of(event)
    return launches, after.allocations - before.allocations


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_small_call(dtype, directions):
    """B 32 T 20 D 10 H 64: the input's product is made in the kernel, absent states are no memory.

    Forward: the kernel; the output, h_n and c_n. Forward and backward: two kernels and, for each
    direction, two GEMMs, the biases' sum and two casts of it if they are not in float32; beside
    the results gates, cell states and the gates' gradients and, for each direction, the gradients
    of three weights, of which that of the biases is cast twice.
    """
    module = fused_lstm.FusedLSTM(10, 64, dtype=dtype, bidirectional=directions == 2)
    x, grad = (torch.zeros(20, 32, n, dtype=dtype) for n in (10, 64 * directions))
    (plan,) = fused_lstm.explain(module, 32, 20, device=EMULATOR)
    assert plan.forward.kernel == "block"

    def infer():
        with torch.no_grad():
            module(x)

    def train():
        output, _ = module(x)
        torch.autograd.grad(output, list(module.parameters()), grad)

    assert launches_and_allocations(infer) == (1, 3)
    launches, allocations = launches_and_allocations(train)
    if dtype == torch.float32:
        assert (launches, allocations) == (2 + 3 * directions, 6 + 3 * directions)
    else:  # the sum copies on a CPU
        assert (launches, allocations) == (2 + 5 * directions, 6 + 6 * directions)


def test_given_states_cost_what_their_gradients_need():
    """Memory for two of them, which begin at zero, and one more GEMM for that of weight_hh."""
    module = fused_lstm.FusedLSTM(10, 64)
    x, grad = torch.zeros(20, 32, 10), torch.zeros(20, 32, 64)
    states = tuple(torch.zeros(1, 32, 64, requires_grad=True) for _ in range(2))

    def train():
        output, _ = module(x, states)
        torch.autograd.grad(output, [*module.parameters(), *states], grad)

    assert launches_and_allocations(train) == (5 + 1, 9 + 2)
