"""What each drafter brings on held-out scenes and on streams of windows: `evspec bench decode`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count as count_from
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from evspec_ros.choices import AUTO_DRAFTER, PLAIN
from evspec_ros.engines.drafter import drafter_engines
from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import GenerationError
from evspec_ros.networks.checkpoints import Head, load_draft_head
from evspec_ros.networks.devices import compute_device, machine
from evspec_ros.networks.quantisation import compute_dtype
from evspec_ros.networks.tiny import TINY_CLIP
from evspec_ros.simulation.samples import Samples, changes_slowly, make_sample, make_stream
from evspec_ros.sizes import MAX_NEW_TOKENS
from evspec_ros.speculative import (
    DEFAULT_DRAFTER,
    DEFAULT_LIMITS,
    DRAFTERS,
    INGREDIENTS,
    DecoderTarget,
    DecodingStatistics,
    Drafter,
    DraftLimits,
    DraftModels,
    EventSide,
    Generation,
    Prompt,
    drafter_kind,
    drafters_of_heads,
    generate,
    make_combined,
    make_drafter,
)
from evspec_ros.speculative.costs import measure_costs, measure_passes
from evspec_ros.speculative.drafter import PassCosts
from evspec_ros.training.features import ModelPair, SceneBatch
from evspec_ros.training.head_run import as_seen, load_pair

BASELINE, DEFAULT = "none", DEFAULT_DRAFTER
CURVE_ROWS = (1, 4, 8, 16, 24, 32, 60)
STREAM_WINDOWS = 12


@dataclass(frozen=True)
class Placement:
    """Where the networks compute, in which precision, and what runs the target and what drafts."""

    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "auto"
    drafter_backend: str = "auto"


@dataclass(frozen=True)
class Contestant:
    """One way of decoding; without: which ingredients `combined` does without."""

    drafter: str
    overlap: bool = False
    temperature: float = 0.0
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The drafter's, and what was taken from it."""
        return self.drafter + "".join(f" - {ingredient}" for ingredient in self.without)


@dataclass(frozen=True)
class DecodingRow:
    """One way of decoding over all windows, beside plain decoding of the same windows in the same run.

    scenes: windows described; seconds: wall clock from pixels to the last token; speedup: the baseline's
    seconds over these; speedup_decode: the same from the first token on, without what was waited for the
    event model, as in the node's latencies. mean_accepted_length: tokens per
    target pass, the bonus token counted. draft_ms, verify_ms: mean per pass of the target; draft_passes: runs
    of the drafter's networks (of one that has none: its drafts) over all windows, draft_ms_per_pass: what one
    takes with all else that drafting does, 0 where there is none; target_step_ms: the baseline's mean step;
    node_share: drafting a node over that. prefill_ms: mean per window;
    prefill_slowdown: over the baseline's; event_ms, event_hidden_ms: the event model's work per window, and
    what of it nobody waited for. identical: whether every text was the
    baseline's, token for token; None where texts are sampled.
    """

    drafter: str
    overlap: bool
    temperature: float
    scenes: int
    tokens: int
    seconds: float
    speedup: float
    speedup_decode: float
    mean_accepted_length: float
    acceptance_rate: float
    acceptance_by_position: tuple[float, ...]
    draft_ms: float
    draft_passes: int
    draft_ms_per_pass: float
    verify_ms: float
    target_step_ms: float
    node_share: float
    prefill_ms: float
    prefill_slowdown: float
    event_ms: float
    event_hidden_ms: float
    unchanged: float
    identical: bool | None

    def as_dict(self) -> dict[str, Any]:
        """The row, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DecodingReport:
    """rows: of single windows; stream: of windows that follow each other; ablation, stream_ablation: of
    `combined` without each of its ingredients. cost_curve: what a pass over so many rows costs, over one of
    one row; step_ms: that one. machine, dtype, engine: what computed, in which precision, and what ran the
    target's passes and why.
    """

    rows: tuple[DecodingRow, ...]
    stream: tuple[DecodingRow, ...]
    ablation: tuple[DecodingRow, ...]
    stream_ablation: tuple[DecodingRow, ...]
    cost_curve: dict[int, float]
    step_ms: float
    machine: str
    dtype: str
    engine: str

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; `stream` has all rows and the figures of the default drafter as it runs
        by default on a CPU, greedily and without overlap.
        """
        stream = [row.as_dict() for row in self.stream]
        default = [row for row in stream if row["drafter"] == DEFAULT and not row["temperature"]]
        return {
            "rows": [row.as_dict() for row in self.rows],
            "stream": {**(default[0] if default else {}), "rows": stream},
            "ablation": [row.as_dict() for row in self.ablation],
            "stream_ablation": [row.as_dict() for row in self.stream_ablation],
            "cost_curve": self.cost_curve,
            "step_ms": self.step_ms,
            "machine": self.machine,
            "dtype": self.dtype,
            "engine": self.engine,
        }


@dataclass
class Entry:
    """A contestant with its drafter and its sums."""

    contestant: Contestant
    drafter: Drafter
    events: EventSide
    limits: DraftLimits = DEFAULT_LIMITS
    seconds: float = 0.0
    event_ms: float = 0.0
    event_hidden_ms: float = 0.0
    statistics: DecodingStatistics = field(default_factory=DecodingStatistics)
    texts: list[tuple[int, ...]] = field(default_factory=list)
    unchanged: int = 0

    def row(self, baseline: Entry) -> DecodingRow:
        """The sums beside the baseline's."""
        found, plain = self.statistics, baseline.statistics
        passes, windows = max(1, found.target_passes), max(1, found.generations)
        step_ms = plain.verify_ms / max(1, plain.target_passes)
        sampled = self.contestant.temperature > 0
        return DecodingRow(
            drafter=self.contestant.name,
            overlap=self.contestant.overlap,
            temperature=self.contestant.temperature,
            scenes=found.generations,
            tokens=found.tokens,
            seconds=self.seconds,
            speedup=_per_token(baseline.seconds, plain) / _per_token(self.seconds, found),
            speedup_decode=_per_token(plain.decode_ms, plain) / _per_token(found.decode_ms, found),
            mean_accepted_length=found.mean_accepted_length,
            acceptance_rate=found.acceptance_rate,
            acceptance_by_position=found.acceptance_by_position,
            draft_ms=found.draft_ms / passes,
            draft_passes=found.draft_passes,
            draft_ms_per_pass=found.draft_ms / found.draft_passes if found.draft_passes else 0.0,
            verify_ms=found.verify_ms / passes,
            target_step_ms=step_ms,
            node_share=found.draft_ms / found.drafted / step_ms if found.drafted else 0.0,
            prefill_ms=found.prefill_ms / windows,
            prefill_slowdown=found.prefill_ms / plain.prefill_ms,
            event_ms=self.event_ms / windows,
            event_hidden_ms=self.event_hidden_ms / windows,
            unchanged=self.unchanged / windows,
            identical=None if sampled else self.texts == baseline.texts,
        )


def _per_token(cost: float, statistics: DecodingStatistics) -> float:
    """Sampled texts differ in length, so costs are compared by the token; greedy ones have as many each."""
    return cost / max(1, statistics.tokens)


class Bench:
    """Describes windows with every contestant in turn, from pixels to tokens."""

    def __init__(
        self,
        pair: ModelPair,
        heads: Mapping[str, Head],
        limits: DraftLimits = DEFAULT_LIMITS,
        max_new_tokens: int = MAX_NEW_TOKENS,
        backend: str = "auto",
        drafter_backend: str = "auto",
        *,
        exact_half: bool = False,
    ) -> None:
        """heads: by their kind; backend: of the target's passes; exact_half: as `choose_engine`. Raises
        EngineError where one cannot run.
        """
        self._pair = pair
        self._heads = heads
        self._limits = limits
        self._max_new_tokens = max_new_tokens
        target = pair.target
        chosen = choose_engine(target.decoder, target.lm_head, backend, exact_half=exact_half)
        self._engines = drafter_engines(drafter_backend, (pair.event_model, *heads.values()))
        self._encoder = self._engines.encoder(pair.event_model)
        self.engine = f"{chosen}; drafters on {self._engines}"
        self.decoder = DecoderTarget(
            target.decoder,
            target.lm_head,
            target.config.text.end_tokens,
            lambda tokens: str(list(tokens)),
            engine=chosen.engine,
        )
        self._passes_ms: tuple[float, ...] = ()
        self._costs: dict[Contestant, PassCosts] = {}  # of contestants without their temperature

    def able(self) -> tuple[str, ...]:
        """The drafters for which all models are there."""
        return tuple(
            name
            for name, kind in DRAFTERS.items()
            if not kind.head_kinds or any(one in self._heads for one in kind.head_kinds)
        )

    def entry(self, contestant: Contestant, pooling: int = 1) -> Entry:
        """A contestant, ready to run; raises GenerationError for an unknown drafter and a missing head."""
        events = EventSide(overlap=contestant.overlap, pooling=pooling)
        kinds = drafter_kind(contestant.drafter).head_kinds
        head = next((self._heads[kind] for kind in kinds if kind in self._heads), None)
        models = DraftModels(head, self._pair.event_model, events, engines=self._engines)
        if contestant.without:
            return Entry(contestant, make_combined(self.decoder, models, contestant.without), events)
        return Entry(contestant, make_drafter(contestant.drafter, self.decoder, models), events)

    def race(
        self,
        contestants: Sequence[Contestant],
        streams: Iterable[Sequence[SceneBatch]],
        report: Callable[[int], None] = lambda *_: None,
    ) -> tuple[DecodingRow, ...]:
        """Rows in the contestants' order; the first of each temperature is what the others are compared with.

        Each stream's windows follow each other; what a drafter remembers is forgotten between streams. The
        order of the contestants turns from stream to stream. The first stream is described once before it
        counts, so that nobody pays for what is loaded or cached at first use. The first race that a way of
        drafting is in times passes and drafts: within the limits each draft is as large as pays.
        """
        entries = [self.entry(contestant) for contestant in contestants]
        for index, stream in enumerate(streams):
            if index == 0:
                self._warm_up(entries, stream[0])
            turn = index % len(entries)
            for entry in entries[turn:] + entries[:turn]:
                entry.drafter.forget()
                before = len(entry.texts)
                for number, window in enumerate(stream):
                    self._describe_counted(entry, window, seed=index * len(stream) + number)
                written = entry.texts[before:]
                entry.unchanged += sum(one == other for one, other in pairwise(written))
            report(index + 1)
        if not entries[0].texts:
            raise GenerationError("A benchmark needs at least one scene; ask for more than none.")
        plain = {
            entry.contestant.temperature: entry
            for entry in reversed(entries)
            if entry.contestant.drafter == BASELINE
        }
        return tuple(entry.row(plain[entry.contestant.temperature]) for entry in entries)

    def cost_curve(self) -> tuple[dict[int, float], float]:
        """What a pass over CURVE_ROWS rows costs over one of one row, and that in milliseconds."""
        step = self._passes_ms[0]
        return {rows: self._passes_ms[rows - 1] / step for rows in CURVE_ROWS}, step

    def describe(self, entry: Entry, prompt: Prompt, limits: DraftLimits, seed: int = 0) -> Generation:
        """One window."""
        return generate(
            self.decoder,
            entry.drafter,
            prompt,
            max_new_tokens=self._max_new_tokens,
            temperature=entry.contestant.temperature,
            seed=seed,
            limits=limits,
        )

    @torch.inference_mode()
    def prompt(self, window: SceneBatch) -> Prompt:
        """A window of one scene as the target reads it; its events are read when a drafter wants them."""
        target, ids = self._pair.target, self._pair.prompt_ids
        weight = target.lm_head.weight
        frames, events = (pixels[0].to(weight) for pixels in (window.frames, window.events))
        embeddings = target.embed_prompt(ids, target.encode_frames(frames))[None]
        before, after = self._pair.event_ids
        return Prompt(
            embeddings,
            tuple(ids.tolist()),
            lambda: self._encoder.encode(events),
            (tuple(before.tolist()), tuple(after.tolist())),
        )

    def _warm_up(self, entries: list[Entry], window: SceneBatch) -> None:
        prompt = self.prompt(window)
        for entry in entries:
            self.describe(entry, prompt, self._limits)
            entry.drafter.forget()
        self._passes_ms = self._passes_ms or measure_passes(self.decoder, prompt)
        for entry in entries:
            greedy = replace(entry.contestant, temperature=0.0)
            if greedy not in self._costs:
                costs = measure_costs(self.decoder, entry.drafter, prompt, self._passes_ms)
                self._costs[greedy] = costs
            entry.limits = replace(self._limits, costs=self._costs[greedy])

    def _describe_counted(self, entry: Entry, window: SceneBatch, seed: int) -> None:
        self.decoder.forget()
        started = time.perf_counter()
        generation = self.describe(entry, self.prompt(window), entry.limits, seed)
        entry.seconds += time.perf_counter() - started
        times, found = entry.events.times, generation.statistics
        entry.statistics += replace(
            found,
            draft_ms=found.draft_ms - times.waited_ms,
            decode_ms=found.decode_ms - times.waited_ms,
        )
        entry.texts.append(generation.tokens)
        entry.event_ms += times.busy_ms
        entry.event_hidden_ms += times.hidden_ms


def contestants(drafters: Sequence[str], temperatures: Sequence[float] = (0.0, 1.0)) -> list[Contestant]:
    """Plain decoding and each drafter, at each temperature; with overlap, too, where it reads events."""
    return [
        Contestant(name, overlap, temperature)
        for temperature in temperatures
        for name in dict.fromkeys((BASELINE, *drafters))
        for overlap in ((False, True) if drafter_kind(name).reads_events else (False,))
    ]


def ablations() -> list[Contestant]:
    """Plain decoding, the default, and the default without each of its ingredients."""
    lacking = [Contestant(DEFAULT, overlap=True, without=(ingredient,)) for ingredient in INGREDIENTS]
    return [Contestant(BASELINE), Contestant(DEFAULT, overlap=True), *lacking]


def bench_visibly(
    target: Path,
    event_model: Path,
    draft_heads: Sequence[Path],
    scenes: int,
    limits: DraftLimits = DEFAULT_LIMITS,
    drafters: Sequence[str] = (),
    streams: int = 0,
    placement: Placement | None = None,
) -> DecodingReport:
    """The benchmark of checkpoint directories on held-out simulated scenes, with progress on stderr.

    drafters: by default every one whose head is among draft_heads or that needs none. streams: how many
    streams of STREAM_WINDOWS windows are described besides.
    """
    placement = placement or Placement()
    device = compute_device(placement.device)
    dtype = compute_dtype(placement.dtype, device)
    pair = load_pair(target, event_model, str(device), dtype)
    loaded = [load_draft_head(path, dtype, device) for path in draft_heads]
    heads = {head.config.kind: head for head in loaded}
    bench = Bench(pair, heads, limits, backend=placement.backend, drafter_backend=placement.drafter_backend)
    kinds = drafters_of_heads(AUTO_DRAFTER, event_model=True)
    auto = next((kinds[kind] for kind in heads), DEFAULT)
    chosen = [auto if name == AUTO_DRAFTER else name for name in drafters] or bench.able()
    with Progress(console=Console(stderr=True), transient=True) as progress:

        def race(
            what: str, entries: list[Contestant], windows: Iterable[Sequence[SceneBatch]], count: int
        ) -> tuple[DecodingRow, ...]:
            if not count or not entries:
                return ()
            task = progress.add_task(what, total=count)
            found = bench.race(entries, windows, lambda done: progress.update(task, completed=done))
            progress.remove_task(task)
            return found

        lacking = ablations() if DEFAULT in chosen else []
        return DecodingReport(
            race("single windows", contestants(chosen), held_out(scenes), scenes),
            race("streams", contestants(chosen), held_out_streams(streams), streams),
            race("single windows, ablation", lacking, held_out(scenes), scenes),
            race("streams, ablation", lacking, held_out_streams(streams), streams),
            *bench.cost_curve(),
            machine(device),
            placement.dtype,
            bench.engine,
        )


def held_out(count: int, condition: str = PLAIN, first: int = 0) -> Iterator[list[SceneBatch]]:
    """Held-out scenes of a condition from number `first` on, a window of each."""
    for index in range(first, first + count):
        yield _windows(make_sample("held_out", index, TINY_CLIP.image_size, condition))


def held_out_streams(count: int) -> Iterator[list[SceneBatch]]:
    """STREAM_WINDOWS windows of each of the first held-out scenes that change slowly: nothing moves quickly,
    but things bounce, change places and pass from one part of the picture to another.
    """
    slow = (index for index in count_from() if changes_slowly("held_out", index))
    for index in islice(slow, count):
        yield _windows(make_stream("held_out", index, STREAM_WINDOWS, TINY_CLIP.image_size))


def _windows(samples: Samples) -> list[SceneBatch]:
    seen = as_seen(samples)
    ends = range(1, len(samples) + 1)
    return [SceneBatch(seen.frames[end - 1 : end], seen.events[end - 1 : end]) for end in ends]
