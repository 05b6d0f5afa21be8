"""How a layer runs on a CPU: the plan is a pure function of the problem and of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from fused_lstm import _C, FusedLSTM, explain

# Figures as FUSED_LSTM_MACHINE takes them. The first was measured by this project's own probes, the
# Zen 4's and the Xeon's caches and rates by others; the last two are of data sheets.
MACHINES = {
    "Zen 5": "vector_bytes=64 tile_rows=6 l1_bytes=49152 l2_bytes=1048576 l3_bytes=33554432 "
    "l1_gbps=440 l2_gbps=230 l3_gbps=118 memory_gbps=43 fma_gflops=264 bf16_gflops=487 "
    "frozen_bf16_gflops=265 int8_gops=1000 division_ns=0.6 pack_gbps=45",
    "Zen 4": "vector_bytes=64 tile_rows=6 l1_bytes=32768 l2_bytes=1048576 l3_bytes=33554432 "
    "l1_gbps=200 l2_gbps=114 l3_gbps=80 memory_gbps=15 fma_gflops=117 bf16_gflops=235 "
    "frozen_bf16_gflops=117 int8_gops=470 division_ns=2.7 pack_gbps=20",
    "AMX Xeon": "vector_bytes=64 tile_rows=6 l1_bytes=49152 l2_bytes=2097152 l3_bytes=110100480 "
    "l1_gbps=350 l2_gbps=100 l3_gbps=28 memory_gbps=12 fma_gflops=190 bf16_gflops=1500 "
    "frozen_bf16_gflops=190 int8_gops=3000 division_ns=5.3 pack_gbps=15",
    "AVX2 desktop": "vector_bytes=32 tile_rows=3 l1_bytes=32768 l2_bytes=262144 l3_bytes=8388608 "
    "l1_gbps=200 l2_gbps=80 l3_gbps=40 memory_gbps=15 fma_gflops=110 bf16_gflops=0 "
    "frozen_bf16_gflops=70 int8_gops=110 division_ns=2.5 pack_gbps=12",
    "aarch64 server": "vector_bytes=16 tile_rows=3 l1_bytes=65536 l2_bytes=1048576 "
    "l3_bytes=33554432 l1_gbps=80 l2_gbps=50 l3_gbps=30 memory_gbps=15 fma_gflops=40 "
    "bf16_gflops=0 frozen_bf16_gflops=25 int8_gops=160 division_ns=2 pack_gbps=8",
}
THREADS = " parallel_us=5 barrier_us=0.5"


def plan(machine, *, H=128, **shape):
    sizes = {"threads": 1, "concurrent_threads": True, "length": 50, "batch": 32}
    sizes |= {"input": H, "hidden": H, "projection": H, "directions": 1}
    return _C.cpu_plan(machine_figures=MACHINES[machine] + THREADS, **sizes | shape)


def gemms(machine, **shape):
    chosen = plan(machine, **shape)
    return chosen["input_gemm"], chosen["recurrent_gemm"]


every_machine = pytest.mark.parametrize("machine", MACHINES)


@every_machine
def test_one_step_of_one_sequence_reads_the_weights_as_they_are(machine):
    for H in (16, 64, 256, 1024):
        assert gemms(machine, length=1, batch=1, H=H) == ("dot", "dot")
        assert plan(machine, length=1, batch=1, H=H)["kernel"] == "direct"


@every_machine
def test_many_steps_of_a_batch_pack_the_weights_ahead(machine):
    for H in (64, 256, 512):
        assert gemms(machine, length=100, H=H) == ("packed_ahead", "packed_ahead")
        assert gemms(machine, length=100, H=H, backward=True)[1] == "packed_ahead"
        assert plan(machine, length=100, H=H)["kernel"] == "panels"


@every_machine
def test_a_weight_that_is_used_once_is_not_packed_ahead(machine):
    for batch in (1, 4, 16, 64):
        assert "packed_ahead" not in gemms(machine, length=1, batch=batch, H=256)
    for batch in (1, 4, 8):
        assert gemms(machine, length=1, batch=batch, backward=True)[1] in ("dot", "unpacked")


def test_only_weights_of_the_operands_type_are_read_as_they_are_stored():
    """16-bit weights are widened or interleaved while they are packed."""
    for element_bytes, operand_bytes in ((2, 4), (2, 2)):
        types = {"element_bytes": element_bytes, "operand_bytes": operand_bytes}
        for batch in (8, 16, 32, 64):
            found = gemms("Zen 5", length=1, batch=batch, H=256, **types)
            found += gemms("Zen 5", length=1, batch=batch, H=256, backward=True, **types)
            assert {"transposed", "unpacked"}.isdisjoint(found)
    assert "transposed" in gemms("Zen 5", length=1, batch=32, H=256)


def test_a_long_sequence_alone_packs_where_dot_products_cost_more():
    assert gemms("Zen 5", length=100, batch=1, H=128)[1] == "packed_ahead"
    assert gemms("Zen 5", length=2, batch=1, H=128)[1] == "dot"


def test_the_level_that_holds_the_weights_counts():
    """A step of one sequence takes longer per weight once they leave a cache."""
    costs = [plan("Zen 4", length=100, batch=1, H=H)["microseconds"] / H**2 for H in (200, 512)]
    assert costs[1] > 1.1 * costs[0]
    beyond = plan("Zen 4", length=100, batch=1, H=2048)["microseconds"] / 2048**2
    assert beyond > 2 * costs[1]


@every_machine
def test_time_grows_with_work(machine):
    def microseconds(**shape):
        return plan(machine, **shape)["microseconds"]

    for backward in (False, True):
        for H in (16, 100, 512):
            of_batch = [microseconds(batch=b, H=H, backward=backward) for b in (1, 8, 64, 256)]
            of_steps = [microseconds(length=t, H=H, backward=backward) for t in (1, 10, 100)]
            assert of_batch == sorted(of_batch)
            assert of_steps == sorted(of_steps)


@every_machine
@pytest.mark.parametrize("batch", [1, 3, 32, 96, 200])
@pytest.mark.parametrize("length", [1, 2, 7, 100, 1001])
def test_chunks_of_steps(machine, batch, length):
    """A chunk has enough rows of input to share one reading of the weight, no more than a cache
    holds, and nearly the same number of steps as the others."""
    steps = plan(machine, batch=batch, length=length)["chunk"]
    chunks = -(-length // steps)
    assert chunks * steps - length < chunks
    assert steps == 1 or steps * batch < 2 * 96 + batch
    assert steps == length or (steps + 1) * batch > 96


@every_machine
def test_small_work_stays_on_one_thread(machine):
    assert not plan(machine, threads=2, batch=1, length=2, H=8)["parallel"]
    assert plan(machine, threads=2, length=100, H=256)["parallel"]
    assert not plan(machine, threads=1, length=100, H=256)["parallel"]


def test_a_dear_start_keeps_a_call_on_one_thread():
    def parallel(microseconds):
        figures = f"{MACHINES['Zen 5']} barrier_us=0.5 parallel_us={microseconds}"
        sizes = {"threads": 2, "concurrent_threads": True, "length": 20, "batch": 32}
        sizes |= {"input": 64, "hidden": 64, "projection": 64, "directions": 1}
        return _C.cpu_plan(machine_figures=figures, **sizes)["parallel"]

    assert parallel(2)
    assert not parallel(500)


def slices(machine, **shape):
    chosen = plan(machine, **{"threads": 2} | shape)
    return chosen["batch_slices"], chosen["unit_slices"]


@every_machine
def test_threads_divide_a_batch_without_barriers_where_they_can(machine):
    assert slices(machine, H=64) == (2, 1)
    assert slices(machine, directions=2) == (1, 1)
    assert slices(machine, threads=1) == (1, 1)
    assert slices(machine, H=512, threads=64, batch=3, concurrent_threads=False) == (3, 1)


@every_machine
def test_threads_divide_the_units_of_few_sequences(machine):
    assert slices(machine, batch=1, H=512) == (1, 2)
    assert slices(machine, batch=1, H=512, threads=64)[1] > 2
    assert slices(machine, batch=1, H=512, concurrent_threads=False) == (1, 1)
    # A barrier that costs more than half a step
    assert slices(machine, batch=1, H=32, length=20) == (1, 1)


def test_explain_shows_the_strategies_of_both_passes():
    layer = FusedLSTM(64, 64, device="meta")
    plans = explain(layer, batch=1, length=1, device="cpu")
    assert plans[0].forward.recurrent_gemm == "dot"
    assert plans[0].backward.recurrent_gemm in ("dot", "unpacked")


# The machine's figures


def test_measured_figures():
    figures = _C.machine()
    assert figures["cache_bytes"] == [figures[f"l{level}_bytes"] for level in (1, 2, 3)]
    rates = figures["read_gbps"]
    assert rates == sorted(rates, reverse=True)
    assert all(rate > 0.5 for rate in rates)
    assert figures["fma_gflops"] > 0.5
    has_operands = _C.cpu_instruction_set() in ("avx512bf16", "amx")
    assert (figures["bf16_gflops"] > 0) == has_operands


def printed(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


CALL = "from fused_lstm import _C; m = _C.machine(); print(m['fma_gflops'], m['barrier_us'])"


def test_figures_can_be_given(tmp_path):
    given = printed(CALL, FUSED_LSTM_MACHINE="fma_gflops=12.5,barrier_us=7")
    assert given.stdout.split() == ["12.5", "7.0"]
    file = tmp_path / "machine.txt"
    file.write_text("fma_gflops=3\nbarrier_us=9\n")
    assert printed(CALL, FUSED_LSTM_MACHINE=str(file)).stdout.split() == ["3.0", "9.0"]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("fma_gflops=fast", "has 'fma_gflops=fast', must be a name, =, and a number of 0 or more"),
        ("flops=3", "has 'flops', must be one of vector_bytes="),
        ("/no/such/file", "is '/no/such/file', must be a file, or name=number for each figure"),
    ],
)
def test_wrong_figures(given, error):
    assert f"FUSED_LSTM_MACHINE {error}" in printed(CALL, FUSED_LSTM_MACHINE=given).stderr


def test_a_layer_runs_with_any_figures():
    """A plan may be slow, never wrong: the same layer under the figures of every machine."""
    code = """
        import torch
        from fused_lstm import FusedLSTM
        torch.manual_seed(0)
        for T, B in ((1, 1), (1, 20), (3, 5), (40, 1), (40, 33)):
            module = FusedLSTM(11, 70, bidirectional=True)
            x = torch.randn(T, B, 11, requires_grad=True)
            expected = torch.nn.LSTM(11, 70, bidirectional=True)
            expected.load_state_dict(module.state_dict())
            found, right = (
                [output, *torch.autograd.grad(output.square().sum(), [x, *lstm.parameters()])]
                for lstm in (module, expected)
                for output in lstm(x)[:1]
            )
            torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)
        print("right")
    """
    # The vectors are those of the kernels that run. Two more: packing is never worth it, or free.
    given = [" ".join(figures.split()[2:]) for figures in MACHINES.values()]
    for figures in [*given, "pack_gbps=0.001", "pack_gbps=1e6 l1_gbps=1e6 memory_gbps=1e6"]:
        done = printed(textwrap.dedent(code), FUSED_LSTM_MACHINE=figures + THREADS)
        assert done.stdout.strip() == "right", done.stderr


# Frozen layers

FORMATS = {"float32": 4, "bfloat16": 2, "int8": 1}
every_format = pytest.mark.parametrize("bytes", FORMATS.values(), ids=FORMATS)


@every_machine
@every_format
@pytest.mark.parametrize("length", [1, 100])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_a_frozen_layer_multiplies_by_its_panels_alone(machine, bytes, length, batch):
    frozen = {"frozen": True, "operand_bytes": bytes, "element_bytes": bytes}
    assert gemms(machine, length=length, batch=batch, **frozen) == ("packed_ahead",) * 2


@every_machine
@every_format
def test_threads_share_what_is_worth_it_of_a_frozen_layer(machine, bytes):
    frozen = {"frozen": True, "operand_bytes": bytes, "element_bytes": bytes, "threads": 2}
    assert not plan(machine, length=1, batch=1, H=32, **frozen)["parallel"]
    large = plan(machine, length=100, batch=64, H=512, **frozen)
    assert large["parallel"]
    assert large["batch_slices"] * large["unit_slices"] == 2


@every_machine
def test_smaller_weights_of_a_frozen_layer_never_cost_more(machine):
    """Of one sequence of a large layer, which is a matter of reading."""
    times = [
        plan(machine, length=50, batch=1, H=1024, frozen=True, operand_bytes=b, element_bytes=b)
        for b in FORMATS.values()
    ]
    micros = [plan["microseconds"] for plan in times]
    assert micros == sorted(micros, reverse=True)
