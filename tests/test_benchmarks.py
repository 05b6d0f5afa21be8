"""The benchmarks' own arithmetic: cases, ratios, results files, the README's table."""

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"

if not FOLDER.is_dir():  # a source distribution leaves it out
    pytest.skip("the benchmarks are not here", allow_module_level=True)

# By its place, for the root on sys.path would let the source tree shadow an installed fused_lstm.
_spec = importlib.util.spec_from_file_location(
    "benchmarks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
)
sys.modules["benchmarks"] = importlib.util.module_from_spec(_spec)

from benchmarks import facts, plot, report, results, tables  # noqa: E402
from benchmarks.cases import Case, cases  # noqa: E402
from benchmarks.summary import Summary, columns  # noqa: E402
from benchmarks.timing import MAX_ROUNDS, MIN_ROUNDS, Contest, Sampler, Spread  # noqa: E402

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


def record(ratio, case=None, spread=0.0):
    """A record in which FusedLSTM takes 100 us and nn.LSTM ``ratio`` times that."""
    low, high = 1 - spread / 2, 1 + spread / 2
    nn = Spread(100 * ratio, 100 * ratio * low, 100 * ratio * high)
    return results.record(case or layer(), nn, Spread(100, 100, 100), rounds=7)


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
        assert len(grid) == 3 * 4 * 5 * 2 * (2 if device == "cpu" else 1)
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


class TestTiming:
    def test_spread(self):
        spread = Spread.of([5e-6, 1e-6, 2e-6, 4e-6, 3e-6])
        assert (spread.low, spread.median, spread.high) == pytest.approx((2, 3, 4))
        assert spread.wide
        assert not Spread.of([1.00e-6, 1.01e-6, 1.02e-6]).wide
        assert Spread.of([2e-6]) == Spread(2, 2, 2)

    def test_the_two_alternate(self):
        order = []
        contest = Contest(lambda: order.append("A"), lambda: order.append("B"), "cpu", budget=0.05)
        order.clear()
        contest.run_under(FakeBenchmark())
        in_turn = [name for name, _ in itertools.groupby(order)]
        assert in_turn == ["A", "B"] * contest.rounds
        assert MIN_ROUNDS <= contest.rounds <= MAX_ROUNDS

    def test_over_budget_gets_the_fewest_rounds(self, monkeypatch):
        calls = pretend_a_call_takes(monkeypatch, seconds=7.0)
        contest = Contest(calls.run, calls.run, "cpu", budget=1.0)
        assert contest.rounds == MIN_ROUNDS
        assert calls.count == 2  # one to warm up each, no more

    def test_a_short_call_is_repeated_in_a_sample(self, monkeypatch):
        calls = pretend_a_call_takes(monkeypatch, seconds=1e-5)
        sampler = Sampler(calls.run, "cpu")
        sampler.calibrate(budget=1.0)
        assert sampler.calls == 256  # the first power of two to fill 2 ms
        assert sampler.take() == pytest.approx(1e-5)


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
        json.dumps(kept)

    def test_table_has_a_column_a_mode_and_thread_count(self):
        records = [record(2.0), record(3.0, layer(training=True)), record(4.0, layer(threads=2))]
        assert columns(records) == [("inference", 1), ("inference", 2), ("training", 1)]
        lines = tables.table(records).splitlines()
        assert lines[0].count("|") == 5
        assert lines[2] == "| grid | **2.00x** | **4.00x** | **3.00x** |"
        assert lines[3].startswith("| grid, B 32 |")

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


def test_geometric_mean_of_a_gain_and_an_equal_loss_is_one():
    assert math.isclose(Summary.of([record(4.0), record(0.25)]).geometric_mean, 1.0)
