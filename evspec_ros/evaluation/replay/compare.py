"""`evspec eval --compare A B`: two runs side by side, window by window, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.replay.store import Row, RunFolder

CONFIDENCE = 0.95
RESAMPLES = 2000
FIGURES: dict[str, Callable[[Row], float | None]] = {
    "whole window, ms": lambda row: row["latency_ms"]["total"],
    "first word, ms": lambda row: row["first_word_ms"],
    "prefill, ms": lambda row: row["latency_ms"]["prefill"],
    "decode, ms": lambda row: row["latency_ms"]["decode"],
    "age, ms": lambda row: row.get("age_ms"),
    "tokens a pass": lambda row: row["accepted_length"],
}


@dataclass(frozen=True)
class ComparedFigure:
    """One figure over the windows that both runs have: each run's mean, and B's over A's with the interval in
    which that lies with a probability of CONFIDENCE.
    """

    name: str
    windows: int
    a: float
    b: float
    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves equality out."""
        return not self.low <= 1.0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Two runs; same_texts: windows that both have with the same text, of `windows` that both have; only_a,
    only_b: windows that the other run lacks.
    """

    a: str
    b: str
    windows: int
    same_texts: int
    only_a: int
    only_b: int
    differing_options: Mapping[str, tuple[Any, Any]]
    figures: tuple[ComparedFigure, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def compare_runs(a: Path, b: Path) -> Comparison:
    """Pair the windows of two runs' folders by recording, end and question. Raises EvspecError for a folder
    that holds no run, and for runs that have no window in common.
    """
    folders = RunFolder.opened(a), RunFolder.opened(b)
    first, second = map(_by_window, folders)
    both = [name for name in first if name in second]
    if not both:
        raise EvspecError(f"The runs in {a} and {b} have no window in common: evaluate the same recordings.")
    recordings = [
        [(first[name], second[name]) for name in names] for _, names in groupby(both, itemgetter(0))
    ]
    pairs = [pair for recording in recordings for pair in recording]
    options = {
        name: (folders[0].plan[name], folders[1].plan.get(name))
        for name in folders[0].plan
        if folders[0].plan[name] != folders[1].plan.get(name)
    }
    return Comparison(
        str(a),
        str(b),
        len(both),
        sum(one["text"] == other["text"] for one, other in pairs),
        len(first) - len(both),
        len(second) - len(both),
        options,
        tuple(found for name, of in FIGURES.items() if (found := _figure(name, of, recordings)) is not None),
    )


def print_comparison(found: Comparison) -> None:
    """A table, and what differs beside the figures."""
    console = Console(highlight=False)
    table = Table(title=f"A: {found.a}, B: {found.b}", title_justify="left")
    for name in ("mean of", "A", "B", "B / A", f"{CONFIDENCE:.0%} interval", ""):
        table.add_column(name, justify="left" if name in ("mean of", "") else "right")
    for one in found.figures:
        interval = f"{one.low:.3f} to {one.high:.3f}"
        told = "differs" if one.differs else "no difference shown"
        table.add_row(one.name, f"{one.a:.2f}", f"{one.b:.2f}", f"{one.ratio:.3f}", interval, told)
    console.print(table)
    for name, (mine, other) in found.differing_options.items():
        console.print(f"{name}: A {mine}, B {other}", soft_wrap=True, markup=False)
    console.print(
        f"{found.same_texts} of {found.windows} texts are the same; windows of A alone: {found.only_a}, of B "
        f"alone: {found.only_b}."
    )


def ratio_interval(recordings: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Where mean(B) / mean(A) lies: the middle CONFIDENCE of RESAMPLES ratios of windows drawn anew from each
    recording; these are given in their order, [n, 2] of A and B.

    Neighbouring windows resemble each other, so that what is drawn are blocks of them: of ceil(n^(1/3))
    windows one after another, from anywhere, the first window following the last one (the circular block
    bootstrap of Politis and Romano).
    """
    random = np.random.default_rng(0)
    a, b = np.sum([_resampled_sums(values, random) for values in recordings], axis=0).T
    low, high = np.quantile(b / np.maximum(a, 1e-12), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled_sums(values: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Of n rows drawn anew in blocks, RESAMPLES times: [RESAMPLES, columns] from [n, columns]."""
    n = len(values)
    length = math.ceil(round(n ** (1 / 3), 9))
    before = np.cumsum(np.concatenate((np.zeros_like(values[:1]), values, values[:length])), axis=0)
    starts = random.integers(0, n, (RESAMPLES, math.ceil(n / length)))
    rest = n - length * (starts.shape[1] - 1)  # rows of the last block
    blocks, last = (before[size : size + n] - before[:n] for size in (length, rest))
    drawn: NDArray[np.float64] = blocks[starts[:, :-1]].sum(axis=1) + last[starts[:, -1]]
    return drawn


def _by_window(folder: RunFolder) -> dict[tuple[str, int, str], Row]:
    return {
        (one.hash, row["stamp_ns"], row["question"]): row
        for key, one in folder.finished().items()
        for row in folder.rows(key)
    }


def _figure(
    name: str, of: Callable[[Row], float | None], recordings: Sequence[Sequence[tuple[Row, Row]]]
) -> ComparedFigure | None:
    """None where a run does not have it."""
    known = []
    for pairs in recordings:
        values = [(of(one), of(other)) for one, other in pairs]
        if found := [pair for pair in values if None not in pair]:
            known.append(np.array(found, float))
    if not known:
        return None
    together = np.concatenate(known)
    a, b = map(float, together.mean(axis=0))
    if not together[:, 0].any():
        return None
    low, high = ratio_interval(known)
    return ComparedFigure(name, len(together), a, b, b / a, low, high)
