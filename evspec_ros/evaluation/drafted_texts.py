"""What drafting does to texts: scores of the target alone and with every drafter on held-out scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from evspec_ros.choices import ACCEPTANCES, PLAIN
from evspec_ros.evaluation.accuracy import Accuracy, score
from evspec_ros.evaluation.decoding import BASELINE, DEFAULT, Bench, Contestant, Entry, held_out
from evspec_ros.networks.checkpoints import load_draft_head
from evspec_ros.simulation.captions import caption, claims
from evspec_ros.simulation.samples import sample_scene
from evspec_ros.sizes import MAX_NEW_TOKENS
from evspec_ros.speculative import generate
from evspec_ros.speculative.verification import Acceptance
from evspec_ros.training.head_run import load_pair

EXACT = ACCEPTANCES[0]


@dataclass(frozen=True)
class DraftedAccuracy:
    """Scores of the texts of one drafter under one rule of acceptance. same_text: the share of scenes whose
    text is the target's own; tokens_per_pass: the bonus token counted.
    """

    accuracy: Accuracy
    acceptance: str
    lossless: bool
    same_text: float
    tokens_per_pass: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return self.accuracy.as_dict() | {
            "acceptance": self.acceptance,
            "lossless": self.lossless,
            "same_text": self.same_text,
            "tokens_per_pass": self.tokens_per_pass,
        }


def score_drafters(
    target: Path,
    event_model: Path,
    draft_heads: Sequence[Path],
    scenes: int,
    condition: str = PLAIN,
    report: Callable[[int], None] = lambda *_: None,
) -> tuple[DraftedAccuracy, ...]:
    """The target alone, then with each drafter for which a head is there, which must not change a text, and
    the default drafter under each rule of acceptance that may. report: how many scenes are done.
    """
    pair = load_pair(target, event_model)
    loaded = [load_draft_head(path) for path in draft_heads]
    bench = Bench(pair, {head.config.kind: head for head in loaded})
    names = [BASELINE, *(name for name in bench.able() if name != BASELINE)]
    entries = [(bench.entry(Contestant(name)), EXACT) for name in names]
    entries += [(bench.entry(Contestant(DEFAULT)), rule) for rule in ACCEPTANCES if rule != EXACT]
    texts: list[list[str]] = [[] for _ in entries]
    passes, tokens = [0] * len(entries), [0] * len(entries)
    for number, (window,) in enumerate(held_out(scenes, condition), 1):
        prompt = bench.prompt(window)
        for index, (entry, rule) in enumerate(entries):
            entry.drafter.forget()
            found = generate(
                bench.decoder,
                entry.drafter,
                prompt,
                max_new_tokens=MAX_NEW_TOKENS,
                limits=entry.limits,
                acceptance=Acceptance(rule),
            )
            texts[index].append(pair.decode(list(found.tokens)))
            passes[index] += found.statistics.target_passes
            tokens[index] += found.statistics.tokens - 1
        report(number)
    found_scenes = [sample_scene("held_out", index, condition)[0] for index in range(scenes)]
    truths = [claims(scene, 0.0) for scene in found_scenes]
    captions = [caption(scene, 0.0) for scene in found_scenes]
    return tuple(
        DraftedAccuracy(
            score(_name(entry, rule), written, truths, captions),
            rule,
            Acceptance(rule).lossless,
            sum(a == b for a, b in zip(written, texts[0], strict=True)) / max(scenes, 1),
            tokens[index] / max(passes[index], 1),
        )
        for index, ((entry, rule), written) in enumerate(zip(entries, texts, strict=True))
    )


def score_drafters_visibly(
    target: Path, event_model: Path, draft_heads: Sequence[Path], scenes: int, condition: str = PLAIN
) -> tuple[DraftedAccuracy, ...]:
    """`score_drafters` with progress on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("describing with every drafter", total=scenes)
        return score_drafters(
            target,
            event_model,
            draft_heads,
            scenes,
            condition,
            lambda done: progress.update(task, completed=done),
        )


def _name(entry: Entry, rule: str) -> str:
    name = entry.contestant.name
    return f"Video-LLaVA, {name}" if rule == EXACT else f"Video-LLaVA, {name}, {rule}"
