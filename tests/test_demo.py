"""The demo: its data, its options, its verdict on parity, its table and its report."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from fused_lstm import FusedLSTM, demo, freeze
from fused_lstm.demo import datasets, report, table
from fused_lstm.demo.tasks import TASKS
from fused_lstm.demo.train import compare, twin_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread gains nothing on models this small, and costs time on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Wrong(FusedLSTM):
    """An LSTM whose results are off by one part in ten thousand."""

    def forward(self, *args, **options):
        output, (h_n, c_n), *states = super().forward(*args, **options)
        return output * 1.0001, (h_n * 1.0001, c_n), *states


class WrongGradient(FusedLSTM):
    """An LSTM with the right results and half the gradient of the recurrent weights."""

    def forward(self, *args, **options):
        for name, weight in self.named_parameters():
            if "weight_hh" in name and not weight._backward_hooks:
                weight.register_hook(lambda gradient: gradient / 2)
        return super().forward(*args, **options)


class WrongUnseen(FusedLSTM):
    """An LSTM that is wrong only without gradients, as in prediction."""

    def forward(self, *args, **options):
        output, (h_n, c_n), *states = super().forward(*args, **options)
        if not torch.is_grad_enabled():
            output, h_n = output * 1.001, h_n * 1.001
        return output, (h_n, c_n), *states


def run_demo(tmp_path: Path, *options: str) -> int:
    return demo.main(["--device", "cpu", "--out", str(tmp_path), *options])


def test_vowels() -> None:
    vowels = datasets.japanese_vowels()
    assert vowels.frames.shape == (640, 29, 12)
    assert vowels.lengths.min() == 7
    assert vowels.lengths.max() == 29
    assert vowels.speakers.unique().tolist() == list(range(9))
    assert vowels.speakers[~vowels.held_out].bincount().tolist() == [30] * 9
    assert vowels.speakers[vowels.held_out].bincount().tolist() == [
        31, 35, 88, 44, 29, 24, 40, 50, 29
    ]  # fmt: skip
    past_end = torch.arange(29) >= vowels.lengths[:, None]
    assert not vowels.frames[past_end].any()
    assert vowels.frames[~past_end].any(-1).all()


def test_electrocardiogram() -> None:
    samples = datasets.electrocardiogram()
    assert samples.shape == (7500,)
    assert samples[0] == pytest.approx(-0.195)
    assert 1 < samples.max() < 1.5  # an R wave, in mV


def test_solar_power() -> None:
    hours, kilowatts = datasets.solar_power()
    assert kilowatts.shape == (992 * 24,)
    assert len(hours) == 992 * 24
    assert {(b - a).seconds for a, b in pairwise(hours)} == {3600}
    measured = ~kilowatts.isnan()
    night = torch.tensor([hour.hour < 4 for hour in hours])
    assert measured.float().mean() > 0.95
    assert kilowatts[measured & night].max() < 0.01
    assert 3 < kilowatts[measured].max() < 4


@pytest.mark.parametrize("name", TASKS)
def test_held_out_data_is_not_trained_on(name: str) -> None:
    task = TASKS[name](CPU, torch.float64)
    trained = {tuple(row.flatten().tolist()) for row in task.train[0]}
    assert len(task.held_out[0]) == len(task.truth)
    assert not any(tuple(row.flatten().tolist()) in trained for row in task.held_out[0])


@pytest.mark.parametrize("name", TASKS)
def test_perfect_prediction_scores_best(name: str) -> None:
    task = TASKS[name](CPU, torch.float32)
    if name == "classifier":
        assert task.score(nn.functional.one_hot(task.truth)) == 100
    else:
        assert task.score(task.truth) == 0 < task.naive


def test_twin_is_one_rounding_error_away() -> None:
    model = nn.LSTM(3, 5)
    for weight, moved in zip(model.parameters(), twin_of(model, 0).parameters(), strict=True):
        step = (moved - weight).abs() / weight.abs()
        assert (step > 0).all()
        assert (step < 2.0**-22).all()


@pytest.mark.parametrize("wrong", [Wrong, WrongGradient, WrongUnseen])
@pytest.mark.parametrize("name", TASKS)
def test_wrong_lstm_has_no_parity(name: str, wrong: type[FusedLSTM]) -> None:
    task = TASKS[name](CPU, torch.float32)
    result = compare(task, wrong, nn.LSTM, 0, 2)
    assert not result.parity
    assert table.faults(result)[0].startswith(f"{name}: ")


@pytest.mark.filterwarnings("error")
def test_not_a_number_is_no_parity() -> None:
    class Broken(FusedLSTM):
        def forward(self, *args, **options):
            output, (h_n, c_n), *states = super().forward(*args, **options)
            return output * math.nan, (h_n * math.nan, c_n), *states

    task = TASKS["predictor"](CPU, torch.float32)
    result = compare(task, Broken, nn.LSTM, 0, 2)
    assert not result.parity
    assert len(table.faults(result)) == 3
    assert report.page([result], []).count('class="bad"') == 3


def test_exit_status_of_broken_parity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FusedLSTM", Wrong)
    assert run_demo(tmp_path, "--task", "predictor", "--steps", "4") == 1
    printed = capsys.readouterr().out
    assert "PARITY IS BROKEN" in printed
    assert "predictor: the losses of step" in printed
    assert "the losses of step" in (tmp_path / demo.REPORT).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "poetry"], "'poetry'"),
        (["--dtype", "int8"], "'int8'"),
        (["--device", "toaster"], "--device: is 'toaster', must be auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "--device: is 'cuda:99', but this torch sees"),
        (["--seed", "-1"], "--seed: is '-1', must be a whole number"),
        (["--steps", "0"], "--steps: is '0', must be a whole number from 1 on"),
        (["--out", "/dev/null/report.html"], "'/dev/null/report.html' cannot be written"),
        pytest.param(
            ["--save", "/dev/null/models"],
            "'/dev/null/models' cannot be written",
            marks=pytest.mark.skipif(find_spec("safetensors") is None, reason="no safetensors"),
        ),
        (["--weights", "int4"], "'int4'"),
        (["--speed", "9"], "--speed"),
    ],
)
def test_wrong_option_is_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.main(options) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*TASKS, *demo.DTYPES, "--seed", "--out"))


class Outline(HTMLParser):
    """Checks that each element is closed in order; collects elements, ids and references."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.labels: list[str] = []
        self.text: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attributes:
            if key in ("href", "src", "xlink:href"):
                self.references.append(value or "")
            elif key == "aria-label":
                self.labels.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def test_report_is_one_whole_file(tmp_path: Path) -> None:
    assert run_demo(tmp_path, "--steps", "3") == 0
    written = (tmp_path / demo.REPORT).read_text(encoding="utf-8")
    outline = Outline(written)
    assert outline.seen.count("section") == 3
    assert outline.seen.count("svg") == len(set(outline.labels)) == 4 * 3
    for references in (outline.references, re.findall(r"url\((.)", written)):
        assert references  # to parts of the file itself
        assert all(each.startswith(("data:image/png;base64,", "#")) for each in references)
    assert not {"script", "link", "iframe"} & set(outline.seen)
    assert "@import" not in written
    for words in ("training step", "time, s", "power, W", "voltage, mV", "speaker", "hidden unit"):
        assert words in outline.text, words
    assert not {"nan", "inf"} & set(outline.text)
    assert "currentColor" in written  # as the page: legible in light and in dark mode


def test_without_the_extra(tmp_path: Path) -> None:
    """Everything but the report, in a process that finds neither matplotlib nor tqdm."""
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["tqdm"] = None
from fused_lstm import demo
sys.exit(demo.main(sys.argv[1:]))
"""
    done = run("-c", code, "--device", "cpu", "--task", "predictor", "--steps", "3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("pip install 'fused_lstm[demo]'") == 1
    assert "\npredictor " in done.stdout
    assert "Report" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_import_leaves_matplotlib_alone(tmp_path: Path) -> None:
    code = """
import sys, fused_lstm
assert not {"matplotlib", "fused_lstm.demo"} & set(sys.modules)  # torch.hub imports tqdm
"""
    done = run("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run_demo(tmp_path, "--task", "predictor", "--steps", "3") == 0
    printed = capsys.readouterr()
    assert "0/3 [" in printed.err
    assert "%|" not in printed.out


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes(tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(tmp_path, "--steps", "2", "--dtype", dtype) == 0
    assert dtype in capsys.readouterr().out.splitlines()[0]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, whose output is piped."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "ascii",
        "MPLCONFIGDIR": "/dev/null/matplotlib",  # cannot be written
        "PYTHONPATH": str(Path(demo.__file__).parents[2]),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=cwd,
        check=False,
    )


def test_piped(tmp_path: Path) -> None:
    report = tmp_path / "new" / "folder" / "report.html"
    options = ["--device", "cpu", "--task", "predictor", "--steps", "3", "--out", str(report)]
    done = run("-m", "fused_lstm", "demo", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("  step 3   loss: FusedLSTM ") for line in lines) == 1
    assert any(line.startswith("predictor") and line.endswith("yes") for line in lines)
    assert report.stat().st_size > 10_000


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_models_are_saved_frozen(tmp_path: Path, weights: str, capsys) -> None:
    """What stands in both files of a task gives back the outputs that stand in the second."""
    safetensors = pytest.importorskip("safetensors.torch")
    folder = tmp_path / "models"
    options = ["--steps", "3", "--save", str(folder), "--weights", weights]
    assert run_demo(tmp_path, *options) == 0
    printed = capsys.readouterr().out
    for words in (
        "trained  frozen, float32  frozen, bfloat16  frozen, int8",
        "Frozen, in " + weights,
    ):
        assert words in printed
    for name, kind in TASKS.items():
        task = kind(CPU, torch.float32)
        model = freeze(task.build(FusedLSTM), weights)
        model.load_state_dict(safetensors.load_file(folder / f"{name}.safetensors"))
        titles, *lines = (folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        width = titles.split(",").index("y0")
        rows = [[float(value) for value in line.split(",")] for line in lines]
        example = torch.tensor([row[:width] for row in rows])[None]  # [1, T, D]
        assert torch.equal(example, task.example())
        if name == "classifier":
            outputs = torch.cat([model(example[:, : t + 1]) for t in range(len(rows))])
            found = [row[width:] for row in rows]
        else:
            outputs = (
                model.generate(example, 24, example[:, -1, :1])
                if name == "forecaster"
                else model(example)
            )
            found = rows[-1][width:]
            assert all(len(row) == width for row in rows[:-1])
        torch.testing.assert_close(torch.tensor(found).flatten(), outputs.flatten())


def test_saving_without_safetensors(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["safetensors"] = None
from fused_lstm import demo
sys.exit(demo.main(sys.argv[1:]))
"""
    done = run("-c", code, "--save", "models", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'fused_lstm[interchange]'" in done.stderr
    assert not list(tmp_path.iterdir())
