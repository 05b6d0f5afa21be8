"""What a step of each persistent kernel costs, counted on the emulator."""

from __future__ import annotations

import emulated
import pytest
import torch
from test_persistent import EMULATOR

import fused_lstm

pytestmark = pytest.mark.skipif(not emulated.EMULATED, reason="needs the emulator: make emulate")

# Kernel, H and direction, with 8 sequences of bfloat16; then of a step, over all blocks: products
# of a warp and barriers of a block, at most; bytes stored through L2 and sent within clusters.
# Bytes that are loaded while they are awaited depend on chance.
STEPS = [
    # 8 warps of 2 row tiles, 4 depth tiles of h and 2 of x; 4 warps of 1 row tile, 16 depth tiles
    ("block", 28, "forward", 96, 1, 0, 0),
    ("block", 28, "backward", 64, 2, 0, 0),
    # 4 blocks of 20 units: h to each of 4; of 32 units: partial sums of 128 units from each
    ("cluster", 72, "forward", 160, 0, 0, 4 * 4 * 20 * 8 * 2),
    ("cluster", 72, "backward", 256, 4, 0, 4 * 128 * 8 * 4),
    # 5 blocks of 16 units: h; 2 clusters of 4 blocks: four gates of 128 units, sums of 64 from each
    ("grid", 72, "forward", 960, 5, 5 * 16 * 8 * 2, 0),
    ("grid", 72, "backward", 1536, 8, 4 * 128 * 8 * 4, 8 * 64 * 8 * 4),
]


def count(kernel: str, H: int, direction: str, T: int) -> emulated.Counts:
    module = fused_lstm.FusedLSTM(3, H, dtype=torch.bfloat16)
    x = torch.zeros(T, 8, 3, dtype=torch.bfloat16)
    with fused_lstm.use_kernel(kernel):
        (plan,) = fused_lstm.explain(module, 8, T, device=EMULATOR)
        assert plan.forward.kernel == plan.backward.kernel == kernel
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
