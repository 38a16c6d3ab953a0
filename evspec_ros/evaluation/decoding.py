"""What each drafter brings on held-out scenes: `evspec bench decode`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from evspec_ros.engines.selection import choose_engine
from evspec_ros.errors import GenerationError
from evspec_ros.networks.checkpoints import load_draft_head
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.speculative import (
    DEFAULT_LIMITS,
    DRAFTERS,
    DecoderTarget,
    DecodingStatistics,
    Drafter,
    DraftLimits,
    DraftModels,
    EventSide,
    Generation,
    Prompt,
    drafter_kind,
    generate,
    make_drafter,
)
from evspec_ros.speculative.costs import measure_costs
from evspec_ros.speculative.drafter import PassCosts
from evspec_ros.training.draft_heads import SceneBatch
from evspec_ros.training.eagle_run import load_pair, simulated

BASELINE = "none"


@dataclass(frozen=True)
class DecodingRow:
    """One drafter over all scenes, beside plain decoding of the same scenes in the same run.

    seconds: wall clock from pixels to the last token; speedup: the baseline's seconds over these;
    speedup_decode: the same from the first token on. mean_accepted_length: tokens per target pass, the bonus
    token counted. draft_ms, verify_ms: mean per pass of the target; target_step_ms: the baseline's mean step.
    identical: whether every text was the baseline's, token for token.
    """

    drafter: str
    scenes: int
    tokens: int
    seconds: float
    speedup: float
    speedup_decode: float
    mean_accepted_length: float
    acceptance_rate: float
    acceptance_by_position: tuple[float, ...]
    draft_ms: float
    verify_ms: float
    target_step_ms: float
    identical: bool

    def as_dict(self) -> dict[str, Any]:
        """The row, ready for JSON."""
        return asdict(self)


@dataclass
class _Total:
    """One drafter's sums."""

    drafter: Drafter
    limits: DraftLimits = DEFAULT_LIMITS
    seconds: float = 0.0
    statistics: DecodingStatistics = field(default_factory=DecodingStatistics)
    texts: list[tuple[int, ...]] = field(default_factory=list)

    def row(self, baseline: _Total) -> DecodingRow:
        """The sums beside the baseline's."""
        found, plain = self.statistics, baseline.statistics
        passes = max(1, found.target_passes)
        return DecodingRow(
            drafter=self.drafter.name,
            scenes=found.generations,
            tokens=found.tokens,
            seconds=self.seconds,
            speedup=baseline.seconds / self.seconds,
            speedup_decode=plain.decode_ms / found.decode_ms,
            mean_accepted_length=found.mean_accepted_length,
            acceptance_rate=found.acceptance_rate,
            acceptance_by_position=found.acceptance_by_position,
            draft_ms=found.draft_ms / passes,
            verify_ms=found.verify_ms / passes,
            target_step_ms=plain.verify_ms / max(1, plain.target_passes),
            identical=self.texts == baseline.texts,
        )


def bench_decoding(
    target: VideoLlava,
    event_model: EventGpt,
    heads: Mapping[str, DraftHead],
    prompt_ids: Tensor,
    scenes: Iterable[SceneBatch],
    drafters: Sequence[str] = ("eagle",),
    *,
    max_new_tokens: int = 80,
    limits: DraftLimits = DEFAULT_LIMITS,
    report: Callable[[int], None] = lambda *_: None,
) -> tuple[DecodingRow, ...]:
    """Let plain decoding and each drafter describe every scene in turn, greedily; rows in that order.

    scenes: batches of one scene each. The order of the drafters turns from scene to scene, and the first
    scene is described once before it counts, so that no drafter pays for what is loaded or cached at first
    use and so that passes and drafts are timed: within the limits each draft is as large as pays.
    """
    reader = _Reader(target, event_model, prompt_ids, max_new_tokens)
    totals = [
        _Total(
            make_drafter(
                name, reader.decoder, DraftModels(heads.get(str(drafter_kind(name).head_kind)), EventSide())
            )
        )
        for name in dict.fromkeys((BASELINE, *drafters))
    ]
    for index, scene in enumerate(scenes):
        turn = index % len(totals)
        if index == 0:
            for total in totals:
                reader.describe(total.drafter, scene)
                total.limits = replace(limits, costs=reader.costs(total.drafter, scene))
        for total in totals[turn:] + totals[:turn]:
            started = time.perf_counter()
            generation = reader.describe(total.drafter, scene, total.limits)
            total.seconds += time.perf_counter() - started
            total.statistics += generation.statistics
            total.texts.append(generation.tokens)
        report(index + 1)
    if not totals[0].texts:
        raise GenerationError("A benchmark needs at least one scene; ask for more than none.")
    return tuple(total.row(totals[0]) for total in totals)


def bench_visibly(
    target: Path,
    event_model: Path,
    draft_heads: Sequence[Path],
    scenes: int,
    limits: DraftLimits = DEFAULT_LIMITS,
    drafters: Sequence[str] = (),
) -> tuple[DecodingRow, ...]:
    """`bench_decoding` of checkpoint directories on held-out simulated scenes, with progress on stderr.

    drafters: by default every one whose head is among draft_heads or that needs none.
    """
    pair = load_pair(target, event_model)
    loaded = [load_draft_head(path) for path in draft_heads]
    heads = {head.config.kind: head for head in loaded}
    able = [name for name, kind in DRAFTERS.items() if kind.head_kind is None or kind.head_kind in heads]
    held_out = simulated("held_out")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("describing held-out scenes", total=scenes)
        return bench_decoding(
            pair.target,
            pair.event_model,
            heads,
            pair.prompt_ids,
            (held_out(index, index + 1) for index in range(scenes)),
            drafters or able,
            limits=limits,
            report=lambda done: progress.update(task, completed=done),
        )


def print_rows(rows: Sequence[DecodingRow]) -> None:
    """The rows as a table."""
    table = Table(
        title=f"greedy decoding of {rows[0].scenes} held-out scenes",
        title_justify="left",
        box=SIMPLE,
        padding=0,
    )
    for column in (
        "drafter",
        "tokens",
        "s",
        "speed-up",
        "decode",
        "length",
        "draft ms",
        "verify ms",
        "step ms",
        "same",
    ):
        table.add_column(column, justify="left" if column == "drafter" else "right")
    for row in rows:
        table.add_row(
            row.drafter,
            str(row.tokens),
            *(f"{value:.2f}" for value in (row.seconds, row.speedup, row.speedup_decode)),
            *(
                f"{value:.2f}"
                for value in (row.mean_accepted_length, row.draft_ms, row.verify_ms, row.target_step_ms)
            ),
            "yes" if row.identical else "NO",
        )
    Console(highlight=False).print(table)


class _Reader:
    """From the pixels of one scene to a text."""

    def __init__(
        self,
        target: VideoLlava,
        event_model: EventGpt,
        prompt_ids: Tensor,
        max_new_tokens: int,
    ) -> None:
        self._target = target
        self._event_model = event_model
        self._prompt_ids = prompt_ids
        self._max_new_tokens = max_new_tokens
        end = target.config.text.eos_token_id
        self.decoder = DecoderTarget(
            target.decoder,
            target.lm_head,
            {end},
            lambda tokens: str(list(tokens)),
            engine=choose_engine(target.decoder, target.lm_head).engine,
        )

    def describe(
        self, drafter: Drafter, scene: SceneBatch, limits: DraftLimits = DEFAULT_LIMITS
    ) -> Generation:
        """The events are read for drafters that use them alone; nothing is left over from the text before."""
        self.decoder.forget()
        drafter.forget()
        prompt = self._prompt(scene)
        return generate(self.decoder, drafter, prompt, max_new_tokens=self._max_new_tokens, limits=limits)

    def costs(self, drafter: Drafter, scene: SceneBatch) -> PassCosts:
        """What passes and this drafter's drafts cost behind a scene's prompt."""
        return measure_costs(self.decoder, drafter, self._prompt(scene))

    @torch.inference_mode()
    def _prompt(self, scene: SceneBatch) -> Prompt:
        video = self._target.encode_frames(scene.frames[0])
        embeddings = self._target.embed_prompt(self._prompt_ids, video)[None]
        ids = tuple(self._prompt_ids.tolist())
        return Prompt(embeddings, ids, lambda: self._event_model.encode_events(scene.events[0]))
