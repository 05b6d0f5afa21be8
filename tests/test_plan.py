"""Which kernel a GPU runs: the plan is a pure function, tested without a GPU."""

from __future__ import annotations

import math
import re

import pytest
import torch

import fused_lstm
from fused_lstm import _C, FusedLSTM
from fused_lstm.explain import GPUS, Gpu

PRECISIONS = {"16 bits": (2, True), "TF32": (4, True), "float32": (4, False), "float64": (8, False)}


def plan(gpu: str | Gpu, batch: int, hidden: int, precision: str = "16 bits", **options):
    element_bytes, tensor_cores = PRECISIONS[precision]
    sizes = {"length": 100, "batch": batch, "input": hidden, "hidden": hidden}
    sizes |= {"projection": hidden, "directions": 1, "backward": False}
    return _C.gpu_plan(
        gpu=tuple(GPUS[gpu] if isinstance(gpu, str) else gpu),
        element_bytes=element_bytes,
        tensor_cores=tensor_cores,
        **sizes | options,
    )


def kernels(gpu: str, precision: str, batch: int = 16, **options) -> str:
    """The first letters of the kernels for growing H."""
    sizes = (64, 128, 256, 512, 768, 1024, 1536)
    return "".join(plan(gpu, batch, H, precision, **options)["kernel"][0] for H in sizes)


# b block, c cluster, g grid, s stepwise
FORWARD = {
    ("H200", "16 bits"): "ccccggg",
    ("H200", "TF32"): "ccccggg",
    ("H200", "float32"): "cccgggs",
    ("A100", "16 bits"): "bbggggg",
    ("A100", "TF32"): "bggggss",
    ("L4", "16 bits"): "bbgggss",
    ("L4", "TF32"): "bggssss",
    ("RTX 4090", "16 bits"): "bbggggs",
    ("RTX 4090", "TF32"): "bggggss",
}
BACKWARD = {
    ("H200", "16 bits"): "ccccggg",
    ("H200", "TF32"): "ccccggs",
    ("H200", "float32"): "cccgsss",
    ("A100", "16 bits"): "bbggggg",
    ("A100", "TF32"): "bgggggs",
    ("L4", "16 bits"): "bggggss",
    ("L4", "TF32"): "ggggsss",
    ("RTX 4090", "16 bits"): "bgggggs",
    ("RTX 4090", "TF32"): "gggggss",
}


@pytest.mark.parametrize(("gpu", "precision"), FORWARD)
def test_forward(gpu, precision):
    assert kernels(gpu, precision) == FORWARD[gpu, precision]


@pytest.mark.parametrize(("gpu", "precision"), BACKWARD)
def test_backward(gpu, precision):
    assert kernels(gpu, precision, backward=True) == BACKWARD[gpu, precision]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("gpu", ["H200", "A100"])
def test_steps_of_ragged_sequences_take_longer(gpu, backward):
    """Of the kernels that are compiled for them; a GEMM and a launch a step take as long."""
    found = [plan(gpu, 8, 64, backward=backward, ragged=r)["candidates"] for r in (False, True)]
    for plain, ragged in zip(*found, strict=True):
        longer = plain["obstacle"] is None and plain["kernel"] != "stepwise"
        assert (ragged["microseconds"] > plain["microseconds"]) == longer, plain["kernel"]


def test_the_grid_backward_with_and_without_clusters_of_four():
    """A GPU that has them takes the kernel for them; their estimates tell one from the other."""
    few = GPUS["H200"]._replace(largest_cluster=2)
    none = GPUS["H200"]._replace(largest_cluster=0)
    with_them, without, also_without = (
        plan(gpu, 16, 512, backward=True)["candidates"][2] for gpu in ("H200", few, none)
    )
    assert with_them["blocks"] % 4 == 0
    assert without == also_without
    assert without["microseconds"] > with_them["microseconds"]
    assert (without["blocks"], without["units"]) == (16, 32)


@pytest.mark.parametrize(("precision", "batch"), [("16 bits", 32), ("TF32", 16)])
def test_the_grid_backward_does_without_clusters_where_that_is_quicker(precision, batch):
    """Slices of 8 sequences without them, where those of the clusters' kernel would be of 16."""
    few = GPUS["H200"]._replace(clusters=(64, 30, 14, 6))
    with_them, without = (
        plan(gpu, batch, 1024, precision, backward=True)["candidates"][2]
        for gpu in (few, few._replace(largest_cluster=0))
    )
    assert with_them == without
    assert with_them["sequences"] == 8
    assert with_them["blocks"] * with_them["slices"] == 128


def test_a_larger_batch_takes_larger_slices():
    """Blocks of all slices run at once: on an A100 6 slices of 16 blocks, or 4 of 16 sequences."""
    small, large = (plan("A100", B, 512, backward=True)["candidates"][2] for B in (48, 64))
    assert (small["slices"], small["sequences"]) == (6, 8)
    assert (large["slices"], large["sequences"]) == (4, 16)


@pytest.mark.parametrize(
    ("gpu", "precision", "hidden", "batch", "placement"),
    [
        ("H100", "16 bits", 1024, 64, (32, 4, 16)),
        ("H100", "16 bits", 1024, 128, (32, 4, 32)),
        ("H100", "16 bits", 1024, 100, (32, 4, 32)),
        ("H100", "16 bits", 768, 128, (24, 4, 32)),
        ("H100", "16 bits", 1536, 64, (64, 2, 32)),
        ("H100", "TF32", 1024, 64, (64, 2, 32)),
        ("H100", "float32", 512, 40, (32, 3, 16)),
        ("A100", "16 bits", 512, 128, (16, 6, 24)),
        ("A100", "16 bits", 1024, 128, (43, 2, 64)),
        ("A100", "16 bits", 1536, 16, (96, 1, 16)),
        ("A100", "TF32", 1024, 16, (64, 1, 16)),
    ],
)
def test_backward_of_large_batches(gpu, precision, hidden, batch, placement):
    """As many slices as run at once, each of groups of 8 sequences."""
    made = plan(gpu, batch, hidden, precision, backward=True)
    grid = made["candidates"][2]
    assert (grid["blocks"], grid["slices"], grid["sequences"]) == placement
    assert made["kernel"] == "grid"


# Of TF32 backward at H 512, two tiles would gain little: it takes slices of 8
TWO_TILES = [("16 bits", 256, 512), ("16 bits", 512, 128), ("TF32", 256, 256)]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("precision", "hidden", "batch"), TWO_TILES)
def test_clusters_take_two_tiles_of_sequences_where_it_saves_waves(
    precision, hidden, batch, backward
):
    """Not where clusters of slices of 8 run at once; beyond, it takes less than their waves."""

    def cluster(batch):
        return plan("H100", batch, hidden, precision, backward=backward)["candidates"][1]

    small, large = cluster(16), cluster(batch)
    assert (small["slices"], small["sequences"]) == (2, 8)
    assert (large["slices"], large["sequences"]) == (batch // 16, 16)
    waves = math.ceil(batch / 8 / (132 // small["blocks"]))
    assert 1.2 * large["microseconds"] < waves * small["microseconds"]
    assert large["blocks"] % 4 == 0


def test_an_h100_is_planned_like_an_h200():
    for precision in PRECISIONS:
        assert kernels("H100", precision) == kernels("H200", precision)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("precision", ["16 bits", "TF32", "float32"])
@pytest.mark.parametrize("gpu", GPUS)
def test_placements_fit(gpu, precision, backward):
    """Every unit and every sequence has its place, and every block has room."""
    facts = GPUS[gpu]
    for hidden in (1, 7, 64, 100, 200, 333, 512, 768, 1000, 1536, 2000):
        for batch in (1, 8, 9, 50, 128, 1000):
            for directions in (1, 2):
                options = {"backward": backward, "directions": directions}
                candidates = plan(gpu, batch, hidden, precision, **options)["candidates"]
                assert [c["kernel"] for c in candidates] == ["block", "cluster", "grid", "stepwise"]
                assert candidates[-1]["obstacle"] is None
                for candidate in candidates[:-1]:
                    if candidate["obstacle"]:
                        continue
                    assert candidate["blocks"] * candidate["units"] >= hidden
                    assert candidate["slices"] * candidate["sequences"] >= batch
                    assert (candidate["slices"] - 1) * candidate["sequences"] < batch
                    if candidate["kernel"] != "grid" or candidate["sequences"] % 8:
                        assert candidate["units"] * candidate["sequences"] <= 1024
                        assert candidate["sequences"] <= 32
                    assert 0 < candidate["shared_memory"] <= facts.shared_memory
                    if candidate["kernel"] == "block":
                        assert candidate["blocks"] == 1
                    if candidate["kernel"] == "cluster":
                        assert candidate["blocks"] in (2, 4, 8, 16)
                        assert candidate["blocks"] <= facts.largest_cluster
                    if candidate["kernel"] == "grid":
                        block_groups = directions * candidate["slices"]
                        assert block_groups * candidate["blocks"] <= facts.multiprocessors


def test_the_fastest_by_estimate_is_taken():
    for hidden in (64, 256, 1024, 4096):
        made = plan("H100", 16, hidden)
        able = [c for c in made["candidates"] if not c["obstacle"]]
        assert made["kernel"] == min(able, key=lambda c: c["microseconds"])["kernel"]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("precision", ["16 bits", "TF32", "float32"])
def test_a_narrow_input_of_a_short_sequence_is_multiplied_in_the_kernel(precision, directions):
    """The GEMM ahead costs its launches once a call: little for many steps."""
    call = {"precision": precision, "input": 10, "directions": directions}
    short, long = (plan("H100", 32, 64, length=T, **call) for T in (20, 10_000))
    assert (short["kernel"], long["kernel"]) == ("block", "cluster")
    block, cluster = (
        short["candidates"][k]["microseconds"] - long["candidates"][k]["microseconds"]
        for k in (0, 1)
    )
    assert cluster == pytest.approx(4 * directions * (1 / 20 - 1 / 10_000))
    assert block < cluster


def test_clusters_that_do_not_run_at_once_take_turns():
    """Clusters live inside a GPC: fewer fit than the multiprocessors have room for."""
    gpu = GPUS["H100"]
    some = plan(gpu, 16, 256, kernel_override="cluster")["candidates"][1]
    none = plan(gpu._replace(clusters=(0, 0, 0, 0)), 512, 256)["candidates"][1]
    fewer = plan(gpu._replace(clusters=(60, 30, 14, 2)), 512, 256)["candidates"][1]
    all_fit = plan(gpu, 512, 256)["candidates"][1]
    assert some["obstacle"] is None
    assert none["microseconds"] > fewer["microseconds"] > all_fit["microseconds"]


def test_what_a_driver_refused_is_not_chosen():
    refused = ("cluster", 8, "the driver refused its launch: x")
    gpu = GPUS["H100"]._replace(refusals=[refused])
    assert plan("H100", 16, 256)["candidates"][1]["blocks"] >= 8
    smaller = plan(gpu, 16, 256)["candidates"][1]
    assert smaller["obstacle"] is None
    assert smaller["blocks"] < 8
    made = plan(gpu._replace(refusals=[("cluster", 2, refused[2])]), 16, 256)
    assert made["candidates"][1]["obstacle"] == refused[2]
    assert made["kernel"] != "cluster"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("gpu", "precision", "batch", "hidden", "layers", "expected"),
    [
        ("H100", "16 bits", 16, 256, 2, 2),
        ("H100", "16 bits", 16, 512, 4, 4),
        ("H100", "16 bits", 16, 256, 7, 4),
        ("H100", "16 bits", 64, 256, 3, 2),  # 16 clusters of 8 blocks for each two
        ("H100", "16 bits", 64, 512, 2, 1),  # 8 slices: no two layers' clusters at once
        ("H100", "16 bits", 16, 768, 2, 1),
        ("H100", "16 bits", 16, 254, 2, 1),  # rows that are no words of 8 bytes
        ("H100", "TF32", 16, 256, 2, 2),
        ("H100", "TF32", 16, 512, 2, 1),
        ("H100", "float32", 16, 64, 2, 1),
        ("A100", "16 bits", 16, 64, 4, 4),
        ("A100", "16 bits", 16, 128, 4, 1),
    ],
)
def test_layers_at_once(gpu, precision, batch, hidden, layers, expected, backward):
    """As many as run at the same time, if a step of all takes less than one of each."""
    found = plan(gpu, batch, hidden, precision, layers=layers, backward=backward, length=1000)
    assert found["layers"] == expected
    assert (found["stack"] is not None) == (expected > 1)
    if expected == 1:
        return
    stack, alone = found["stack"], plan(gpu, batch, hidden, precision, backward=backward)
    assert stack["kernel"] == found["kernel"]
    assert stack["blocks"] * stack["units"] >= hidden
    assert stack["blocks"] * stack["slices"] * expected <= GPUS[gpu].multiprocessors
    assert stack["shared_memory"] <= GPUS[gpu].shared_memory
    least = min(one["microseconds"] for one in alone["candidates"] if not one["obstacle"])
    assert stack["microseconds"] < expected * least


def test_refused_launches_of_a_stack():
    """What was refused is not tried again, by a stack; its kernel still takes a layer."""
    refused = GPUS["H100"]._replace(refusals=[("cluster", 24, "refused")])
    assert plan(refused, 16, 256, layers=2)["layers"] == 1  # 32 blocks
    assert plan(refused, 16, 256)["kernel"] == "cluster"
    assert plan("H100", 16, 256, layers=2, kernel_override="grid")["layers"] == 1
    assert plan("H100", 16, 256, layers=2, kernel_override="cluster")["layers"] == 2


def test_explain_says_which_layers_go_at_once():
    module = FusedLSTM(100, 256, 3, dtype=torch.bfloat16)
    plans = fused_lstm.explain(module, batch=64, length=1000, device="H100")
    forward = [plan.forward.stack.layers if plan.forward.stack else None for plan in plans]
    backward = [plan.backward.stack.layers if plan.backward.stack else None for plan in plans]
    assert forward == [range(2), range(2), None]  # from the first layer on
    assert backward == [None, range(1, 3), range(1, 3)]  # from the last
    assert "layers 0 to 1 at once, each awaiting the one before: cluster" in str(plans)
    for other in (
        FusedLSTM(100, 256, 3, bidirectional=True, dtype=torch.bfloat16),
        FusedLSTM(100, 256, 3, proj_size=8, dtype=torch.bfloat16),
    ):
        plans = fused_lstm.explain(other, batch=16, length=1000, device="H100")
        assert not any(plan.forward.stack or plan.backward.stack for plan in plans)


def test_the_kernel_override_holds_where_it_can():
    assert plan("H100", 16, 256, kernel_override="grid")["kernel"] == "grid"
    assert plan("H100", 16, 256, kernel_override="stepwise")["kernel"] == "stepwise"
    assert plan("H100", 16, 256, kernel_override="block")["kernel"] == "cluster"


@pytest.mark.parametrize(
    ("options", "obstacle"),
    [
        ({"precision": "float64"}, "float64"),
        ({"projection": 32}, "proj_size"),
        ({"hidden": 10_000}, "8192"),
        ({"batch": 2**20 + 1}, "2^20"),
        ({"batch": 2**20, "length": 2**11}, "2^31"),
        ({"hidden": 0}, "hidden_size is 0"),
        ({"batch": 0}, "the batch is empty"),
        ({"gpu": Gpu(75, 40, 64 * 1024, 0)}, "compute capability"),
    ],
    ids=str,
)
def test_what_only_the_stepwise_kernel_takes(options, obstacle):
    made = plan(**{"gpu": "H100", "batch": 16, "hidden": 64} | options)
    assert made["kernel"] == "stepwise"
    assert all(obstacle in candidate["obstacle"] for candidate in made["candidates"][:-1])


def test_a_large_batch_and_wide_layers_are_stepwise():
    """No slice of the batch may wait for one that does not fit beside it."""
    made = plan("H100", 4096, 1024)
    assert made["kernel"] == "stepwise"
    assert "at once" in made["candidates"][2]["obstacle"]


# explain and use_kernel


def test_explain_says_which_and_why_not():
    module = FusedLSTM(10, 512, 2, dtype=torch.bfloat16)
    plans = fused_lstm.explain(module, 16, 100, device="A100")
    assert [plan.layer for plan in plans] == [0, 1]
    for plan in plans:
        assert (plan.forward.kernel, plan.backward.kernel) == ("grid", "grid")
        backward = plan.backward.candidates["grid"]
        assert (backward.blocks, backward.units, backward.slices) == (16, 32, 2)
        candidates = plan.forward.candidates
        assert list(candidates) == ["block", "cluster", "grid", "stepwise"]
        assert candidates["block"].obstacle == "the recurrent weights do not fit into one block"
        assert "the GPU has no clusters" in candidates["cluster"].obstacle
        assert candidates["grid"].obstacle is None
        assert candidates["grid"].microseconds < candidates["stepwise"].microseconds
        assert candidates["grid"].blocks * candidates["grid"].units >= 512


def test_plans_are_printed():
    module = FusedLSTM(10, 512, 2, dtype=torch.bfloat16)
    text = str(fused_lstm.explain(module, 16, 100, device="A100"))
    assert text.count("layer 0 forward: grid\n") == 1
    assert text.count("layer 1 backward: grid\n") == 1
    assert text.count("  block: cannot, the recurrent weights do not fit into one block\n") == 4
    assert re.search(r"\n  grid: \d+\.\d us a step, estimated; \d slices? of \d+ sequences, ", text)


def test_explain_on_the_cpu(monkeypatch):
    one = fused_lstm.explain(FusedLSTM(10, 64), 1, 1)
    assert re.fullmatch(
        r"layer 0 forward: direct\n"
        r"  GEMM with weight_ih: dot, weight_hh: dot; \d+\.\d us, estimated\n"
        r"layer 0 backward: \w+\n"
        r"  GEMM with weight_ih: \w+, weight_hh: \w+; \d+\.\d us, estimated",
        str(one),
    )
    assert one[0].forward.recurrent_gemm == "dot"
    assert one[0].forward.candidates == {}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    (plan,) = fused_lstm.explain(FusedLSTM(10, 128), 64, 100, device="cpu")
    assert plan.forward.kernel == plan.backward.kernel == "panels"
    assert plan.forward.batch_slices == 2
    assert str(plan).startswith("layer 0 forward: panels, 2 slices of the batch\n")


@pytest.mark.parametrize("device", ["A1000", "meta"])
def test_explain_refuses_other_devices(device):
    with pytest.raises(ValueError, match=f"device is .*{device}.*, must be"):
        fused_lstm.explain(FusedLSTM(10, 64), 1, 20, device=device)


def test_explain_refuses_empty_calls():
    with pytest.raises(ValueError, match="batch is 0, must be at least 1"):
        fused_lstm.explain(FusedLSTM(10, 64), 0, 20)


def test_use_kernel_holds_inside():
    module = FusedLSTM(10, 256, dtype=torch.bfloat16)

    def kernel():
        return fused_lstm.explain(module, 16, 100, device="H100")[0].forward.kernel

    with fused_lstm.use_kernel("grid"):
        assert kernel() == "grid"
        with fused_lstm.use_kernel(None):
            assert kernel() == "cluster"
        assert kernel() == "grid"
    assert kernel() == "cluster"


@pytest.mark.parametrize("name", ["cudnn", "panels", ""])
def test_use_kernel_refuses_other_names(name):
    with (
        pytest.raises(ValueError, match=f"name is '{name}', must be block"),
        fused_lstm.use_kernel(name),
    ):
        pass
