"""fused_lstm.autotune with made-up times: on the CPU, and on the emulator, whose GPU stands in."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from emulated import EMULATED
from oracle import assert_close, evaluate, in_fresh_process, rand
from test_persistent import EMULATOR
from torch.nn.utils.rnn import pack_padded_sequence

import fused_lstm
from fused_lstm import _C, FusedLSTM

autotune = importlib.import_module("fused_lstm.autotune")  # the name in the package is the class's
T, B, D, H = 6, 3, 5, 20
KERNELS = ["block", "cluster", "grid", "stepwise"]


class Times:
    """In the place of the clock: microseconds by kernel, forward and backward."""

    def __init__(self) -> None:
        self.forward = dict(zip(KERNELS, (5.0, 4.0, 3.0, 2.0), strict=True))
        self.backward = dict(zip(KERNELS, (2.0, 3.0, 4.0, 5.0), strict=True))
        self.timed: list[tuple[str, bool]] = []

    def __call__(self, call) -> float:
        result = call()
        kernel, backward = _C.kernel_override(), not isinstance(result[1], list)
        self.timed.append((kernel, backward))
        return (self.backward if backward else self.forward)[kernel]


@pytest.fixture
def times(monkeypatch):
    """An emulated GPU of index 0 in the place of the CPU, and a clock."""
    found = Times()
    monkeypatch.setattr(autotune, "_microseconds", found)
    monkeypatch.setattr(autotune, "_place", lambda x: (0, "emulated", EMULATOR))
    monkeypatch.setattr(autotune, "_indices", lambda name: [0] if name == "emulated" else [])
    monkeypatch.setattr(autotune, "_choices", {})
    yield found
    fused_lstm.autotune(False)
    _C.forget_measured_kernels()


def make(**options) -> tuple[FusedLSTM, torch.Tensor]:
    return FusedLSTM(D, H, **options), rand(T, B, D, dtype=torch.float32)


def chosen(backward: bool = False, length: int = T, **changes) -> str | None:
    """What a later call would run."""
    sizes = {"length": length, "batch": B, "rows": length * B, "input": D, "hidden": H}
    sizes |= {"projection": H, "directions": 1} | changes
    return _C.measured_kernel(0, (list(sizes.values()), backward, 4, False))


def test_off_by_default(times):
    module, x = make()
    module(x)
    assert not times.timed
    assert chosen() is None


def test_the_fastest_of_each_pass_is_remembered(times):
    module, x = make()
    with fused_lstm.autotune():
        module(x)
    assert times.timed == [(k, backward) for backward in (False, True) for k in KERNELS]
    assert (chosen(), chosen(backward=True)) == ("stepwise", "block")


def test_a_problem_is_measured_once(times):
    module, x = make()
    fused_lstm.autotune(True)
    for _ in range(2):
        module(x)
        module(rand(T + 1, B, D, dtype=torch.float32))  # within a factor of two of T
    assert len(times.timed) == 8
    assert chosen(length=7) == "stepwise"
    assert chosen(length=8) is None
    module(rand(8, B, D, dtype=torch.float32))
    assert len(times.timed) == 16
    fused_lstm.autotune(False)
    module(rand(T, B + 1, D, dtype=torch.float32))
    assert len(times.timed) == 16
    assert chosen() == "stepwise"  # what was measured stays


def test_inference_measures_the_forward_alone(times):
    module, x = make()
    with fused_lstm.autotune(), torch.no_grad():
        module(x)
    assert times.timed == [(k, False) for k in KERNELS]


def test_each_layer_and_a_packed_sequence(times):
    module, x = make(num_layers=2, bidirectional=True)
    with fused_lstm.autotune():
        module(pack_padded_sequence(x, torch.tensor([6, 4, 1])))
    problems = list(autotune._choices)
    assert [(p.input, p.backward) for p in problems] == [
        (D, False),
        (D, True),
        (2 * H, False),
        (2 * H, True),
    ]
    assert all(p.packed and p.directions == 2 for p in problems)
    assert chosen(rows=11, directions=2) == "stepwise"
    assert chosen(directions=2) is None  # padded


def test_an_override_goes_first(times):
    module, x = make()
    with fused_lstm.autotune(), fused_lstm.use_kernel("grid"):
        module(x)
    assert not times.timed


def test_nothing_under_compile_or_in_a_transform(times):
    module, x = make()
    with fused_lstm.autotune():
        torch.func.vmap(module, in_dims=1, out_dims=(1, 1))(x)
        module.compile(backend="eager")
        module(x)
    assert not times.timed


def test_numbers_and_the_random_state_stay_the_same(times):
    module, x = make()
    expected = evaluate(module, x)
    state = torch.get_rng_state()
    with fused_lstm.autotune():
        assert_close(evaluate(module, x), {k: v.double() for k, v in expected.items()})
    assert len(times.timed) == 8
    assert torch.equal(torch.get_rng_state(), state)


def test_written_down_and_read(times, tmp_path, monkeypatch):
    module, x = make()
    path = tmp_path / "kernels.json"
    with fused_lstm.autotune(path=path):
        module(x)
    written = json.loads(path.read_text())["problems"]
    assert [entry["kernel"] for entry in written] == ["stepwise", "block"]
    assert written[0]["microseconds"] == times.forward
    monkeypatch.setattr(autotune, "_choices", {})
    _C.forget_measured_kernels()
    with fused_lstm.autotune(path=path):
        assert chosen() == "stepwise"
        module(x)
    assert len(times.timed) == 8


@pytest.mark.parametrize("text", ["", "[]", '{"problems": [{}]}'])
def test_a_file_of_something_else(times, tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"path is '.*', must be a file of autotune"):
        fused_lstm.autotune(path=path)
    assert autotune._hook is None


def test_without_a_gpu_it_does_nothing(tmp_path):
    code = """
        import torch, fused_lstm
        with fused_lstm.autotune():
            fused_lstm.FusedLSTM(3, 4)(torch.zeros(2, 1, 3))
        print("ran")
    """
    assert in_fresh_process(code, tmp_path) == "ran\n"


@pytest.mark.skipif(not EMULATED, reason="counts launches of CUDA kernels")
def test_the_choice_runs(times):
    from emulated import counts

    module, x = make()

    def launches() -> int:
        before = counts().launches
        with torch.no_grad():
            module(x)
        return counts().launches - before

    few = launches()
    with fused_lstm.autotune(), torch.no_grad():
        module(x)
    assert chosen() == "stepwise"
    assert launches() >= few + T - 1
