"""The tables of serving: times, errors, latencies, targets; README's rows."""

from benchmarks.cases import SERVING_README_CASES
from benchmarks.markdown import markdown
from benchmarks.results import Record
from benchmarks.serving.records import FORMATS, TITLES, ours
from benchmarks.serving.targets import TARGETS, outcome

PEERS = [name for name in TITLES if not name.startswith(("frozen-", "stream-"))]
GAINS = (("nn", "float32"), ("onnxruntime", "float32"), ("onnxruntime-int8", "int8"))
STAC = "stac-like: the sizes of STAC-ML's models, and nothing else of it; no audited STAC result."
BUSY = 1.05  # a wall time over so many times the thread's own


def text(records: list[Record]) -> str:
    """All tables of a machine's records."""
    parts = [
        "Serving: microseconds a call, frozen layers as streams where T is 1 (share of the limit)",
        times(records),
        STAC if any("stac-like" in r["group"] for r in records) else "",
        "Largest absolute error of an output, beside float64",
        errors(records),
        "Microseconds of single steps: p50 / p99 / p99.9 / worst",
        latencies(records),
        "Targets: the worst case, or the mean",
        targets(records),
        busy(records),
    ]
    return "\n".join(part for part in parts if part)


def times(records: list[Record]) -> str:
    """A row a case: medians of each implementation, ~ for a wide spread, and gains."""
    peers = [name for name in PEERS if any(name in r["us"] for r in records)]
    header = ["", *(TITLES[name] for name in peers), *FORMATS]
    gains = [(peer, weights) for peer, weights in GAINS if peer in peers]
    header += [f"{TITLES[peer]} / {weights}" for peer, weights in gains]
    lines = [header, ["---"] * len(header)]
    for r in records:
        row = [call(r), *(_time(r, name) for name in peers)]
        for weights in FORMATS:
            limit = r["limit"].get(weights)
            share = f" ({100 * limit['share']:.0f} %)" if limit else ""
            row.append(_time(r, ours(r, weights)) + share)
        row += [_gain(r, peer, weights) for peer, weights in gains]
        lines.append(row)
    return markdown(lines)


def errors(records: list[Record]) -> str:
    """A row a case."""
    peers = [name for name in PEERS if any(name in r["error"] for r in records)]
    header = ["", *(TITLES[name] for name in peers), *FORMATS]
    lines = [header, ["---"] * len(header)]
    for r in records:
        names = [*peers, *(ours(r, weights) for weights in FORMATS)]
        cells = (f"{r['error'][name]:.1e}" if name in r["error"] else "" for name in names)
        lines.append([call(r), *cells])
    return markdown(lines)


def latencies(records: list[Record]) -> str:
    """A row a case that has them, with how many steps were timed and how many were interrupted."""
    records = [r for r in records if "latency" in r]
    names = [name for name in TITLES if any(name in r["latency"]["us"] for r in records)]
    header = ["", "steps each", *(TITLES[name] for name in names), "preemptions"]
    lines = [header, ["---"] * len(header)]
    for r in records:
        found = r["latency"]
        cells = (" / ".join(f"{us:g}" for us in found["us"].get(name, ())) for name in names)
        preemptions = sum(found["preemptions"].values())
        lines.append([call(r), f"{found['steps']:,}", *cells, f"{preemptions}"])
    return markdown(lines) if records else ""


def targets(records: list[Record]) -> str:
    """A row a target: asked, reached, met or not, the worst case."""
    lines = [["", "asked", "reached", "", "worst case"], ["---"] * 5]
    for target in TARGETS:
        if found := outcome(target, records):
            asked = f"{'<=' if target.is_most else '>='} {target.asked:g}{target.unit}"
            verdict = "met" if found.is_met else "not met"
            if found.missed:
                side = "above" if target.is_most else "below"
                verdict += f", {found.missed} of {found.records} {side}"
            reached = f"{found.reached:.4g}{target.unit}"
            lines.append([target.name, asked, reached, verdict, found.worst["name"]])
    return markdown(lines)


def busy(records: list[Record]) -> str:
    """Whether the machine had other work: on one thread wall and thread time are then apart."""
    names = [
        r["name"]
        for r in records
        if r["threads"] == 1 and any(r["us"][n][1] > BUSY * us for n, us in r["cpu_us"].items())
    ]
    if not names:
        return ""
    count = f"{len(names)} of {sum(r['threads'] == 1 for r in records)} cases on one thread"
    return f"The machine was not idle: wall time is over thread CPU time by 5 % in {count}."


def every_time(r: Record) -> str:
    """One case in full: each implementation's quartiles, CPU time and error."""
    lines = [["", "us: quartiles", "thread CPU us", "error"], ["---"] * 4]
    for name, us in r["us"].items():
        cells = [" / ".join(f"{t:g}" for t in us), f"{r['cpu_us'][name]:g}"]
        lines.append([TITLES[name], *cells, f"{r['error'][name]:.1e}"])
    return f"{r['name']}, {r['rounds']} rounds\n{markdown(lines)}"


def readme_rows(records: list[Record]) -> list[str]:
    """README's table of serving; no line without a case of it."""
    by_name = {r["name"]: r for r in records}
    shown = [by_name[name] for name in SERVING_README_CASES if name in by_name]
    if not shown:
        return []
    header = ["nn.LSTM us", "onnxruntime us", *(f"frozen {weights} us" for weights in FORMATS)]
    lines = [f"| serving (CPU, 1 thread) | {' | '.join(header)} |", "|---" + "|--:" * 5 + "|"]
    for r in shown:
        names = ["nn", "onnxruntime", *(ours(r, weights) for weights in FORMATS)]
        lines.append(f"| {call(r)} | {' | '.join(_time(r, name) for name in names)} |")
    return lines


def call(r: Record) -> str:
    """What a case calls, such as ``sequence, B 1, T 20, H 64``."""
    kind = r["group"].removeprefix("serving-")
    sizes = [f"B {r['batch']}", f"T {r['steps']}"]
    sizes += [f"D {r['input_size']}"] * (r["input_size"] != r["hidden_size"])
    sizes += [f"H {r['hidden_size']}"] + [f"{r['num_layers']} layers"] * (r["num_layers"] > 1)
    sizes += ["bidirectional"] * r["bidirectional"]
    sizes += [f"{r['threads']} threads"] * (r["threads"] > 1)
    return ", ".join([kind, *sizes])


def _time(r: Record, name: str) -> str:
    return f"{r['us'][name][1]:,g}" + " ~" * (name in r["wide"]) if name in r["us"] else ""


def _gain(r: Record, peer: str, weights: str) -> str:
    us = r["us"]
    return f"{us[peer][1] / us[ours(r, weights)][1]:.2f}x" if peer in us else ""
