"""What `evspec bench gpu` found: figures beside their goals, kept in a file line by line, and their table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from evspec_ros.errors import EvspecError


@dataclass(frozen=True)
class Figure:
    """One thing that was measured. value: None where it cannot be measured on this device; at_most, at_least:
    the goal, None without one; note: what stands behind it.
    """

    name: str
    value: float | None
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def goal(self) -> str:
        """The goal as it is read."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    @property
    def met(self) -> bool | None:
        """Whether the goal is; None without goal or value."""
        if self.value is None or not self.goal:
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True, eq=False)
class Measurement:
    """A row of the bench: some figures that are measured together. seconds: what it takes at most, at full
    size on a GPU, so that one that the time does not suffice for is not begun.
    """

    name: str
    seconds: float
    measure: Callable[[], Sequence[Figure]]


@dataclass(frozen=True)
class GpuReport:
    """begun: machine, torch, device and shape; figures: by the row's name; left_out: rows without figures,
    and why.
    """

    begun: Mapping[str, str]
    figures: Mapping[str, tuple[Figure, ...]]
    left_out: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            **self.begun,
            "rows": {name: [one.as_dict() for one in found] for name, found in self.figures.items()},
            "left_out": dict(self.left_out),
        }


class FigureFile:
    """Rows in a file: a line of what was measured where, then a line for each row as soon as it is known."""

    def __init__(self, path: Path, begun: Mapping[str, str]) -> None:
        """Raises EvspecError where the file holds rows of something else, or no rows."""
        self._path = path
        self.figures: dict[str, tuple[Figure, ...]] = {}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(begun)
            return
        text = path.read_text(encoding="utf-8")
        lines = list(_lines(text))
        if not lines or lines[0] != begun:
            raise EvspecError(
                f"{path} holds rows of another machine, shape or version of torch; name another file "
                "(--write) or remove this one."
            )
        if not text.endswith("\n"):  # an interruption cut the last line short
            path.write_text(text + "\n", encoding="utf-8")
        for row in lines[1:]:
            self.figures[row["row"]] = tuple(Figure(**figure) for figure in row["figures"])

    def add(self, name: str, figures: Sequence[Figure]) -> None:
        """A row is known, and stays so whatever happens next."""
        self.figures[name] = tuple(figures)
        self._append({"row": name, "figures": [asdict(one) for one in figures]})

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise EvspecError(f"{self._path} cannot be written ({error.strerror}).") from error


def measure_all(
    rows: Iterable[Measurement], file: FigureFile, seconds: float, say: Callable[[str], None]
) -> dict[str, str]:
    """Measure the rows that the file lacks for as long as the time suffices; which were left out, and why.
    One that fails is left out, and the others go on.
    """
    until, left_out = monotonic() + seconds, dict[str, str]()
    for row in rows:
        if row.name in file.figures:
            continue
        left = until - monotonic()
        if row.seconds > left:
            left_out[row.name] = (
                f"no time: it may take {row.seconds:.0f} s, and {max(0.0, left):.0f} s are left"
            )
            continue
        say(row.name)
        try:
            file.add(row.name, row.measure())
        except (
            EvspecError,
            RuntimeError,
        ) as error:  # torch raises RuntimeErrors, where memory is short as well
            left_out[row.name] = f"failed: {' '.join(str(error).split())[:300]}"
    return left_out


def print_figures(report: GpuReport) -> None:
    """A table on stdout, and what is missing in it."""
    console = Console(highlight=False)
    begun = report.begun
    title = f"{begun['machine']}, torch {begun['torch']}, shape {begun['shape']}"
    columns = ("row", "figure", "value", "unit", "goal", "met", "note")
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE, padding=0)
    table.columns[2].justify = "right"
    for name, figures in report.figures.items():
        for figure in figures:
            value = "" if figure.value is None else f"{figure.value:.4g}"
            met = "" if figure.met is None else ("no", "yes")[figure.met]
            table.add_row(name, figure.name, value, figure.unit, figure.goal, met, figure.note)
    console.print(table)
    for name, reason in report.left_out.items():
        console.print(f"{name} was left out, {reason}.", soft_wrap=True)


def _lines(text: str) -> Iterator[dict[str, Any]]:
    """The whole lines; one that an interruption cut short is no row."""
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)
