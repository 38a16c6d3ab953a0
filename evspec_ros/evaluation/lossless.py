"""The proof that drafting changes no text: `evspec bench lossless`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from signal import SIGINT, signal
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from evspec_ros.evaluation.decoding import BASELINE, Bench, Contestant, Entry, held_out
from evspec_ros.networks.checkpoints import load_draft_head
from evspec_ros.networks.devices import compute_device
from evspec_ros.networks.quantisation import compute_dtype
from evspec_ros.speculative import DRAFTERS, DraftLimits, DraftTree, EventSide, NoDrafter, Prompt
from evspec_ros.speculative.costs import measure_costs, measure_passes
from evspec_ros.training.features import SceneBatch
from evspec_ros.training.head_run import load_pair

LIMITS = {
    "one node": DraftLimits(1, 1),
    "eight deep, sixteen nodes": DraftLimits(8, 16, p_min=0.05),
    "as large as pays": DraftLimits(40, 40),  # with costs as they are measured here
}
EVENTS = ((1, False), (1, True), (2, False), (4, True))  # pooling and overlap


@dataclass(frozen=True)
class LosslessReport:
    """Over how many scenes and settings how many texts were compared, and which ones differ: scene and
    setting.
    """

    scenes: int
    settings: tuple[str, ...]
    texts: int
    different: tuple[tuple[int, str], ...]

    @property
    def share(self) -> float:
        """Of the texts, those that differ."""
        return len(self.different) / max(1, self.texts)

    def as_dict(self) -> dict[str, Any]:
        """The report, ready for JSON."""
        return {**asdict(self), "share": self.share}


class KnownText:
    """Drafts from a text that is known: perfect with no offset, always wrong with one, else at random."""

    layers: tuple[int, ...] = ()

    def __init__(self, name: str, vocabulary: int, offset: int | None) -> None:
        self.name = name
        self.text: Sequence[int] = ()
        self._vocabulary = vocabulary
        self._offset = offset
        self._random = np.random.default_rng(0)
        self._said = 0

    def prepare(self, _: Prompt) -> None:
        """Nothing to begin."""

    def start(self, *_: object) -> None:
        """One token is known."""
        self._said = 1

    def propose(self, limits: DraftLimits, *_: object) -> DraftTree:
        """A chain along the text, or a random tree."""
        size = min(limits.n_max, limits.tree_size)
        if self._offset is None:
            parents = [int(self._random.integers(-1, node)) for node in range(size)]
            return DraftTree.from_parents(
                self._random.integers(0, self._vocabulary, size).tolist(), parents, [0.5] * size
            )
        ahead = [
            (token + self._offset) % self._vocabulary for token in self.text[self._said : self._said + size]
        ]
        return DraftTree.chain(ahead, [1.0] * len(ahead))

    def accept(self, tokens: Sequence[int], _: object) -> None:
        """So many more tokens are known."""
        self._said += len(tokens)

    def finish(self, tokens: Sequence[int]) -> None:
        """Nothing is learnt."""

    def forget(self) -> None:
        """Nothing is remembered."""


def prove(
    bench: Bench,
    scenes: Iterable[SceneBatch],
    report: Callable[[int, int], None] = lambda *_: None,
    first: int = 0,
) -> LosslessReport:
    """Describe every scene with every drafter, limit, overlap and pooling, greedily, and compare with plain
    decoding; report counts scenes and differing texts, which are named by numbers from `first` on.
    Interrupted, it ends after the scene that it is at.
    """
    plain = bench.entry(Contestant(BASELINE))
    entries = list(_entries(bench))
    different: list[tuple[int, str]] = []
    count = 0
    for number, scene in enumerate(_until_interrupted(scenes), first):
        prompt = bench.prompt(scene)
        assert prompt.events is not None
        prompt = replace(prompt, events=lru_cache(maxsize=1)(prompt.events))
        if count == 0:
            entries = _with_costs(bench, entries, prompt)
        text = bench.describe(plain, prompt, LIMITS["one node"]).tokens
        for setting, entry in entries:
            if isinstance(entry.drafter, KnownText):
                entry.drafter.text = text
            if bench.describe(entry, prompt, entry.limits).tokens != text:
                different.append((number, setting))
        count += 1
        report(count, len(different))
    names = tuple(setting for setting, _ in entries)
    return LosslessReport(count, names, count * len(names), tuple(different))


def _until_interrupted(scenes: Iterable[SceneBatch]) -> Iterator[SceneBatch]:
    """What was compared until then counts: an interruption is heard between two scenes and ends them."""
    interrupted: list[int] = []
    before = signal(SIGINT, lambda number, _: interrupted.append(number))
    try:
        for scene in scenes:
            yield scene
            if interrupted:
                return
    finally:
        signal(SIGINT, before)


def prove_visibly(
    target: Path,
    event_model: Path,
    draft_heads: Sequence[Path],
    scenes: int,
    first: int = 0,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    exact_half: bool = False,
) -> LosslessReport:
    """`prove` for checkpoint directories on held-out simulated scenes from number `first` on, with progress
    on stderr; exact_half: as `choose_engine`.
    """
    place, number = compute_device(device), compute_dtype(dtype, compute_device(device))
    loaded = [load_draft_head(path, number, place) for path in draft_heads]
    heads = {head.config.kind: head for head in loaded}
    bench = Bench(load_pair(target, event_model, device, number), heads, exact_half=exact_half)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("comparing texts", total=scenes)

        def show(done: int, different: int) -> None:
            progress.update(task, completed=done, description=f"comparing texts, {different} differ")

        return prove(bench, (stream[0] for stream in held_out(scenes, first=first)), show, first)


def print_proof(report: LosslessReport) -> None:
    """What was compared, and every text that differs."""
    console = Console(highlight=False)
    for number, setting in report.different:
        console.print(f"scene {number}: {setting}")
    console.print(
        f"{report.texts} texts of {report.scenes} held-out scenes, {len(report.settings)} settings each: "
        f"{len(report.different)} differ from plain decoding ({report.share:.2%})."
    )


def _entries(bench: Bench) -> Iterator[tuple[str, Entry]]:
    """Every setting by its name, ready to run."""
    vocabulary = bench.decoder.decoder.config.vocab_size
    for limits_name, limits in LIMITS.items():
        for name in bench.able():
            reads = DRAFTERS[name].reads_events
            for pooling, overlap in EVENTS if reads else EVENTS[:1]:
                entry = bench.entry(Contestant(name, overlap), pooling)
                entry.limits = limits
                how = (
                    f", {pooling} event tokens in one, overlap {'on' if overlap else 'off'}" if reads else ""
                )
                yield f"{name}, {limits_name}{how}", entry
        for name, offset in (("perfect", 0), ("always wrong", 1), ("random", None)):
            drafter = KnownText(name, vocabulary, offset)
            yield f"{name}, {limits_name}", Entry(Contestant(BASELINE), drafter, EventSide(), limits)


def _with_costs(bench: Bench, entries: list[tuple[str, Entry]], prompt: Prompt) -> list[tuple[str, Entry]]:
    """Those that draft as much as pays learn here what that is."""
    passes_ms = measure_passes(bench.decoder, prompt)
    for _, entry in entries:
        if entry.limits == LIMITS["as large as pays"] and not isinstance(
            entry.drafter, KnownText | NoDrafter
        ):
            costs = measure_costs(bench.decoder, entry.drafter, prompt, passes_ms)
            entry.limits = replace(entry.limits, costs=costs)
    return entries
