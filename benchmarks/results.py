"""The results file: one a machine, a list of runs, each with its facts and its cases' records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.timing import Spread

Record = dict[str, Any]
Run = dict[str, Any]  # {"facts": {...}, "cases": [Record, ...]}

FOLDER = Path(__file__).resolve().parent / "results"


def record(
    case: Case, spreads: Mapping[str, Spread], rounds: int, limit: float | None = None
) -> Record:
    """What one case's comparison is kept as. Times are microseconds a call.

    ``spreads`` holds "nn" and "fused", and others that took part. ``limit`` is what
    the machine does at most, in the unit of ``case.limit``: GFLOP/s or GB/s.
    """
    kept = {
        "name": case.name,
        **asdict(case),
        "mode": case.mode,
        "rounds": rounds,
        "us": {
            side: [_short(v) for v in (spread.low, spread.median, spread.high)]
            for side, spread in spreads.items()
        },
        "us_per_step": {side: _short(s.median / case.steps) for side, s in spreads.items()},
        "gflops": {side: _short(case.flops / s.median / 1e3) for side, s in spreads.items()},
        "wide": any(spread.wide for spread in spreads.values()),
    }
    for side, spread in spreads.items():
        if side != "fused":
            kept[_ratio_key(side)] = _short(spread.median / spreads["fused"].median)
    if limit is not None:
        work = case.flops if case.limit == "GEMM" else case.weight_bytes
        reached = work / spreads["fused"].median / 1e3
        kept["limit"] = {
            "kind": case.limit,
            "unit": "GFLOP/s" if case.limit == "GEMM" else "GB/s",
            "at_most": _short(limit),
            "reached": _short(reached),
            "share": _short(reached / limit),
        }
    return kept


def case_of(record: Record) -> Case:
    """The case that a record is of; what it was made too early to know has its default."""
    names = {field.name for field in fields(Case)}
    return Case(**{name: value for name, value in record.items() if name in names})


def microseconds(record: Record, side: str = "fused") -> float:
    """The median of a contestant's call."""
    return float(record["us"][side][1])


def ratio(record: Record, over: str = "nn") -> float:
    """How many times longer than FusedLSTM another contestant took."""
    return float(record[_ratio_key(over)])


def has_ratio(record: Record, over: str) -> bool:
    """Whether another contestant took part."""
    return _ratio_key(over) in record


def _ratio_key(over: str) -> str:
    return "ratio" if over == "nn" else f"ratio_{over}"


def load(path: Path) -> list[Run]:
    """The runs of a results file.

    Raises:
        ValueError: the file is not one.
    """
    try:
        runs = json.loads(path.read_text())["runs"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a results file of these benchmarks: {error!r}") from None
    return list(runs)


def save(path: Path, facts: dict[str, Any], records: list[Record]) -> None:
    """Add a run to a machine's file.

    A case measured again is taken out of the run that held it before, so that every figure
    stands once, beside the facts it was measured under.
    """
    earlier = load(path) if path.exists() else []
    fresh = {r["name"] for r in records}
    runs = []
    for run in earlier:
        kept = [r for r in run["cases"] if r["name"] not in fresh]
        if run["facts"] == facts:
            records = kept + records
        elif kept:
            runs.append({"facts": run["facts"], "cases": kept})
    runs.append({"facts": facts, "cases": records})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(_text(runs))
    partial.replace(path)


def _text(runs: list[Run]) -> str:
    """JSON with a line a fact and a line a case, so that git shows what changed."""
    parts = []
    for run in runs:
        facts = json.dumps(run["facts"], indent=2).replace("\n", "\n  ")
        cases = ",\n".join(f"    {json.dumps(r)}" for r in run["cases"])
        parts.append(f'{{\n  "facts": {facts},\n  "cases": [\n{cases}\n  ]\n}}')
    return '{"runs": [' + ",\n".join(parts) + "]}\n"


def _short(value: float) -> float:
    """Four digits, which is more than any timing here is good for."""
    return float(f"{value:.4g}")
