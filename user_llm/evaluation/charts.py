"""Line charts as geometry: from numbers to positions in an SVG, which a template then draws."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

WIDTH, HEIGHT = 330, 200
LEFT, TOP, BOTTOM = 42, 26, 158  # the plot's borders; its right one leaves room for the names
NAME_WIDTH = 7.0  # of a letter of a line's name, in a wide font
NAME_HEIGHT = 13  # the least distance between two lines' names
MOST_MARKERS = 25  # points of a line that are drawn one by one

Scale = Literal["linear", "log"]
Number = int | float
Points = Sequence[tuple[Number, Number]]


class Palette(NamedTuple):
    """The colors of a chart that is a file of its own."""

    paper: str
    ink: str
    soft: str
    grid: str
    axis: str
    lines: tuple[str, ...]


LIGHT = Palette(
    paper="#ffffff",
    ink="#222222",
    soft="#555555",
    grid="#e4e4e4",
    axis="#999999",
    lines=("#1f5fa8", "#b4552d", "#3f8f5f", "#7a5aa6", "#77726a", "#b08a1e", "#a8386b"),
)
DARK = Palette(
    paper="#0d1117",
    ink="#e6edf3",
    soft="#9198a1",
    grid="#262c36",
    axis="#6e7681",
    lines=("#79b3e8", "#e2a15f", "#7cc79b", "#c09ae0", "#a39e95", "#d9c05f", "#ee8fb4"),
)


@dataclass(frozen=True)
class Axis:
    """One dimension of a chart: what it shows, and from where to where."""

    label: str
    low: Number
    high: Number
    ticks: tuple[Number, ...]
    scale: Scale = "linear"

    @staticmethod
    def over(values: Iterable[Number], label: str, scale: Scale = "linear") -> "Axis":
        """The axis that holds the values; from zero, where that costs less than half of it."""
        values = list(values)
        low, high = min(values), max(values)
        if scale == "log":
            low, high = float(f"{1 / _step(1 / low):.1g}"), _step(high)  # without rounding errors
            high = high if high > 1.5 * low else _step(1.5 * high)
            return Axis(label, low, high, _log_ticks(low, high), scale)
        if 0 <= low < high / 2 or low == high >= 0:
            low = 0.0
        step = _step((high - low or 1.0) / 4)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        high = high if high > low else low + step
        count = round((high - low) / step)
        return Axis(label, low, high, tuple(low + i * step for i in range(count + 1)))

    def until(self, high: Number) -> "Axis":
        """The axis cut off where the values end."""
        return replace(
            self, high=high, ticks=tuple(t for t in self.ticks if t <= high * (1 + 1e-9))
        )

    def __call__(self, value: Number) -> float:
        """Where the value lies between the ends of the axis, 0 to 1."""
        f = math.log if self.scale == "log" else float
        return (f(value) - f(self.low)) / (f(self.high) - f(self.low))


@dataclass(frozen=True)
class Line:
    """One series, drawn."""

    name: str
    path: str
    markers: tuple[tuple[float, float, str], ...]  # x, y, and what it says
    name_y: float


@dataclass(frozen=True)
class Chart:
    """A line chart, drawn on a canvas of `WIDTH` x `HEIGHT`."""

    x: Axis
    y: Axis
    right: Number
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    summary: str  # for those who cannot see it


def line_chart(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    *,
    from_zero: bool = False,
) -> Chart | None:
    """The chart of the series by name, or None if they have no point that can be drawn.

    What is not finite, or not positive on a logarithmic scale, leaves a gap in its line. What goes
    up `from_zero` looks alike where it hardly differs.
    """

    def shown(point: tuple[Number, Number]) -> bool:
        pairs = zip(point, (x_scale, y_scale), strict=True)
        return all(math.isfinite(v) and (s == "linear" or v > 0) for v, s in pairs)

    series = {name: points for name, points in series.items() if any(map(shown, points))}
    if not series:
        return None
    visible = [point for points in series.values() for point in points if shown(point)]
    x = Axis.over((a for a, _ in visible), x_label, x_scale)
    last = max(a for a, _ in visible)
    x = x.until(last) if x_scale == "linear" and last > x.low else x
    heights = [b for _, b in visible]
    y = Axis.over([0, *heights] if from_zero else heights, y_label, y_scale)
    names = max(map(len, series)) * NAME_WIDTH + 8 if len(series) > 1 else 12
    right = WIDTH - max(names, len(say(x.high)) * NAME_WIDTH / 2)  # half of a tick's own

    def place(point: tuple[Number, Number]) -> tuple[float, float]:
        across = LEFT + x(point[0]) * (right - LEFT)
        return round(across, 1), round(BOTTOM - y(point[1]) * (BOTTOM - TOP), 1)

    ends = {n: place([p for p in points if shown(p)][-1])[1] for n, points in series.items()}
    name_y = _apart(ends)
    lines = []
    for name, points in series.items():
        path, pen = [], "M"
        for point in points:
            if shown(point):
                path.append(f"{pen}{place(point)[0]} {place(point)[1]}")
            pen = "L" if shown(point) else "M"
        some = [point for point in points if shown(point)]
        few = some if len(points) <= MOST_MARKERS else some[-1:]
        markers = tuple((*place(p), f"{name}: {say(p[1])} at {say(p[0])}") for p in few)
        lines.append(Line(name, " ".join(path), markers, name_y[name]))
    return Chart(
        x,
        y,
        right,
        tuple(lines),
        _thinned([(place((tick, y.low))[0], say(tick)) for tick in x.ticks]),
        tuple((place((x.low, tick))[1], say(tick)) for tick in y.ticks),
        f"{y_label} against {x_label}. " + "; ".join(line.markers[-1][2] for line in lines),
    )


def say(value: Number) -> str:
    """A number in as few digits as it needs, at most four that count; `20,000` and `0.313`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def _step(rough: Number) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _log_ticks(low: Number, high: Number) -> tuple[float, ...]:
    """1, 2 and 5 times powers of ten between the ends, or the powers alone; at most six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    ticks = [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
    if len(ticks) > 6:
        ticks = [t for t in ticks if math.log10(t).is_integer()]
    return tuple(ticks[:: math.ceil(len(ticks) / 6)])


def templates() -> Environment:
    """The templates beside this file, which know the measures of a chart and how to say numbers."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"chart": sys.modules[__name__], "say": say, "words": str}
    return environment


def svg(drawn: Chart, palette: Palette = LIGHT) -> str:
    """A chart as a file of its own."""
    names = [line.name for line in drawn.lines]
    template = templates().get_template("chart.svg.jinja")
    return template.render(drawn=drawn, names=names, palette=palette).strip()


def png(drawn: Chart, palette: Palette = LIGHT) -> bytes:
    """The same as pixels, twice as many as its measures.

    Raises:
      ValueError: what draws them is not installed; it says how to mend that.
    """
    try:
        from font_roboto import font_directory
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ValueError(
            "pictures of pixels want resvg-py and font-roboto; pip install 'user-llm[figures]'"
        ) from error
    return svg_to_bytes(
        svg_string=svg(drawn, palette),
        zoom=2.0,
        background=palette.paper,
        skip_system_fonts=True,  # a machine may have none, and words would be left out
        font_dirs=[font_directory],
        sans_serif_family="Roboto",
    )


def _thinned(ticks: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Every tick of an axis from left to right, or every second or third, until none touch."""
    for stride in range(1, len(ticks)):
        kept = ticks[::stride]
        if all(
            right - left > (len(text) + len(following)) / 2 * NAME_WIDTH
            for (left, text), (right, following) in pairwise(kept)
        ):
            return tuple(kept)
    return tuple(ticks[:1])


def _apart(wanted: Mapping[str, float]) -> dict[str, float]:
    """Heights as near as wanted as names can stand without touching, inside the plot."""
    placed: dict[str, float] = {}
    last = -math.inf
    for name in sorted(wanted, key=lambda n: wanted[n]):
        last = placed[name] = max(wanted[name], last + NAME_HEIGHT)
    excess = max(0.0, last - BOTTOM)
    return {name: round(height - excess, 1) for name, height in placed.items()}
