"""The benchmarks' own arithmetic: cases, ratios, results files, the README's table."""

import functools
import importlib.util
import itertools
import json
import math
import sys
from dataclasses import replace
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

from benchmarks import (  # noqa: E402
    bars,
    facts,
    limits,
    onnx_lstm,
    plot,
    report,
    results,
    steps,
    tables,
    workloads,
)
from benchmarks.cases import Case, cases  # noqa: E402
from benchmarks.summary import Summary, columns  # noqa: E402
from benchmarks.timing import MAX_ROUNDS, MIN_ROUNDS, Contest, Sampler, Spread  # noqa: E402
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


def record(ratio, case=None, spread=0.0, onnx=None, kept=None, limit=None, us=100):
    """A record in which FusedLSTM takes ``us`` and nn.LSTM ``ratio`` times that."""
    low, high = us * ratio * (1 - spread / 2), us * ratio * (1 + spread / 2)
    spreads = {"nn": Spread(us * ratio, low, high), "fused": Spread(us, us, us)}
    for name, times in {"onnxruntime": onnx, "kept": kept}.items():
        if times is not None:
            spreads[name] = Spread(us * times, us * times, us * times)
    return results.record(case or layer(), spreads, rounds=7, limit=limit)


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
        wide = layer(256)
        assert wide.limit == "GEMM"
        assert layer(128).limit is None
        assert replace(wide, batch=8).limit is None
        assert replace(wide, batch=1).limit == "reading"
        assert replace(wide, device="cuda").limit is None

    def test_weights_read(self):
        hh, ih = 4 * 5 * 5, 4 * 5 * 3  # numbers
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

    def test_recompute_is_about_training(self):
        found = [c for c in cases("cpu") if c.recompute]
        assert {(c.group, c.mode) for c in found} == {("recompute", "training")}
        assert {c.dtype for c in found} == {"float32", "bfloat16"}
        assert all("-recompute-" in c.name for c in found)

    def test_onnxruntime_is_asked_for_layers_forward_in_float32(self):
        asked = [c for c in cases("cpu") if c.in_onnx]
        assert {c.group for c in asked} == {"grid", "odd-sizes", "bidirectional", "two-layers"}
        assert {(c.dtype, c.mode) for c in asked} == {("float32", "inference")}
        assert not any(c.in_onnx for c in cases("cuda"))


class TestTiming:
    def test_spread(self):
        spread = Spread.of([5e-6, 1e-6, 2e-6, 4e-6, 3e-6])
        assert (spread.low, spread.median, spread.high) == pytest.approx((2, 3, 4))
        assert spread.wide
        assert not Spread.of([1.00e-6, 1.01e-6, 1.02e-6]).wide
        assert Spread.of([2e-6]) == Spread(2, 2, 2)

    @pytest.mark.parametrize("alone", [True, False])
    def test_all_alternate(self, alone):
        order = []
        competitors = {name: functools.partial(order.append, name) for name in "ABC"}
        contest = Contest(competitors, "cpu", budget=0.05)
        order.clear()
        if alone:
            contest.run()
        else:
            contest.run_under(FakeBenchmark())
        in_turn = [name for name, _ in itertools.groupby(order)]
        assert in_turn == ["A", "B", "C"] * contest.rounds
        assert MIN_ROUNDS <= contest.rounds <= MAX_ROUNDS
        assert list(contest.spreads) == ["A", "B", "C"]

    @pytest.mark.parametrize(
        ("seconds", "warming"), [(2**-16, 656), (2**-8, 3), (2**-4, 1), (2**-3, 0)]
    )
    def test_a_sample_comes_after_calls_of_the_same_function(self, monkeypatch, seconds, warming):
        calls = pretend_a_call_takes(monkeypatch, seconds)
        sampler = Sampler(calls.run, "cpu")
        takes = sampler.calibrate(budget=1.0)
        calls.count = 0
        assert sampler.take() == pytest.approx(seconds)
        assert calls.count - sampler.calls == warming
        assert calls.count * seconds == pytest.approx(takes, rel=0.2)

    def test_over_budget_gets_the_fewest_rounds(self, monkeypatch):
        calls = pretend_a_call_takes(monkeypatch, seconds=7.0)
        contest = Contest({"nn": calls.run, "fused": calls.run}, "cpu", budget=1.0)
        assert contest.rounds == MIN_ROUNDS
        assert calls.count == 2  # one to warm up each, no more

    def test_a_short_call_is_repeated_in_a_sample(self, monkeypatch):
        calls = pretend_a_call_takes(monkeypatch, seconds=1e-5)
        sampler = Sampler(calls.run, "cpu")
        sampler.calibrate(budget=1.0)
        assert sampler.calls == 256  # the first power of two to fill 2 ms
        assert sampler.take() == pytest.approx(1e-5)


class TestContestants:
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
        calls = workloads.contestants(case)
        assert {"nn", "fused"} <= set(calls)
        workloads.check_agreement(case, calls)

    def test_that_differ_are_refused(self):
        calls = workloads.contestants(layer(8))
        wrong = {**calls, "fused": lambda: tuple(1.1 * t for t in calls["nn"]())}
        with pytest.raises(AssertionError, match=r"of fused is 1\.00e-01 away"):
            workloads.check_agreement(layer(8), wrong)

    @pytest.mark.parametrize("layers", [1, 2])
    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_onnxruntime_agrees(self, layers, bidirectional):
        if onnx_lstm.version() is None:
            pytest.skip("onnx and onnxruntime are not here")
        case = replace(layer(8), input_size=5, num_layers=layers, bidirectional=bidirectional)
        calls = workloads.contestants(case)
        assert list(calls) == ["nn", "onnxruntime", "fused"]
        workloads.check_agreement(case, calls)

    def test_recompute_beside_itself_without(self):
        case = layer(8, training=True, recompute=True)
        calls = workloads.contestants(case)
        assert list(calls) == ["nn", "kept", "fused"]
        workloads.check_agreement(case, calls)
        saved = {name: saved_numbers(calls[name]) for name in calls}
        assert saved["fused"] < saved["kept"]

    def test_without_onnxruntime(self, monkeypatch):
        monkeypatch.setattr(onnx_lstm, "onnxruntime", None)
        assert list(workloads.contestants(layer(8))) == ["nn", "fused"]
        assert facts.collect("cpu")["onnxruntime"] is None


def saved_numbers(call):
    """How many numbers a call keeps for its backward."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        call()
    return sum(sizes)


class TestLimits:
    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch):
        monkeypatch.setattr(limits, "BUDGET", 0.001)
        monkeypatch.setattr(limits, "READ_AT_ONCE", 2**20)

    def test_are_measured_once_for_each_size(self, monkeypatch):
        measured = []
        monkeypatch.setattr(limits, "read_rate", lambda *size: measured.append(size) or 10.0)
        monkeypatch.setattr(limits, "gemm_rate", lambda case: measured.append(case.shape) or 100.0)
        found = limits.Limits()
        one = replace(layer(8), batch=1)
        assert found.of(one) == found.of(replace(one, training=True)) == 10.0
        assert found.of(replace(one, dtype="bfloat16")) == 10.0  # half as many bytes
        assert found.of(replace(one, threads=2)) == 10.0
        assert measured == [(4 * 4 * 64, 1), (2 * 4 * 64, 1), (4 * 4 * 64, 2)]
        measured.clear()
        assert found.of(layer(256)) == found.of(layer(256, training=True)) == 100.0
        assert found.of(layer(128)) is None
        assert measured == [layer(256).shape]

    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("hidden", [64, 100, 256])
    def test_reading_reads_the_whole_size(self, threads, hidden, monkeypatch):
        size = 4 * 4 * hidden * hidden
        assert limits.read_rate(size, threads) > 0
        monkeypatch.setattr(limits, "_fastest", lambda calls: 1.0)  # a second for any call
        again = -(-limits.READ_AT_ONCE // size)
        assert 0.97 < limits.read_rate(size, threads) * 1e9 / (again * size) <= 1

    def test_gemm(self):
        assert limits.gemm_rate(layer(16)) > 0


class FakeBenchmark:
    def pedantic(self, target, setup, rounds, iterations):
        for _ in range(rounds):
            setup()
            target()


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
        summary = Summary.of([record(0.5), record(2.0), record(4.0, spread=0.3)])
        assert summary.geometric_mean == pytest.approx(4 ** (1 / 3))
        assert (summary.minimum, summary.losing, summary.rough, summary.count) == (0.5, 1, 1, 3)
        assert str(summary) == "**1.59x** (min 0.50x, 1 of 3 under 1) ~"

    def test_record(self):
        kept = record(2.5, layer(training=True))
        assert kept["ratio"] == 2.5
        assert kept["us"] == {"nn": [250, 250, 250], "fused": [100, 100, 100]}
        assert kept["us_per_step"]["fused"] == 5
        assert kept["gflops"]["fused"] == pytest.approx(layer(training=True).flops / 1e5, rel=1e-3)
        assert not kept["wide"]
        assert "limit" not in kept
        assert results.case_of(json.loads(json.dumps(kept))) == layer(training=True)
        del kept["recompute"]  # as in files made before there was such a case
        assert results.case_of(kept) == layer(training=True)

    def test_record_beside_its_limit(self):
        case = layer(256)
        kept = record(2.0, case, limit=2 * case.flops / 100 / 1e3)  # GFLOP/s
        assert kept["limit"]["share"] == 0.5
        assert kept["limit"]["reached"] == kept["gflops"]["fused"]
        one = replace(case, batch=1)
        kept = record(2.0, one, limit=4 * one.weight_bytes / 100 / 1e3)  # GB/s
        assert (kept["limit"]["kind"], kept["limit"]["share"]) == ("reading", 0.25)

    def test_table_has_a_column_a_mode_and_thread_count(self):
        records = [record(2.0), record(3.0, layer(training=True)), record(4.0, layer(threads=2))]
        assert columns(records) == [("inference", 1), ("inference", 2), ("training", 1)]
        lines = tables.table(records).splitlines()
        assert lines[0].count("|") == 5
        assert lines[2] == "| grid | **2.00x** | **4.00x** | **3.00x** |"
        assert lines[3].startswith("| grid, B 32 |")

    def test_table_has_onnxruntime_and_the_limit(self):
        records = [
            record(2.0, layer(256), onnx=1.5, limit=layer(256).flops / 100 / 1e3 / 0.9),
            record(2.0, layer(128), onnx=0.5),
            record(4.0, layer(256, training=True)),
        ]
        lines = tables.table(records).splitlines()
        assert lines[0].endswith("| onnxruntime's / FusedLSTM's, forward, 1 thread |")
        assert lines[2] == (
            "| grid | **2.00x** (min 2.00x), 90 % of GEMM | **4.00x** "
            "| **0.87x** (min 0.50x, 1 of 2 under 1) |"
        )
        assert "90 % of GEMM, 1.50x onnxruntime" in tables.full(records)
        assert "Slower than onnxruntime in 1 of 2 cases" in tables.smallest_gains(records)
        reading = record(2.0, replace(layer(256), batch=1), limit=1.0)
        assert "GEMM" not in tables.table([*records, reading]).splitlines()[2]  # two kinds

    def test_table_has_the_price_of_recompute(self):
        case = layer(training=True, group="recompute", recompute=True)
        lines = tables.table([record(1.5, case, kept=0.8), record(2.0, layer(training=True))])
        header, _, *rows = lines.splitlines()
        assert header.endswith("| recompute=False's / FusedLSTM's, forward + backward, 1 thread |")
        assert rows[-1] == "| recompute | **1.50x** | **0.80x** |"
        assert "0.80x recompute=False" in tables.full([record(1.5, case, kept=0.8)])

    def test_names_every_loss_worst_first(self):
        records = [record(r, layer(hidden=8 * i)) for i, r in enumerate([3, 0.9, 0.5, 2], start=1)]
        lines = tables.smallest_gains(records).splitlines()
        assert lines[0].startswith("Slower than nn.LSTM in 2 of 4 cases")
        assert ["H24" in lines[1], "H16" in lines[2]] == [True, True]

    def test_plot_is_self_contained_and_holds_every_case(self):
        records = [record(r, layer(hidden=h)) for r, h in [(0.2, 8), (1.0, 16), (30.0, 24)]]
        drawn = plot.svg([{"facts": FACTS, "cases": records}])
        titles = [e.text for e in ElementTree.fromstring(drawn).iter() if e.tag.endswith("title")]
        assert all(any(r["name"] in title for title in titles) for r in records)
        assert "href" not in drawn

    def test_nothing_to_plot(self):
        with pytest.raises(ValueError, match="no case"):
            plot.svg([])


class TestBars:
    def verdicts(self, records):
        return {(j.bar.title, j.column): j for j in bars.judge(records)}

    def test_mean_and_worst(self):
        grid = [c for c in cases("cpu", (1,)) if bars._grid(c) and not c.training]
        least = next(c for c in grid if (c.batch, c.steps, c.hidden_size) == (8, 20, 64))
        found = self.verdicts([record(0.9 if c == least else 2.2, c) for c in grid])
        mean = found["grid", ("inference", 1)]
        assert (mean.verdict, mean.worst) == ("met", 0.9)
        assert mean.worst_name == "grid-B8-T20-D64-H64"
        assert found["any shape", ("inference", 1)].verdict == "**not met**"
        assert found["B1 T100 H128..1024", ("inference", 1)].verdict == "met"
        assert found["B1 T<=20 H<=128", ("inference", 1)].verdict == "**not met**"

    def test_missing_cases_leave_it_open(self):
        no_longer_planned = record(0.5, replace(layer(), steps=500))
        found = self.verdicts([record(3.0, layer()), no_longer_planned])
        one = found["grid", ("inference", 1)]
        assert (one.verdict, one.measured, one.planned) == ("met so far", 1, 60)
        assert ("packed", ("inference", 1)) not in found

    def test_less_is_better_for_a_time(self):
        step = Case("grid", "layer", 1, 1, 64, 64)
        title = "one step, module"
        column = ("inference", 1)
        assert self.verdicts([record(2.0, step, us=14.9)])[title, column].verdict == "met"
        assert self.verdicts([record(2.0, step, us=15)])[title, column].verdict == "**not met**"

    def test_every_bar_has_cases_in_every_mode(self):
        planned = cases("cpu")
        for bar in bars.BARS:
            for mode in bar.must_be:
                assert any(bar.about(c) and c.mode == mode for c in planned), (bar.title, mode)

    def test_are_printed(self, tmp_path, capsys):
        file = tmp_path / "a.json"
        wide = layer(256)
        kept = record(1.0, wide, onnx=1.1, limit=wide.flops / 100 / 1e3 / 0.91)
        results.save(file, FACTS, [kept])
        assert report.main([str(file), "--bars"]) == 0
        lines = capsys.readouterr().out.splitlines()
        shape = "grid-B32-T20-D256-H256"
        assert (
            f"| grid | forward, 1 thread | geometric mean >= 2.00x | 1.00x | 1.00x {shape} "
            "| 1 of 60 | **not met** |"
        ) in lines
        assert (
            f"| share of GEMM | forward, 1 thread | each >= 90 % | 91 % | 91 % {shape} "
            "| 1 of 18 | met so far |"
        ) in lines
        assert any(line.startswith("| onnxruntime, grid |") for line in lines)

    def test_are_not_about_cuda(self):
        assert bars.judge([record(9.0, layer(device="cuda", threads=None))]) == []


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
    def test_another_file_is_refused(self, tmp_path, content, capsys):
        file = tmp_path / "b.json"
        file.write_text(content)
        with pytest.raises(ValueError, match=r"b\.json is not a results file"):
            results.load(file)
        assert report.main([str(file)]) == 2
        assert "b.json" in capsys.readouterr().err

    def test_is_named_after_the_machine(self):
        assert facts.machine_name(FACTS) == "a-cpu-x-1-2-cores"
        assert facts.machine_name({**FACTS, "device": "NVIDIA H100"}) == "nvidia-h100"


class TestReadme:
    @pytest.fixture
    def measured(self, tmp_path):
        file = tmp_path / "a.json"
        results.save(file, FACTS, [record(2.0), record(1.25, layer(dtype="bfloat16"))])
        return str(file)

    def test_is_written_between_the_markers(self, tmp_path, measured, capsys):
        readme = tmp_path / "README.md"
        readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
        assert report.main([measured, "--readme", str(readme), "--check"]) == 1
        assert "is stale" in capsys.readouterr().err
        assert report.main([measured, "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith(f"before\n{tables.BEGIN}\n")
        assert text.endswith(f"{tables.END}\nafter\n")
        assert "**2.00x**" in text
        assert "**1.25x**" in text
        assert "old" not in text
        assert report.main([measured, "--readme", str(readme), "--check"]) == 0

    def test_without_markers_is_left_alone(self, tmp_path, measured, capsys):
        readme = tmp_path / "README.md"
        readme.write_text("mine")
        assert report.main([measured, "--readme", str(readme)]) == 2
        assert tables.BEGIN in capsys.readouterr().err
        assert readme.read_text() == "mine"

    @pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="no README here")
    def test_of_the_project_is_up_to_date(self):
        assert report.main(["--readme", "--check"]) == 0


def test_estimates_of_a_step():
    """Read out of explain's text: forward, or forward and backward; none where it cannot."""
    module = FusedLSTM(64, 64, dtype=torch.bfloat16)
    forward = steps.estimated(module, 8, "block", training=False, device="H100")
    both = steps.estimated(module, 8, "block", training=True, device="H100")
    assert 0 < forward < both
    assert steps.estimated(module, 8, "cluster", training=False, device="A100") is None


def test_geometric_mean_of_a_gain_and_an_equal_loss_is_one():
    assert math.isclose(Summary.of([record(4.0), record(0.25)]).geometric_mean, 1.0)
