"""The benchmarks of serving: cases, errors, latencies, records, tables and targets."""

import functools
import itertools
import types
from dataclasses import replace

import pytest
import torch
from test_benchmarks import FACTS, FOLDER, layer, measurement
from test_benchmarks import record as other_record

from benchmarks import conftest, limits, onnx_lstm, report, results, timing
from benchmarks.cases import README_CASES, SERVING_README_CASES, Case, cases, serving_cases
from benchmarks.serving import records, tables
from benchmarks.serving.implementations import MOST_ERROR, arithmetic, errors, implementations
from benchmarks.serving.targets import TARGETS, outcome


def step(hidden=64, **others):
    return replace(Case("serving-step", "layer", 1, 1, hidden, hidden), **others)


def sequence(hidden=64, **others):
    return replace(Case("serving-sequence", "layer", 1, 20, hidden, hidden), **others)


def measured(us, cpu_us=None, spread=0.0):
    found = measurement(us, spread)
    found.metadata = {"cpu": [1e-6 * (cpu_us or us)] * len(found.times)}
    return found


def record(case, at_most=100.0, is_cached=True, latencies=None, **us):
    """A record in which nn.LSTM takes 1000 us, onnxruntime 400, ours 100, or what ``us`` says."""
    ours = "stream" if case.steps == 1 else "frozen"
    names = {"nn": 1000, "dynamic_float16": 300, "dynamic_int8": 200, "onnxruntime": 400}
    names |= {f"{ours}_{weights}": 100 for weights in records.FORMATS}
    found = {name.replace("_", "-"): measured(t) for name, t in (names | us).items()}
    off = {name: MOST_ERROR[arithmetic(name)] / 2 for name in found}
    of_formats = dict.fromkeys(records.FORMATS, (at_most, is_cached))
    return records.record(case, found, off, of_formats, latencies or {})


class TestCases:
    def test_hold_what_is_promised(self):
        found = serving_cases()
        assert len({c.name for c in found}) == len(found) <= 60
        assert not {c.name for c in found} & {c.name for c in cases("cpu")}
        steps = {c.hidden_size for c in found if c.group == "serving-step"}
        assert steps == {16, 32, 64, 128, 256, 512, 1024}
        sequences = {(c.steps, c.hidden_size) for c in found if c.group == "serving-sequence"}
        assert sequences == set(itertools.product((20, 100), (64, 128, 256, 512, 1024)))
        models = {
            (c.group.removeprefix("serving-"), c.num_layers, c.input_size, c.hidden_size, c.steps)
            for c in found
        }
        assert models >= {
            ("stac-like-a", 2, 100, 100, 50),
            ("stac-like-b", 3, 250, 200, 100),
            ("stac-like-c", 4, 500, 1000, 100),
            ("silero", 1, 128, 128, 1),
            ("parakeet", 2, 640, 640, 1),
            ("rtneural", 1, 4, 4, 1),
            ("rtneural", 1, 16, 16, 1),
            ("rtneural", 1, 1, 24, 1),
            ("kokoro", 1, 512, 256, 100),
        }
        assert {c.bidirectional for c in found if c.group == "serving-kokoro"} == {True}
        assert {c.model for c in found if c.group == "serving-silero"} == {"cell"}
        assert {c.batch for c in found} == {1, 8, 32}

    def test_one_sequence_is_served_by_one_thread(self):
        found = serving_cases(threads=(1, 3))
        assert {c.threads for c in found if c.batch == 1} == {1}
        assert {c.threads for c in found if c.batch > 1} == {1, 3}

    def test_of_the_readme_are_planned(self):
        assert len(SERVING_README_CASES) == 6
        assert set(SERVING_README_CASES) < {c.name for c in serving_cases()}


class TestImplementations:
    @pytest.mark.parametrize(
        "case",
        [
            step(8),
            step(8, input_size=5, num_layers=2, batch=3),
            step(8, model="cell"),
            sequence(8, batch=2),
            sequence(8, input_size=5, bidirectional=True),
            sequence(8, num_layers=2),
        ],
        ids=lambda case: case.name + f"-{case.model}",
    )
    @torch.no_grad()
    def test_are_right(self, case):
        calls, off = implementations(case)
        asked = ["nn", "dynamic-float16", "dynamic-int8", "fused", "frozen-int8"]
        assert set(calls) >= set(asked)
        assert ("stream-float32" in calls) == (case.steps == 1)
        if onnx_lstm.onnxruntime:
            assert {"onnxruntime", "onnxruntime-int8"} <= set(calls)
            assert ("onnxruntime-bound" in calls) == (case.steps == 1)
        assert list(off) == list(calls)
        for name, error in off.items():
            assert (error > 1e-6) == (arithmetic(name) != "float32"), name
        assert off["dynamic-float16"] < off["dynamic-int8"]
        assert off["frozen-bfloat16"] < off["frozen-int8"]

    @torch.no_grad()
    def test_a_step_goes_on_from_the_state_before(self):
        calls, _ = implementations(step(8))
        for name, call in calls.items():
            first, second = (torch.as_tensor(value(call())).clone() for _ in range(2))
            assert first.shape[-1] == 8
            assert not torch.equal(first, second), name

    @torch.no_grad()
    def test_without_onnxruntime(self, monkeypatch):
        monkeypatch.setattr(onnx_lstm, "onnxruntime", None)
        for case in (step(8), sequence(8)):
            assert not any(name.startswith("onnx") for name in implementations(case)[0])

    @pytest.mark.parametrize(
        ("name", "off"),
        [("fused", 2e-5), ("frozen-bfloat16", 3e-2), ("stream-int8", 0.2), ("nn", float("nan"))],
    )
    def test_over_the_error_of_their_format_are_refused(self, name, off):
        right = torch.zeros(3, 1, 8, dtype=torch.float64)
        assert errors(step(8), {name: right + 1e-6}, right) == {name: pytest.approx(1e-6)}
        with pytest.raises(AssertionError, match=f"output of {name} is off by"):
            errors(step(8), {name: right + off}, right)

    def test_formats(self):
        names = {name: arithmetic(name) for name in records.TITLES}
        assert names["dynamic-float16"] == "float16"
        assert names["onnxruntime-int8"] == names["stream-int8"] == "int8"
        assert names["frozen-bfloat16"] == "bfloat16"
        assert names["nn"] == names["onnxruntime-bound"] == names["stream-float32"] == "float32"


def value(result):
    return result[0] if isinstance(result, tuple) else result


class TestLatencies:
    def test_percentiles(self):
        found = timing.Latencies([1000 * us for us in reversed(range(1, 2001))])
        assert found.percentiles() == [1000, 1980, 1998, 2000]
        assert timing.Latencies([7000]).percentiles() == [7, 7, 7, 7]

    def test_of_single_calls_in_turn(self, monkeypatch):
        clock, order = [0], []

        def call(name, nanoseconds):
            order.append(name)
            clock[0] += nanoseconds

        monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: clock[0])
        calls = {name: functools.partial(call, name, ns) for name, ns in (("A", 10), ("B", 30))}
        found = timing.latencies(calls, 1050)
        assert {name: set(f.nanoseconds) for name, f in found.items()} == {"A": {10}, "B": {30}}
        assert {len(f.nanoseconds) for f in found.values()} == {1050}
        turns = [(name, len(list(group))) for name, group in itertools.groupby(order)]
        assert [name for name, _ in turns] == ["A", "B"] * 96  # of 11 calls each
        assert {count for _, count in turns[:-2]} == {2 + 11}  # 2 bring the weights back
        assert {count for _, count in turns[-2:]} == {2 + 5}

    def test_thread_time_of_each_sample(self, monkeypatch):
        monkeypatch.setattr(timing.time, "perf_counter", lambda: calls * 2.0**-10)
        monkeypatch.setattr(timing.time, "thread_time", lambda: calls * 2.0**-11)
        calls = 0

        def run():
            nonlocal calls
            calls += 1

        sampler = timing.Sampler(run, "cpu")
        sampler.calibrate(1.0)
        sampler.sample()
        assert (sampler.samples, sampler.cpu_samples) == ([2.0**-10], [2.0**-11])
        found = timing.alternate({"A": run}, "cpu", 0.1)["A"]
        assert set(found.metadata["cpu"]) == {2.0**-11}
        assert len(found.metadata["cpu"]) == len(found.times)


class TestRecords:
    def test_of_a_step_are_about_the_stream(self):
        kept = record(step(256), at_most=50.0)
        assert records.ours(kept, "int8") == "stream-int8"
        assert kept["us"]["nn"] == [1000, 1000, 1000]
        of_bytes = 8 * 256 * 256 / 100 / 1e3  # GB/s of int8, weight_ih and weight_hh
        limit = kept["limit"]["int8"]
        assert (limit["kind"], limit["reached"]) == ("reading", pytest.approx(of_bytes, rel=1e-3))
        assert limit["share"] == pytest.approx(of_bytes / 50, rel=1e-3)
        assert kept["limit"]["bfloat16"]["reached"] == pytest.approx(2 * of_bytes, rel=1e-3)
        assert kept["limit"]["float32"]["fits_a_cache"] is True

    def test_of_a_batch_are_beside_the_peak_of_the_format(self):
        case = sequence(256, batch=32)
        kept = record(case)
        assert [kept["limit"][weights]["kind"] for weights in records.FORMATS] == [
            "FMA peak",
            "bf16 peak",
            "int8 peak",
        ]
        assert kept["limit"]["int8"]["reached"] == pytest.approx(case.flops / 1e5, rel=1e-3)
        assert record(case, at_most=None)["limit"] == {}

    def test_thread_time_and_wide_spread(self):
        found = {
            "nn": measured(10, cpu_us=8),
            "frozen-float32": measured(5, spread=0.2),
            "frozen-bfloat16": measured(5),
            "frozen-int8": measured(5),
        }
        kept = records.record(sequence(), found, dict.fromkeys(found, 1.234e-7), {}, {})
        assert kept["cpu_us"]["nn"] == 8
        assert kept["wide"] == ["frozen-float32"]
        assert kept["error"]["nn"] == 1.2e-7

    def test_latencies(self):
        taken = {"stream-int8": timing.Latencies([1000, 2000, 3000, 9000], preemptions=2)}
        kept = record(step(), latencies=taken)["latency"]
        assert kept == {
            "steps": 4,
            "us": {"stream-int8": [2, 9, 9, 9]},
            "preemptions": {"stream-int8": 2},
        }
        assert "latency" not in record(step())

    def test_go_with_the_other_cases_of_a_run(self, tmp_path):
        file = tmp_path / "a.json"
        results.save(file, FACTS, [other_record(2.0, layer(8)), record(step())])
        results.save(file, {**FACTS, "date": "2026-01-03"}, [record(sequence())])
        others, serving = records.split(results.load(file))
        assert [len(run["cases"]) for run in others] == [1]
        assert [run["cases"][0]["group"] for run in serving] == ["serving-step", "serving-sequence"]
        assert [run["facts"]["date"] for run in serving] == [FACTS["date"], "2026-01-03"]


class TestTargets:
    def reached(self, name, *found):
        (target,) = (t for t in TARGETS if t.name == name)
        return outcome(target, list(found))

    def test_a_step_of_few_units_against_onnxruntime(self):
        name = "float32, a step, H <= 128: onnxruntime's time"
        near, far = record(step(128), onnxruntime=290), record(step(16), onnxruntime=500)
        others = record(step(256), onnxruntime=10), record(sequence(), onnxruntime=10)
        found = self.reached(name, near, far, *others)
        assert (found.reached, found.is_met, found.missed, found.records) == (2.9, False, 1, 2)
        assert found.worst is near
        assert self.reached(name, far).is_met
        assert self.reached(name, *others) is None
        bound = record(step(128), onnxruntime_bound=150)
        name = "float32, a step, H <= 128: with IO binding"
        assert self.reached(name, bound, near).reached == 1.5

    def test_a_step_of_many_units_is_about_a_cache_or_about_memory(self):
        cached = record(step(512), onnxruntime=160)
        weights = 8 * 1024 * 1024 * 4  # bytes
        memory = record(step(1024), at_most=weights / 1e5 / 0.7, is_cached=False, onnxruntime=100)
        found = self.reached(
            "float32, a step, H > 128 in a cache: onnxruntime's time", cached, memory
        )
        assert (found.reached, found.is_met, found.records) == (1.6, True, 1)
        found = self.reached(
            "float32, a step, weights in memory: share of its bandwidth", cached, memory
        )
        assert found.reached == pytest.approx(70, rel=1e-3)
        assert (found.is_met, found.records) == (False, 1)

    def test_means_are_over_all(self):
        found = [record(step(), onnxruntime=100), record(sequence(batch=8), onnxruntime=900)]
        int8 = self.reached("int8, mean: onnxruntime's time", *found)
        assert int8.reached == pytest.approx(3.0)
        assert (int8.is_met, int8.missed) == (True, 1)
        slow = self.reached("bfloat16, mean: onnxruntime's time", *found[:1])
        assert (slow.reached, slow.is_met) == (1.0, False)

    def test_beside_torchs_quantisation(self):
        found = [record(sequence(), dynamic_int8=105), record(step(), dynamic_float16=115)]
        assert not self.reached("int8: quantize_dynamic's time, qint8", *found).is_met
        assert self.reached("bfloat16: quantize_dynamic's time, float16", *found).is_met
        name = "int8: share of quantize_dynamic's error"
        assert self.reached(name, *found).is_met
        found[0]["error"]["frozen-int8"] *= 1.5
        assert self.reached(name, *found).reached == pytest.approx(1.5)
        assert not self.reached(name, *found).is_met

    def test_microseconds_through_python(self):
        name = "float32, a step of one layer, H <= 64"
        fast, slow = record(step(64), stream_float32=3.9), record(step(32), stream_float32=4.1)
        deep = record(step(64, num_layers=2), stream_float32=50)
        assert self.reached(name, fast, deep, record(step(128))).is_met
        found = self.reached(name, fast, slow)
        assert (found.reached, found.is_met, found.missed) == (4.1, False, 1)

    def test_each_is_about_some_case(self):
        found = [
            record(c, is_cached=c.hidden_size < 1024, onnxruntime_bound=400)
            if c.steps == 1
            else record(c)
            for c in serving_cases()
        ]
        for target in TARGETS:
            assert outcome(target, found), target.name


class TestTables:
    def lines(self, text):
        rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
        return {row[0]: row[1:] for row in rows if row}

    def test_times(self):
        one = record(step(256), at_most=50.0, fused=120, onnxruntime_int8=150)
        two = record(sequence(64, threads=2))
        rows = self.lines(tables.times([one, two]))
        assert rows[""] == [
            *("nn.LSTM", "dynamic float16", "dynamic qint8", "onnxruntime", "onnxruntime int8"),
            *("FusedLSTM", "float32", "bfloat16", "int8"),
            *("nn.LSTM / float32", "onnxruntime / float32", "onnxruntime int8 / int8"),
        ]
        assert rows["step, B 1, T 1, H 256"] == [
            *("1,000", "300", "200", "400", "150", "120"),
            *("100 (42 %)", "100 (21 %)", "100 (10 %)", "10.00x", "4.00x", "1.50x"),
        ]
        two_threads = rows["sequence, B 1, T 20, H 64, 2 threads"]
        assert (two_threads[4], two_threads[5], two_threads[-1]) == ("", "", "")

    def test_stac_like_ones_are_no_stac_result(self):
        assert "no audited STAC result" in tables.text([record(step(group="serving-stac-like-a"))])
        assert "STAC" not in tables.text([record(step())])

    def test_a_wide_spread_is_marked(self):
        kept = record(step())
        kept["wide"] = ["stream-int8"]
        assert "100 ~ (" in tables.times([kept])
        assert "~" not in tables.times([record(step())])

    def test_errors(self):
        rows = self.lines(tables.errors([record(step())]))
        assert rows["step, B 1, T 1, H 64"][-3:] == ["5.0e-06", "1.0e-02", "5.0e-02"]

    def test_latencies(self):
        taken = {
            "onnxruntime": timing.Latencies([12000, 13000, 14000, 90000], preemptions=1),
            "stream-float32": timing.Latencies([3000, 3100, 3200, 4000], preemptions=2),
        }
        rows = self.lines(tables.latencies([record(step(), latencies=taken), record(sequence())]))
        assert rows == {
            "": ["steps each", "onnxruntime", "stream float32", "preemptions"],
            "---": ["---"] * 4,
            "step, B 1, T 1, H 64": ["4", "13 / 90 / 90 / 90", "3.1 / 4 / 4 / 4", "3"],
        }
        assert tables.latencies([record(sequence())]) == ""

    def test_targets(self):
        found = [record(step(128), onnxruntime=290), record(step(16), onnxruntime=500)]
        rows = self.lines(tables.targets(found))
        name = "float32, a step, H <= 128: onnxruntime's time"
        assert rows[name] == [">= 3x", "2.9x", "not met, 1 of 2 below", found[0]["name"]]
        assert rows["float32, a step of one layer, H <= 64"][:3] == [
            "<= 4 us",
            "100 us",
            "not met, 1 of 1 above",
        ]
        assert rows["int8: quantize_dynamic's time, qint8"][2] == "met"
        assert not any("sequences" in name for name in rows)

    def test_a_busy_machine_is_named(self):
        quiet, busy = record(step()), record(step(128))
        busy["cpu_us"]["nn"] = 900
        assert tables.busy([quiet, record(step(threads=2)) | {"cpu_us": {"nn": 1}}]) == ""
        assert "in 1 of 2 cases" in tables.busy([quiet, busy])

    def test_every_time(self):
        text = tables.every_time(record(step()))
        assert "100 / 100 / 100" in text
        assert "rounds" in text.splitlines()[0]


@pytest.mark.parametrize("serving", [False, True])
def test_the_option_chooses_the_cases(serving):
    config = types.SimpleNamespace(getoption={"--serving": serving}.get)
    names = ("test_speed.py", "test_serving.py", "conftest.py")
    left_out = [n for n in names if conftest.pytest_ignore_collect(FOLDER / n, config)]
    assert left_out == [names[0 if serving else 1]]


class TestReport:
    @pytest.fixture
    def file(self, tmp_path):
        """A run of other cases, then one of serving."""
        path = tmp_path / "a.json"
        shown = next(c for c in cases("cpu") if c.name == README_CASES[1])
        results.save(path, FACTS, [other_record(2.5, shown)])
        later = {**FACTS, "date": "2026-01-05"}
        served = [c for c in serving_cases() if c.name in SERVING_README_CASES]
        results.save(path, later, [record(c) for c in served])
        return path

    def test_has_both(self, file, capsys):
        report.main([str(file)])
        text = capsys.readouterr().out
        assert "The run of 2026-01-02" in text
        assert "date 2026-01-05" in text
        for title in ("one layer, B 1", "Serving: microseconds", "Targets: the worst"):
            assert title in text
        assert "cases 1\n" in text
        assert "cases 6\n" in text
        report.main([str(file), "--full"])
        assert "thread CPU us" in capsys.readouterr().out

    def test_of_serving_alone(self, tmp_path, capsys):
        results.save(tmp_path / "a.json", FACTS, [record(step())])
        report.main([str(tmp_path / "a.json")])
        text = capsys.readouterr().out
        assert "Serving: microseconds" in text
        assert "FusedLSTM's" not in text

    def test_of_the_others_alone_does_not_name_it(self, tmp_path, capsys):
        results.save(tmp_path / "a.json", FACTS, [other_record(2.0, layer(8))])
        report.main([str(tmp_path / "a.json")])
        assert "Serving" not in capsys.readouterr().out

    def test_readme_has_six_rows_of_it(self, file):
        block = report.readme_block([results.load(file)])
        assert block.count("| 1,000 | 400 | 100 | 100 | 100 |\n") == 6
        assert "| step, B 1, T 1, H 64 |" in block
        assert "date 2026-01-05, " in block
        assert "Faster in 1 of 1 cases" in block

    def test_readme_without_it_is_as_before(self, tmp_path):
        shown = next(c for c in cases("cpu") if c.name == README_CASES[1])
        results.save(tmp_path / "a.json", FACTS, [other_record(2.5, shown)])
        assert "serving" not in report.readme_block([results.load(tmp_path / "a.json")])

    def test_plot_leaves_it_out(self, file, tmp_path):
        pytest.importorskip("matplotlib")
        report.main([str(file), "--plot", str(tmp_path / "a.svg")])
        assert "serving" not in (tmp_path / "a.svg").read_text()


class TestLimits:
    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch):
        figures = {
            "fma_gflops": 100.0,
            "bf16_gflops": 200.0,
            "int8_gops": 300.0,
            "read_gbps": [400.0, 300.0, 200.0, 100.0],
            "cache_bytes": [2**15, 2**20, 2**25],
        }
        monkeypatch.setattr(limits._C, "machine", lambda: figures, raising=False)

    def test_weights_as_large_as_a_cache_are_in_memory(self):
        case = step(1024)
        assert case.resident_bytes == 2**25
        assert not limits.fits_a_cache(case)
        assert limits.limit_of(case) == 100
        assert limits.fits_a_cache(replace(case, dtype="int8"))
        assert limits.limit_of(replace(case, dtype="int8")) == 200

    def test_peak_of_int8(self):
        assert limits.limit_of(replace(sequence(batch=8, threads=2), dtype="int8")) == 600
