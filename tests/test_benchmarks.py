"""The benchmarks' own arithmetic: cases, ratios, results files, the README's table."""

import functools
import importlib.util
import itertools
import json
import sys
import types
from dataclasses import fields, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"

if not FOLDER.is_dir():  # a source distribution leaves it out
    pytest.skip("the benchmarks are not here", allow_module_level=True)

# By its place, for the root on sys.path would let the source tree shadow an installed fused_lstm.
_spec = importlib.util.spec_from_file_location(
    "benchmarks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
)
sys.modules["benchmarks"] = importlib.util.module_from_spec(_spec)

from torch.utils.benchmark import Measurement, TaskSpec  # noqa: E402

from benchmarks import limits, onnx_lstm, plot, report, results, steps, workloads  # noqa: E402
from benchmarks.cases import IN_REGIMES, README_CASES, Case, cases  # noqa: E402
from benchmarks.regimes import REGIMES  # noqa: E402
from benchmarks.timing import MAX_ROUNDS, MIN_ROUNDS, Sampler, alternate  # noqa: E402
from fused_lstm import FusedLSTM  # noqa: E402

FACTS = {
    "device": "A CPU (R) X-1",
    "cpu": "A CPU (R) X-1",
    "cores": 2,
    "torch": "2.13.0",
    "instruction_set": "avx2",
    "commit": "0123456789abcdef",
    "dirty": False,
    "date": "2026-01-02",
}


def layer(hidden=64, group="grid", **others):
    return Case(group, "layer", 32, 20, hidden, hidden, **others)


def measurement(us, spread=0.0):
    """Of samples whose quartiles lie ``spread`` of the median apart."""
    low, high = us * (1 - spread / 2), us * (1 + spread / 2)
    return Measurement(1, [1e-6 * t for t in (low, low, us, high, high)], TaskSpec("", ""))


def record(ratio, case=None, spread=0.0, limit=None, **others):
    """A record in which FusedLSTM takes 100 us, nn.LSTM and the others their ratio times that."""
    measured = {"nn": measurement(100 * ratio, spread)}
    measured |= {name: measurement(100 * times) for name, times in others.items()}
    return results.record(case or layer(), {**measured, "fused": measurement(100)}, limit)


class TestCases:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_hold_what_is_promised(self, device):
        found = cases(device)
        assert len({c.name for c in found}) == len(found)
        grid = {
            (c.batch, c.steps, c.hidden_size, c.training, c.threads)
            for c in found
            if c.group == "grid" and c.dtype == "float32"
        }
        batch, steps = ({1, 8, 32, 128}, {1, 20, 100})
        hidden, modes = {64, 128, 256, 512, 1024}, {True, False}
        if device == "cuda":
            batch, steps = ({1, 8, 16, 64, 128}, {32, 256, 1024})
            hidden |= {768, 1536}
        threads = {1, 2} if device == "cpu" else {None}
        assert grid == set(itertools.product(batch, steps, hidden, modes, threads))
        for model in ("classifier", "predictor", "seq2seq"):
            of_model = [c for c in found if c.model == model]
            assert {(c.batch, c.steps, c.input_size, c.hidden_size) for c in of_model} == {
                (32, 20, 10, 64)
            }
            assert {c.training for c in of_model} == {True, False}
        assert any(c.packed for c in found)
        assert any(c.num_layers == 2 for c in found)
        assert any(c.bidirectional and c.model == "layer" for c in found)
        assert any(c.model == "cell" and (c.batch, c.hidden_size) == (1, 64) for c in found)
        assert {100, 200, 650} <= {c.hidden_size for c in found}
        dtypes = {"float32", "bfloat16"} | ({"float16"} if device == "cuda" else set())
        assert {c.dtype for c in found} == dtypes

    def test_quick_ones_are_a_part(self):
        quick, full = cases("cpu", quick=True), cases("cpu")
        assert set(quick) < set(full)
        assert {c.group for c in quick} >= {"grid", "cell", "model-classifier"}

    def test_threads(self):
        assert {c.threads for c in cases("cpu", threads=(3,))} == {3}
        assert {c.threads for c in cases("cuda", threads=(3,))} == {None}

    def test_packed_lengths_spread_one_to_four(self):
        lengths = Case("packed", "layer", 8, 100, 4, 4, packed=True).lengths
        assert lengths == sorted(lengths, reverse=True)
        assert (lengths[0], lengths[-1], len(set(lengths))) == (100, 25, 8)

    def test_flops(self):
        # B T = 6 rows, 4H = 20 gates, D = 3 and H = 5 features, a product and a sum each
        small = {"batch": 2, "steps": 3, "input_size": 3, "hidden_size": 5}
        from_input, recurrent = 2 * 6 * 20 * 3, 2 * 6 * 20 * 5
        forward = Case("", "layer", **small)
        assert forward.flops == from_input + recurrent
        assert Case("", "layer", **small, training=True).flops == 3 * forward.flops
        # the second layer of two directions reads 2H features
        both = Case("", "layer", **small, num_layers=2, bidirectional=True)
        assert both.flops == 2 * (from_input + recurrent) + 2 * (2 * recurrent + recurrent)
        # a task model's input needs no gradient
        classifier = Case("", "classifier", **small, training=True)
        assert classifier.flops == 2 * from_input + 3 * recurrent
        assert Case("", "seq2seq", **small).flops == 2 * forward.flops

    def test_limits(self):
        assert layer().limit == "FMA peak"
        assert layer(dtype="bfloat16").limit == "bf16 peak"
        one = replace(layer(), batch=1)
        assert one.limit == "reading"
        assert replace(one, cold=True).limit is None
        assert layer(device="cuda").limit is None

    def test_weights_read(self):
        hh, ih = 4 * 5 * 5, 4 * 5 * 3  # elements
        long = Case("", "layer", batch=1, steps=7, input_size=3, hidden_size=5)
        assert (long.weight_bytes, long.resident_bytes) == (4 * (7 * hh + ih), 4 * hh)
        step = replace(long, steps=1)
        assert (step.weight_bytes, step.resident_bytes) == (4 * (hh + ih), 4 * (hh + ih))
        assert replace(long, training=True).weight_bytes == 2 * long.weight_bytes
        assert replace(long, dtype="bfloat16").weight_bytes == long.weight_bytes / 2
        # two layers of two directions: the second reads 2H features
        deep = replace(long, num_layers=2, bidirectional=True)
        assert deep.weight_bytes == 4 * (2 * (7 * hh + ih) + 2 * (7 * hh + 2 * hh))
        assert deep.resident_bytes == long.resident_bytes

    def test_odd_set(self):
        odd = [c for c in cases("cpu") if c.group == "odd-set"]
        assert len(odd) == 13 * 2 * 2  # modes, threads
        assert {(c.batch, c.hidden_size) for c in odd if c.dtype == "bfloat16"} == {(32, 256)}
        assert not any(c.group == "odd-set" for c in cases("cuda"))

    def test_cold_is_about_one_step_forward(self):
        cold = [c for c in cases("cpu") if c.cold]
        assert {(c.batch, c.steps, c.dtype, c.mode) for c in cold} == {
            (1, 1, "float32", "inference")
        }
        assert all("-cold-" in c.name for c in cold)

    def test_those_for_the_table_of_regimes(self):
        chosen = [c for c in cases("cpu") if c.name.startswith(IN_REGIMES)]
        assert 60 <= len(chosen) <= 90
        assert {n for n in README_CASES if n.endswith("1t")} < {c.name for c in chosen}
        for mode, count, regime in itertools.product(("inference", "training"), (1, 2), REGIMES):
            of_regime = [c for c in chosen if c.mode == mode and regime.has(c)]
            if getattr(regime, mode):
                assert any(c.threads == count for c in of_regime), (regime.name, mode)
        planned = [c.name for c in cases("cpu") + cases("cuda")]
        for start in IN_REGIMES:
            assert any(name.startswith(start) for name in planned), start

    def test_recompute_is_about_training(self):
        found = [c for c in cases("cpu") if c.recompute]
        assert {(c.group, c.mode) for c in found} == {("recompute", "training")}
        assert {c.dtype for c in found} == {"float32", "bfloat16"}
        assert all("-recompute-" in c.name for c in found)

    def test_onnxruntime_is_asked_for_layers_forward_in_float32(self):
        asked = [c for c in cases("cpu") if c.in_onnx]
        plain = {"grid", "odd-sizes", "bidirectional", "two-layers"}
        assert {c.group for c in asked} == plain | {"odd-set", "cold"}
        assert {(c.dtype, c.mode) for c in asked} == {("float32", "inference")}
        assert not any(c.in_onnx for c in cases("cuda"))


class TestTiming:
    def test_all_alternate(self):
        order = []
        measured = alternate({n: functools.partial(order.append, n) for n in "ABC"}, "cpu", 0.05)
        rounds = len(measured["A"].times)
        assert MIN_ROUNDS <= rounds <= MAX_ROUNDS
        in_turn = [name for name, _ in itertools.groupby(order)]
        assert in_turn == ["A", "B", "C"] * (rounds + 1)  # the calibration is the first
        assert {name: len(m.times) for name, m in measured.items()} == dict.fromkeys("ABC", rounds)

    @pytest.mark.parametrize(
        ("seconds", "warming"), [(2**-16, 656), (2**-8, 3), (2**-4, 1), (2**-3, 0)]
    )
    def test_a_sample_comes_after_calls_of_the_same_function(self, monkeypatch, seconds, warming):
        calls = pretend_a_call_takes(monkeypatch, seconds)
        sampler = Sampler(calls.run, "cpu")
        takes = sampler.calibrate(budget=1.0)
        calls.count = 0
        sampler.sample()
        assert sampler.samples == [pytest.approx(seconds)]
        assert calls.count - sampler.calls == warming
        assert calls.count * seconds == pytest.approx(takes, rel=0.2)

    def test_cold_calls_come_after_a_flush(self, monkeypatch):
        order = []
        calls = {n: functools.partial(order.append, n) for n in "AB"}
        measured = alternate(calls, "cpu", 0.01, flush=lambda: order.append("flush"))
        rounds = len(measured["A"].times)
        assert order == ["flush", "A", "flush", "B"] * (rounds + 1)
        counted = pretend_a_call_takes(monkeypatch, 1e-5)
        sampler = Sampler(counted.run, "cpu", flush=lambda: (counted.run(), counted.run()))
        assert sampler.calibrate(budget=1.0) == pytest.approx(3e-5)
        sampler.sample()
        assert sampler.samples == [pytest.approx(1e-5)]  # without the flush

    def test_over_budget_gets_the_fewest_rounds(self, monkeypatch):
        calls = pretend_a_call_takes(monkeypatch, seconds=7.0)
        measured = alternate({"nn": calls.run, "fused": calls.run}, "cpu", budget=1.0)
        assert [len(m.times) for m in measured.values()] == [MIN_ROUNDS, MIN_ROUNDS]
        assert calls.count == 2 * (1 + MIN_ROUNDS)  # one call each to warm up

    def test_a_short_call_is_repeated_in_a_sample(self, monkeypatch):
        calls = pretend_a_call_takes(monkeypatch, seconds=1e-5)
        sampler = Sampler(calls.run, "cpu")
        sampler.calibrate(budget=1.0)
        assert sampler.calls == 256  # the first power of two to fill 2 ms
        sampler.sample()
        assert sampler.samples == [pytest.approx(1e-5)]


class TestImplementations:
    @pytest.mark.parametrize(
        "case",
        [
            layer(8),
            layer(8, training=True),
            layer(8, packed=True),
            Case("", "cell", 2, 1, 3, 5),
            Case("", "predictor", 2, 3, 4, 5, bidirectional=True, training=True),
        ],
        ids=lambda case: case.name,
    )
    def test_agree(self, case):
        calls = workloads.implementations(case)
        assert {"nn", "fused"} <= set(calls)
        workloads.check_agreement(case, calls)

    def test_that_differ_are_refused(self):
        calls = workloads.implementations(layer(8))
        wrong = {**calls, "fused": lambda: tuple(1.1 * t for t in calls["nn"]())}
        with pytest.raises(AssertionError, match=r"of fused is 1\.00e-01 away"):
            workloads.check_agreement(layer(8), wrong)

    @pytest.mark.parametrize("layers", [1, 2])
    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_onnxruntime_agrees(self, layers, bidirectional):
        if onnx_lstm.onnxruntime is None:
            pytest.skip("onnx and onnxruntime are not here")
        case = replace(layer(8), input_size=5, num_layers=layers, bidirectional=bidirectional)
        calls = workloads.implementations(case)
        assert list(calls) == ["nn", "onnxruntime", "fused"]
        workloads.check_agreement(case, calls)

    def test_recompute_beside_itself_without(self):
        case = layer(8, training=True, recompute=True)
        calls = workloads.implementations(case)
        assert list(calls) == ["nn", "kept", "fused"]
        workloads.check_agreement(case, calls)
        saved = {name: saved_elements(calls[name]) for name in calls}
        assert saved["fused"] < saved["kept"]

    def test_packed_beside_as_many_rows_padded(self):
        case = layer(8, packed=True)
        calls = workloads.implementations(case)
        assert list(calls) == ["nn", "padded", "fused"]
        steps, batch, _ = calls["padded"]()[0].shape
        assert batch == case.batch
        assert abs(steps * batch - sum(case.lengths)) <= batch / 2

    def test_without_onnxruntime(self, monkeypatch):
        monkeypatch.setattr(onnx_lstm, "onnxruntime", None)
        assert list(workloads.implementations(layer(8))) == ["nn", "fused"]
        assert results.facts("cpu")["onnxruntime"] is None


def saved_elements(call):
    """How many elements a call keeps for its backward."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        call()
    return sum(sizes)


class TestLimits:
    MACHINE = types.MappingProxyType(
        {
            "fma_gflops": 100.0,
            "bf16_gflops": 200.0,
            "read_gbps": [400.0, 300.0, 200.0, 100.0],
            "cache_bytes": [2**15, 2**20, 2**25],
        }
    )

    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch):
        monkeypatch.setattr(limits._C, "machine", lambda: self.MACHINE, raising=False)

    def test_peak_of_the_dtype_on_all_threads(self, monkeypatch):
        assert limits.limit_of(layer()) == 100
        assert limits.limit_of(layer(threads=2)) == 200
        bf16 = layer(dtype="bfloat16", threads=2)
        assert limits.limit_of(bf16) == 400
        monkeypatch.setattr(limits._C, "machine", lambda: {**self.MACHINE, "bf16_gflops": 0.0})
        assert limits.limit_of(bf16) is None
        assert limits.limit_of(layer(device="cuda")) is None

    @pytest.mark.parametrize(
        ("hidden", "threads", "expected"),
        [(32, 1, 400), (64, 1, 300), (60, 2, 2 * 400), (512, 1, 200), (2048, 2, 2 * 100)],
    )
    def test_reading_of_the_level_that_holds_a_threads_part(self, hidden, threads, expected):
        one = replace(layer(hidden, threads=threads), batch=1)
        assert limits.limit_of(one) == expected

    def test_the_flush_writes_more_than_the_largest_cache(self):
        flush = limits.cache_flush()
        before = flush().clone()
        assert before.nbytes == 2 * 2**25
        assert (flush() != before).all()


def test_limits_of_this_machine():
    for case in (layer(), replace(layer(), batch=1), layer(dtype="bfloat16")):
        limit = limits.limit_of(case)
        assert limit > 1 if case.dtype == "float32" else limit is None or limit > 1
    assert limits.cache_flush()().nbytes > 2**20


def pretend_a_call_takes(monkeypatch, seconds):
    class Calls:
        count = 0

        def run(self):
            self.count += 1

    calls = Calls()
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: calls.count * seconds)
    return calls


class TestReport:
    def test_summary(self):
        records = [record(0.5), record(2.0), record(4.0, spread=0.3)]
        assert report.summary(records) == "1.59x (min 0.50x, 1 of 3 under 1) ~"
        assert report.summary([record(4.0), record(0.25)]).startswith("1.00x")
        assert report.summary([record(2.0)]) == "2.00x"

    def test_record(self):
        kept = record(2.5, layer(training=True))
        assert kept["ratio"] == 2.5
        assert kept["us"] == {"nn": [250, 250, 250], "fused": [100, 100, 100]}
        assert kept["rounds"] == 5
        assert kept["us_per_step"]["fused"] == 5
        assert kept["gflops"]["fused"] == pytest.approx(layer(training=True).flops / 1e5, rel=1e-3)
        assert "limit" not in kept
        sizes = {field.name: kept[field.name] for field in fields(Case)}
        assert Case(**json.loads(json.dumps(sizes))) == layer(training=True)

    @pytest.mark.parametrize(("spread", "wide"), [(0.0, False), (0.09, False), (0.11, True)])
    def test_record_of_a_wide_spread(self, spread, wide):
        kept = record(2.0, spread=spread)
        low, median, high = kept["us"]["nn"]
        assert (high - low) / median == pytest.approx(spread, abs=1e-3)
        assert kept["wide"] is wide

    def test_record_beside_its_limit(self):
        case = layer(256)
        kept = record(2.0, case, limit=2 * case.flops / 100 / 1e3)  # GFLOP/s
        assert (kept["limit"]["kind"], kept["limit"]["share"]) == ("FMA peak", 0.5)
        assert kept["limit"]["reached"] == kept["gflops"]["fused"]
        one = replace(case, batch=1)
        kept = record(2.0, one, limit=4 * one.weight_bytes / 100 / 1e3)  # GB/s
        assert (kept["limit"]["kind"], kept["limit"]["share"]) == ("reading", 0.25)

    def test_a_table_for_each_dtype_mode_and_thread_count(self):
        others = [layer(training=True), layer(threads=2), layer(dtype="bfloat16")]
        text = report.text(
            [{"facts": FACTS, "cases": [record(2.0), *(record(3, c) for c in others)]}]
        )
        titles = [line for line in text.splitlines() if line.startswith("A CPU (R) X-1, ")][1:]
        assert [title.removeprefix("A CPU (R) X-1, ") for title in titles] == [
            "float32, forward, 1 thread",
            "float32, forward, 2 threads",
            "float32, forward + backward, 1 thread",
            "bfloat16, forward, 1 thread",
        ]

    def test_table(self):
        records = [
            record(2.0, layer(256), onnxruntime=1.5, limit=layer(256).flops / 100 / 1e3 / 0.9),
            record(2.0, layer(128), onnxruntime=0.5),
        ]
        lines = table(records)
        assert lines[0] == "||nn.LSTM's time / FusedLSTM's|onnxruntime's time / FusedLSTM's|"
        cells = "2.00x (min 2.00x), 90 % of FMA peak|0.87x (min 0.50x, 1 of 2 under 1)|"
        assert lines[2:] == [f"|one layer|{cells}", f"|one layer, B 32|{cells}"]
        assert "90 % of FMA peak, 1.50x onnxruntime" in report.case_line(records[0])
        assert "Slower than onnxruntime in 1 of 2 cases" in report.smallest_gains(records)
        reading = record(2.0, replace(layer(256), batch=1), limit=1.0)
        assert "peak" not in table([*records, reading])[2]  # two kinds

    def test_table_has_the_price_of_recompute(self):
        case = layer(training=True, group="recompute", recompute=True)
        records = [record(1.5, case, kept=0.8), record(2.0, layer(training=True))]
        lines = table(records)
        assert lines[0].endswith("|recompute=False's time / FusedLSTM's|")
        assert lines[-1] == "|recompute|1.50x|0.80x|"
        assert "0.80x recompute=False" in report.case_line(records[0])

    def test_task_models_first(self):
        classifier = record(2.0, Case("model-classifier", "classifier", 32, 20, 10, 64))
        assert table([record(2.0, layer(group="cell")), classifier])[2].startswith(
            "|classifier (B32"
        )

    def test_names_every_loss_worst_first(self):
        records = [record(r, layer(hidden=8 * i)) for i, r in enumerate([3, 0.9, 0.5, 2], start=1)]
        lines = report.smallest_gains(records).splitlines()
        assert lines[0] == "Slower than nn.LSTM in 2 of 4 cases."
        assert ["H24" in lines[3], "H16" in lines[4]] == [True, True]

    def test_every_case_in_full(self, tmp_path, capsys):
        file = tmp_path / "a.json"
        results.save(file, FACTS, [record(2.0, layer(hidden=h)) for h in range(1, 21)])
        for arguments, lines in [([], 10), (["--full"], 30)]:
            report.main([str(file), *arguments])
            assert capsys.readouterr().out.count("us a step") == lines

    def test_peak_memory(self):
        peak = {"peak_bytes": {"nn": 2000, "fused": 1000}}
        assert "peak 2,000 -> 1,000 bytes" in report.case_line(record(2.0) | peak)


def table(records):
    """The lines of the report's first table, without the spaces around cells."""
    panel, *_ = report.panels([{"facts": FACTS, "cases": records}]).values()
    rows = ([cell.strip() for cell in line.split("|")] for line in report.table(panel).splitlines())
    return ["|".join(row) for row in rows]


class TestRegimes:
    """On a run of the cases for the table in which each reaches what its arguments say."""

    def lines(self, *changed, share=0.9, us=None):
        """The table's rows and the misses; ``changed`` replaces records of the same names."""
        records = {}
        for case in (c for c in cases("cpu") if c.name.startswith(IN_REGIMES)):
            work = case.weight_bytes if case.limit == "reading" else case.flops
            limit = work / 1e5 / share if case.limit else None
            others = (
                {"onnxruntime": 2.0} if case.in_onnx else {"padded": 1.0} if case.packed else {}
            )
            records[case.name] = record(6.0, case, limit=limit, **others)
        records |= {r["name"]: r for r in changed}
        text = report.regimes({"facts": FACTS, "cases": list(records.values())})
        found, _, misses = text.partition("\nMissed (!), with the worst case:\n")
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()]
        return {row[0]: row[1:] for row in rows}, misses.splitlines()

    def test_each_is_a_row_of_each_mode_in_which_it_asks(self):
        rows, misses = self.lines()
        asking = [(r, mode) for r in REGIMES for mode in report.MODES if getattr(r, mode)]
        assert len(rows) == 2 + len(asking)
        # A record takes 100 us, which is too long for one step, hot or cold, with each thread count
        assert sum("asked 10 us" in line or "asked 25 us" in line for line in misses) == 4
        assert misses[4] == "The least ratio:"

    def test_reached_beside_what_is_asked(self):
        name = "odd-set-B24-T75-D100-H200-float32-training-2t"
        case = next(c for c in cases("cpu") if c.name == name)
        slow = record(1.02, case, limit=case.flops / 1e5 / 0.76)
        rows, misses = self.lines(slow)
        row = rows["float32, B >= 24, H >= 200, forward + backward"]
        at_most = f"{slow['limit']['at_most']:g}"
        assert row[0].startswith("75 %: 90 % of ")
        assert row[0].endswith(f", 76 % of {at_most}")
        # Four more cases at 6x
        mean = (1.02 * 6.0**4) ** (1 / 5)
        assert row[1] == f"1.05x: 6.00x, 1.02x !; mean 1.15x: 6.00x, {mean:.2f}x"
        assert rows["float32, B >= 24, H > 200, forward + backward"][0].count("90 %") == 2
        title = "float32, B >= 24, H >= 200, forward + backward"
        assert f"{title}: 1.02x nn.LSTM, asked 1.05x: {name}" in misses
        assert "1.02x" in misses[-1]
        assert name in misses[-1]

    def test_packed_beside_padded(self):
        rows, _ = self.lines()
        assert rows["packed, lengths 1:4, forward"][:2] == [
            "padded 1.00x: 1.00x, 1.00x",
            "1.50x: 6.00x, 6.00x",
        ]

    def test_a_file_from_before_the_peaks(self):
        """Its rates of plain GEMMs are no peak, and it has no cold cases and no padded input."""
        old = record(2.0, layer(256), limit=1.0)
        del old["cold"]
        old |= {"name": README_CASES[4], "mode": "training"}
        old["limit"]["kind"] = "GEMM"
        text = report.text([{"facts": FACTS, "cases": [old]}])
        assert "of GEMM" in text
        assert "B >= 24" not in text
        assert "any shape, forward + backward" in text

    def test_none(self):
        assert report.regimes({"facts": FACTS, "cases": [record(2.0, layer(8))]}) == ""


class TestPlot:
    @pytest.fixture(autouse=True)
    def _matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_draws_every_case_once(self, tmp_path):
        records = [record(0.2 * h, layer(h)) for h in range(1, 21)]
        results.save(tmp_path / "a.json", FACTS, records)
        report.main([str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg")])
        panel = ElementTree.parse(tmp_path / "a.svg").find(".//{*}g[@id='axes_1']")
        styles = [use.get("style", "") for use in panel.findall(".//{*}use")]
        assert sum(plot.COLOURS[0] in style for style in styles) == len(records)

    def test_is_the_same_again(self, tmp_path):
        panels = report.panels([{"facts": FACTS, "cases": [record(2.0)]}])
        for name in ("a.svg", "b.svg"):
            plot.save(panels, tmp_path / name)
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()

    def test_nothing_to_plot(self, tmp_path):
        with pytest.raises(ValueError, match="no case"):
            plot.save({}, tmp_path / "a.svg")


class TestResultsFile:
    def test_a_case_measured_again_moves_to_the_new_run(self, tmp_path):
        file = tmp_path / "new" / "a.json"
        one, two = layer(8), layer(16)
        later = {**FACTS, "commit": "fedcba"}
        results.save(file, FACTS, [record(1.0, one), record(2.0, two)])
        results.save(file, later, [record(3.0, one)])
        results.save(file, later, [record(3.5, one), record(4.0, layer(24))])
        found = {
            (run["facts"]["commit"], c["hidden_size"], c["ratio"])
            for run in results.load(file)
            for c in run["cases"]
        }
        assert found == {(FACTS["commit"], 16, 2.0), ("fedcba", 8, 3.5), ("fedcba", 24, 4.0)}
        assert [f.name for f in file.parent.iterdir()] == ["a.json"]

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_another_file_is_refused(self, tmp_path, content):
        file = tmp_path / "b.json"
        file.write_text(content)
        with pytest.raises(ValueError, match=r"b\.json is not a results file"):
            results.load(file)
        with pytest.raises(SystemExit, match=r"b\.json is not a results file"):
            report.main([str(file)])

    def test_is_named_after_the_machine(self):
        assert results.machine_name(FACTS) == "a-cpu-x-1-2-cores"
        assert results.machine_name({**FACTS, "device": "NVIDIA H100"}) == "nvidia-h100"


class TestReadme:
    @pytest.fixture
    def measured(self, tmp_path):
        file = tmp_path / "a.json"
        shown = next(c for c in cases("cpu") if c.name == README_CASES[1])
        results.save(file, FACTS, [record(2.5, shown), record(0.5, layer(8))])
        return str(file)

    def test_is_written_between_the_markers(self, tmp_path, measured):
        readme = tmp_path / "README.md"
        readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        with pytest.raises(SystemExit, match="is stale"):
            report.main([measured, "--readme", str(readme), "--check"])
        assert "old" in readme.read_text()
        report.main([measured, "--readme", str(readme)])
        text = readme.read_text()
        assert text.startswith(f"before\n{report.BEGIN}\n")
        assert text.endswith(f"{report.END}\nafter\n")
        assert "| one layer, B 1, T 1, H 64, float32, forward | 250 | 100 | 2.50x |" in text
        assert "Faster in 1 of 2 cases" in text
        assert "old" not in text
        report.main([measured, "--readme", str(readme), "--check"])

    def test_is_of_the_newest_run(self, tmp_path, measured):
        later = {**FACTS, "device": "B", "cpu": "B", "date": "2026-01-03"}
        shown = next(c for c in cases("cpu") if c.name == README_CASES[1])
        results.save(tmp_path / "0.json", later | {"commit": "older"}, [record(2.0, layer(8))])
        results.save(tmp_path / "0.json", later, [record(3.5, shown)])
        block = report.readme_block([results.load(tmp_path / f) for f in ("0.json", "a.json")])
        assert "| 3.50x |" in block
        assert "2.50x" not in block
        assert "older" not in block
        assert "Faster in 1 of 1 cases" in block

    def test_without_markers_is_left_alone(self, tmp_path, measured):
        readme = tmp_path / "README.md"
        readme.write_text("mine")
        with pytest.raises(SystemExit, match=report.BEGIN):
            report.main([measured, "--readme", str(readme)])
        assert readme.read_text() == "mine"

    def test_cases_are_planned(self):
        assert set(README_CASES) < {c.name for c in cases("cpu") + cases("cuda")}

    @pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="no README here")
    def test_of_the_project_is_up_to_date(self):
        report.main(["--readme", "--check"])


def test_estimates_of_a_step():
    """Read out of explain's text: forward, or forward and backward; none where it cannot."""
    module = FusedLSTM(64, 64, dtype=torch.bfloat16)
    forward = steps.estimated(module, 8, "block", training=False, device="H100")
    both = steps.estimated(module, 8, "block", training=True, device="H100")
    assert 0 < forward < both
    assert steps.estimated(module, 8, "cluster", training=False, device="A100") is None
