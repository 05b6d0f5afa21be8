"""Charts as SVG text. Colours and type come from the style sheet of the page they stand in."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

WIDTH = 680
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 30, 42  # margins around what is plotted

# Anchors of the colour maps, evenly spaced, as red, green, blue: dark to bright for 0 to 1, and
# through a neutral grey for -1 to 1.
SEQUENTIAL = ((28, 22, 68), (67, 56, 142), (44, 118, 163), (52, 176, 142), (168, 219, 88))
DIVERGING = ((36, 86, 178), (128, 168, 224), (232, 232, 236), (238, 170, 108), (190, 78, 24))


@dataclass(frozen=True)
class Line:
    """A line of a chart; ``look`` is its class in the style sheet, "dots" leaves it unjoined."""

    label: str
    look: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """A heat map under a chart's time axis: rows of values, 0 to 1 or, if signed, -1 to 1."""

    label: str
    rows: Tensor  # [rows, T]
    signed: bool = False


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """An SVG element; ``class_`` and ``text_anchor`` become class and text-anchor."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_number(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def drawing(height: float, title: str, content: str, width: float = WIDTH) -> str:
    """A whole SVG image, as wide as the column it stands in, ``title`` read out in its place."""
    return element(
        "svg",
        element("title", escape(title)) + content,
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        role="img",
    )


def text(x: float, y: float, words: str, anchor: str = "start", look: str = "") -> str:
    return element("text", escape(words), x=x, y=y, text_anchor=anchor, class_=look or "plain")


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    height: float = 260,
) -> str:
    """Lines over each other on common axes, a legend above them. With ``log``, y is by decades."""
    xs = [x for line in lines for x in line.xs]
    ys = [y for line in lines for y in line.ys if math.isfinite(y) and (y > 0 or not log)]
    ys = ys or [1.0]
    if log:
        low, high = min(ys) / 1.3, max(ys) * 1.3
        ticks = _decades(low, high)
    else:
        ticks = _round_steps(min(ys), max(ys))
        low, high = ticks[0], ticks[-1]
    bottom = height - BOTTOM
    across = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = (
        _scale(math.log(low), math.log(high), bottom, TOP)
        if log
        else _scale(low, high, bottom, TOP)
    )

    def place(y: float) -> float:
        return up(math.log(y)) if log else up(y)

    parts = []
    for tick in ticks:
        parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=place(tick),
                             y2=place(tick)))  # fmt: skip
        parts.append(text(LEFT - 8, place(tick) + 4, _tick(tick, log), "end", "tick"))
    for tick in _round_steps(min(xs), max(xs)):
        if min(xs) <= tick <= max(xs):
            parts.append(text(across(tick), bottom + 18, _tick(tick), "middle", "tick"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "middle", "label"))
    parts.append(text(2, TOP - 12, y_label, "start", "label"))
    parts.append(_legend(lines))
    for line in lines:
        points = [
            f"{_number(across(x))} {_number(place(y))}"
            for x, y in zip(line.xs, line.ys, strict=True)
            if math.isfinite(y) and (y > 0 or not log)
        ]
        d = "".join(f"M{at}h0" for at in points) if line.look == "dots" else "M" + "L".join(points)
        if points:
            parts.append(element("path", class_=f"line {line.look}", d=d))
    return drawing(height, title, "".join(parts))


def matrix(counts: Tensor, title: str, row_label: str, column_label: str) -> str:
    """A square table of counts [n, n], each cell's ink the share of its row."""
    n, cell, left, top = len(counts), 38, 70, 34
    parts = [
        text(left + n * cell / 2, 12, column_label, "middle", "label"),
        element("text", escape(row_label), class_="label", text_anchor="middle",
                transform=f"translate(14 {top + n * cell / 2}) rotate(-90)"),
    ]  # fmt: skip
    for row in range(n):
        parts.append(text(left - 10, top + row * cell + 24, str(row + 1), "end", "tick"))
        parts.append(text(left + row * cell + 19, top - 7, str(row + 1), "middle", "tick"))
        total = max(int(counts[row].sum()), 1)
        for column in range(n):
            count = int(counts[row, column])
            x, y = left + column * cell, top + row * cell
            look = "hit" if row == column else "miss"
            parts.append(element("rect", class_="cell", x=x, y=y, width=cell - 2, height=cell - 2))
            if count:
                ink = 0.25 + 0.75 * count / total
                parts.append(element("rect", class_=look, x=x, y=y, width=cell - 2, height=cell - 2,
                                     fill_opacity=ink))  # fmt: skip
                bright = "on-ink" if ink > 0.6 else "plain"
                parts.append(text(x + 18, y + 23, str(count), "middle", bright))
    size = n * cell
    return drawing(top + size + 4, title, "".join(parts), left + size + 4)


def heat_maps(
    signal: Tensor, panels: Sequence[Panel], title: str, signal_label: str, x_label: str
) -> str:
    """A signal [T, D] and, under it on the same time axis, one heat map a panel."""
    steps = len(signal)
    tall, gap, first = 84.0, 10.0, 74.0
    inner = WIDTH - LEFT - RIGHT
    across = _scale(0, steps, LEFT, WIDTH - RIGHT)
    up = _scale(signal.min().item(), signal.max().item(), first, 6)
    parts = [text(LEFT - 8, first / 2 + 4, signal_label, "end", "label")]
    for feature in range(signal.size(1) - 1, -1, -1):
        points = " ".join(
            f"{_number(across(step + 0.5))},{_number(up(value))}"
            for step, value in enumerate(signal[:, feature].tolist())
        )
        look = "truth" if feature == 0 else "faint"
        parts.append(element("polyline", class_=f"line {look}", points=points))
    y = first + gap
    for panel in panels:
        parts.append(text(LEFT - 8, y + tall / 2 + 4, panel.label, "end", "label"))
        parts.append(element("image", x=LEFT, y=y, width=inner, height=tall,
                             preserveAspectRatio="none", href=_picture(panel)))  # fmt: skip
        y += tall + gap
    for tick in _round_steps(0, steps):
        if tick <= steps:
            parts.append(text(across(tick), y + 8, _tick(tick), "middle", "tick"))
    parts.append(text(LEFT + inner / 2, y + 28, x_label, "middle", "label"))
    return drawing(y + 34, title, "".join(parts))


def _legend(lines: Sequence[Line]) -> str:
    """The lines' names, right to left along the top edge."""
    parts, x = [], float(WIDTH - RIGHT)
    for line in reversed(lines):
        if not line.label:
            continue
        parts.append(text(x, TOP - 12, line.label, "end", "tick"))
        x -= 7 * len(line.label) + 10
        parts.append(
            element("line", class_=f"line {line.look}", x1=x - 20, x2=x, y1=TOP - 16, y2=TOP - 16)
        )
        x -= 38
    return "".join(parts)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of low..high to start..end."""
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _round_steps(low: float, high: float) -> list[float]:
    """About five round numbers over low..high, from one at most low to one at least high."""
    rough = (high - low or abs(high) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """The powers of ten within low..high, six at most, with 2 and 5 times them if there are few."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    stride = max(1, math.ceil((last - first) / 5))
    factors = (1, 2, 5) if last - first < 2 else (1,)
    ticks = [
        factor * 10.0**power for power in range(first - 1, last + 1, stride) for factor in factors
    ]
    return [tick for tick in ticks if low <= tick <= high]


def _tick(value: float, log: bool = False) -> str:
    return f"{value:.0e}" if log and not 1e-3 <= value <= 1e3 else f"{value:.6g}"


def _number(value: object) -> str:
    """A coordinate without needless digits; anything else as it is."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value}"


def _picture(panel: Panel) -> str:
    """The panel's values as a PNG image, one pixel a value, in a data URI."""
    anchors = torch.tensor(DIVERGING if panel.signed else SEQUENTIAL, dtype=torch.float32)
    values = panel.rows.float().clamp(-1, 1)
    position = (values / 2 + 0.5 if panel.signed else values.clamp(min=0)) * (len(anchors) - 1)
    below = position.long().clamp(max=len(anchors) - 2)
    share = (position - below)[..., None]
    pixels = anchors[below] * (1 - share) + anchors[below + 1] * share  # [rows, T, 3]
    scanlines = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels.byte())

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width = panel.rows.shape
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(scanlines, 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()
