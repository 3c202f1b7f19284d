"""What a report is made of: sections of text, tables, charts and pictures. The template alone knows HTML."""

import base64
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# Rows of CT slices keep panels of this height on a phone, up to this width.
_PANEL_PX, _WIDEST_PX = 170, 900
_LABELLED_CHART_PX = 620


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        detail: smaller, below it.
        mark: "best", "better", "worse" or "".
        heat: 0 (as it should be) to 1 (as bad as can be), for its shade; None for none.
    """

    text: str
    detail: str = ""
    mark: str = ""
    heat: float | None = None


@dataclass(frozen=True)
class Row:
    """A row; a reference row is greyed."""

    name: str
    cells: Sequence[Cell]
    reference: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first heading is that of the rows' names.

    Attributes:
        label: what the table holds, for readers who do not see it.
        headings: of the columns.
        rows: below them.
        above: (heading, columns that it spans) above the headings, from the second column on.
    """

    label: str
    headings: Sequence[str]
    rows: Sequence[Row]
    above: Sequence[tuple[str, int]] = ()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Text:
    """A paragraph, or the points of a list."""

    lines: Sequence[str]
    listed: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: str = field(default="heading", init=False)


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        title: above it, or "".
        caption: below it.
        alt: its content in words.
        png: the file.
        chart: drawn on white, so that a dark page turns it.
        wide: a chart with labels inside, that a phone must not shrink.
    """

    title: str
    caption: str
    alt: str
    png: bytes
    chart: bool = False
    wide: bool = False

    @property
    def least_width_px(self) -> int:
        """Width in CSS pixels below which it scrolls in its own box; 0 for one that a phone shows whole."""
        # Width and height are the first fields of the header (PNG specification, 11.2.1).
        width, height = struct.unpack(">II", self.png[16:24])
        ratio = width / height
        if self.chart:
            return _LABELLED_CHART_PX if self.wide else 0
        return min(round(ratio * _PANEL_PX), _WIDEST_PX) if ratio > 2.0 else 0

    @property
    def data(self) -> str:
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Pictures:
    """Pictures beside each other where there is room."""

    pictures: Sequence[Picture]
    kind: str = field(default="pictures", init=False)


@dataclass(frozen=True)
class Folded:
    """Blocks that open on demand."""

    summary: str
    blocks: Sequence["Block"]
    kind: str = field(default="folded", init=False)


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    items: Sequence[tuple[str, str]]
    kind: str = field(default="facts", init=False)


Block = Table | Text | Heading | Pictures | Folded | Facts


@dataclass(frozen=True)
class Section:
    """A part of the report; `key` is its address in the page, `short` its name in the list of contents."""

    key: str
    short: str
    title: str
    blocks: Sequence[Block]


def number(value: float | None, form: str) -> str:
    """A value as `format` writes it; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def interval(low: float | None, high: float | None, form: str) -> str:
    """Both ends in brackets."""
    return f"[{number(low, form)}, {number(high, form)}]"


def percent(share: float | None) -> str:
    """A share of 1 in percent."""
    return "–" if share is None or not math.isfinite(share) else f"{100.0 * share:.3g} %"


def percent_interval(low: float, high: float) -> str:
    """Both ends of a rate's interval, in percent of one digit's worth."""
    return f"[{number(100.0 * low, '.0f')}, {number(100.0 * high, '.0f')}]"


def words(parts: Sequence[str]) -> str:
    """Names as a list in a sentence."""
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
