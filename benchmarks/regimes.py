"""The regimes of a CPU: which cases of IN_REGIMES each has, what is asked, what was reached."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from statistics import geometric_mean

from benchmarks.cases import IN_REGIMES, Case
from benchmarks.results import Record

# "share" of the limit, "us" a call or a ratio's key: asked of each case, of a "mean ..." of all
Asked = dict[str, float]


@dataclass(frozen=True)
class Regime:
    """Cases by what they are; in each mode the least (of "us" the most) that is asked of them."""

    name: str
    has: Callable[[Case], bool]
    inference: Asked
    training: Asked = field(default_factory=dict)


def _wide(c: Case) -> bool:
    return c.batch >= 24 and c.hidden_size >= 200


def _narrow(c: Case) -> bool:
    return c.model == "layer" and 1 < c.batch <= 32 and c.hidden_size <= 64


_STEP = {"ratio": 3.0, "ratio_onnxruntime": 1.5}
REGIMES = (
    Regime(
        "float32, B >= 24, H >= 200",
        lambda c: _wide(c) and c.dtype == "float32",
        {"share": 0.78, "ratio": 1.0, "ratio_onnxruntime": 0.95},
        {"share": 0.75, "ratio": 1.05, "mean ratio": 1.15},
    ),
    Regime(
        "float32, B >= 24, H > 200",
        lambda c: _wide(c) and c.dtype == "float32" and c.hidden_size > 200,
        {"share": 0.85},
        {"share": 0.85},
    ),
    Regime(
        "bfloat16, B >= 24, H >= 200",
        lambda c: _wide(c) and c.dtype == "bfloat16",
        {"share": 0.75, "ratio": 1.0, "mean ratio": 1.2},
        {"share": 0.68, "ratio": 1.0, "mean ratio": 1.2},
    ),
    Regime(
        "B <= 32, H <= 64, sequences",
        _narrow,
        {"share": 0.55, "ratio": 1.3, "ratio_onnxruntime": 1.2},
        {"share": 0.48, "ratio": 1.3},
    ),
    Regime(
        "B 1, T >= 37",
        lambda c: c.batch == 1 and c.steps >= 37,
        {"share": 0.8, "ratio": 1.3, "ratio_onnxruntime": 1.0},
        {"share": 0.8, "ratio": 1.3},
    ),
    Regime("B 1, T 1, H <= 96", lambda c: c.steps == 1 and not c.cold, {"us": 10, **_STEP}),
    Regime("B 1, T 1, H <= 96, cold", lambda c: c.cold, {"us": 25, **_STEP}),
    Regime(
        "packed, lengths 1:4",
        lambda c: c.packed,
        {"ratio_padded": 1.0, "ratio": 1.5},
        {"ratio_padded": 1.0, "ratio": 3.0},
    ),
    Regime("task models", lambda c: c.model != "layer", {"ratio": 1.3}, {"ratio": 1.3}),
    Regime("any shape", lambda c: True, {"ratio": 1.0}, {"ratio": 1.0}),
    Regime(
        "the odd set",
        lambda c: c.group == "odd-set",
        {"mean ratio": 1.45, "mean ratio_onnxruntime": 1.1},
        {"mean ratio": 1.4},
    ),
)


def records_in(regime: Regime, mode: str, records: list[Record]) -> list[Record]:
    """The records of a regime; where a share is asked, only those that have that limit."""
    chosen = [r for r in records if r["name"].startswith(IN_REGIMES) and r["mode"] == mode]
    cases = [Case(**{f.name: r[f.name] for f in fields(Case) if f.name in r}) for r in chosen]
    return [
        r
        for c, r in zip(cases, chosen, strict=True)
        if c.device == "cpu" and regime.has(c)
        if "share" not in getattr(regime, mode) or r.get("limit", {}).get("kind") == c.limit
    ]


def outcome(key: str, asked: float, records: list[Record]) -> tuple[float, bool, Record] | None:
    """What the worst record reached, or the mean; whether it misses what is asked; that record.

    None if the records do not have it.
    """
    of_each = key.removeprefix("mean ")
    values = {"share": lambda r: r["limit"]["share"], "us": lambda r: r["us"]["fused"][1]}
    value = values.get(of_each, lambda r: r.get(of_each))
    found = [r for r in records if value(r) is not None]
    if not found:
        return None
    worst = (max if key == "us" else min)(found, key=value)
    reached = value(worst) if key == of_each else geometric_mean(map(value, found))
    return reached, reached > asked if key == "us" else reached < asked, worst
