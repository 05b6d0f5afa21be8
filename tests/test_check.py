"""python -m fused_lstm check: what it prints, and that it sees a fault."""

from __future__ import annotations

import os

import pytest
import torch
from test_persistent import EMULATOR

from fused_lstm import check
from fused_lstm.check import Row, Shape, Times

EMULATED = os.environ.get("FUSED_LSTM_EMULATED") == "1"
SMALL = Shape(batch=3, length=4, hidden=20, checked_length=4, input=5)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(check.SHAPES, "cpu", (SMALL,))
    monkeypatch.setattr(check, "SECONDS", 0.001)


@pytest.fixture
def wrong_gate(monkeypatch):
    """The reference with a forget gate that is open a little too far."""
    layer = check.reference.layer

    def wrong(input, h_0, c_0, weights, **options):
        weights = [w + 0.3 if w.dim() == 1 else w for w in weights]
        return layer(input, h_0, c_0, weights, **options)

    monkeypatch.setattr(check.reference, "layer", wrong)


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_all_right(capsys):
    assert check.main(["--device", "cpu"]) == 0
    out = lines(capsys)
    assert out[-1] == "All right."
    found = [line.split()[:1] + line.split()[6:7] for line in out[4:-1]]
    assert found == [[d, "right"] for d in ("float64", "float32", "float16", "bfloat16")]


def test_a_fault_is_seen(capsys, wrong_gate):
    assert check.main(["--device", "cpu", "--no-times"]) == 1
    out = lines(capsys)
    assert out[-1] == "4 wrong"
    assert all("WRONG" in line and " away, must be within " in line for line in out[4:-1])


def test_a_fault_in_the_gradients_alone_is_seen(monkeypatch):
    """Every result is compared, the calls with lengths and resets included."""
    results = check.results

    def wrong(module, *call, **options):
        found = results(module, *call, **options)
        if module.bidirectional and module.weight_ih_l0.dtype != torch.float64:
            found["the gradient of bias_hh_l0_reverse"] *= 1.5
        return found

    monkeypatch.setattr(check, "results", wrong)
    (row,) = [row for row in check.rows("cpu", None, (SMALL,), False) if row.precision == "float32"]
    assert row.fault.startswith("the gradient of bias_hh_l0_reverse is 5.0e-01 away")
    assert row.fault.endswith("2 directions with lengths and resets")


def test_an_error_is_a_fault(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("an illegal memory access\nand more")

    monkeypatch.setattr(check, "results", refuse)
    rows = list(check.rows("cpu", None, (SMALL,), False))
    assert {row.fault for row in rows} == {"an illegal memory access"}


def test_a_line():
    row = Row("tf32", SMALL, "grid", True, ours=Times(2.0, 5.0), peer=Times(4.0, 5.0))
    assert (
        str(row)
        == "tf32        3    4   20  1  grid*     right       2.00   2.00x     5.00   1.00x"
    )
    row = Row("tf32", SMALL, "block", False, obstacle="too large")
    assert str(row) == "tf32        3    4   20  1  block     -        too large"


@pytest.mark.skipif(not EMULATED, reason="runs the CUDA kernels on CPU tensors")
def test_every_kernel_of_a_gpu():
    shapes = (SMALL, SMALL._replace(layers=3))
    rows = list(check.rows("cpu", EMULATOR, shapes, False))
    assert len(rows) == 2 * 5 * 4
    assert not [row for row in rows if row.fault]
    cannot = {(row.precision, row.kernel) for row in rows if row.obstacle}
    assert cannot == {("float64", kernel) for kernel in ("block", "cluster", "grid")}
