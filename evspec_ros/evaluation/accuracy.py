"""How much of a scene the two models get right: `evspec eval --simulated N`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from evspec_ros.choices import PLAIN
from evspec_ros.evaluation.text_scores import score_texts
from evspec_ros.networks.checkpoints import load_eventgpt, load_video_llava
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.quantisation import kv_dtype as cache_dtype
from evspec_ros.networks.quantisation import load_in
from evspec_ros.networks.tiny import TINY_CLIP
from evspec_ros.networks.tokenizer import Tokenizer, load_fitting_tokenizer, load_target_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.prompts import DEFAULT_PROMPT, event_prompt, target_prompt
from evspec_ros.simulation.captions import Claim, claims, parse
from evspec_ros.simulation.samples import Samples, make_samples, sample_scene
from evspec_ros.sizes import MAX_NEW_TOKENS
from evspec_ros.training.patches import normalise
from evspec_ros.training.rollout import greedy_answers

BATCH = 20
PER_CENT = ("bleu", "chrf")  # run to 100 by themselves


@dataclass(frozen=True)
class Accuracy:
    """Shares of the true objects that a model names right, objects compared in their order from left to
    right.

    An object left out is wrong in everything; `counted` is the share of scenes with the right number of
    objects, `exact` the share whose caption is true word for word. bleu, chrf, rouge1, rougeL: of the texts
    beside the captions, see `text_scores`.
    """

    model: str
    scenes: int
    objects: int
    shape: float
    colour: float
    direction: float
    size: float
    speed: float
    counted: float
    exact: float
    bleu: float
    chrf: float
    rouge1: float
    rougeL: float  # noqa: N815 - its name

    def as_dict(self) -> dict[str, str | int | float]:
        """Ready for JSON."""
        return asdict(self)


def score(
    model: str, texts: Iterable[str], truths: Iterable[tuple[Claim, ...]], captions: Iterable[str]
) -> Accuracy:
    """Compare what a model wrote about each scene with what is true of it."""
    texts, captions = list(texts), list(captions)
    right = dict.fromkeys(("shape", "colour", "direction", "size", "speed"), 0)
    scenes = objects = counted = exact = 0
    for text, truth, caption in zip(texts, truths, captions, strict=True):
        said = parse(text)
        scenes, objects = scenes + 1, objects + len(truth)
        counted += len(said) == len(truth)
        exact += text == caption
        for claim, true in zip(said, truth, strict=False):
            for name in right:
                right[name] += getattr(claim, name) == getattr(true, name)
    shares = {name: count / max(1, objects) for name, count in right.items()}
    found = score_texts(texts, captions) | {"exact": exact / max(1, scenes)}
    return Accuracy(model, scenes, objects, **shares, counted=counted / max(1, scenes), **found)


def evaluate(
    target: Path,
    event_model: Path,
    scenes: int,
    dtype: str = "float32",
    kv_dtype: str = "auto",
    report: Callable[[int], None] = lambda *_: None,
    condition: str = PLAIN,
) -> tuple[Accuracy, ...]:
    """Both models' accuracy on the first held-out scenes, in one of `choices.PRECISIONS` on the CPU, the
    target's cache in one of KV_PRECISIONS; report counts finished scenes; condition: one of
    `choices.CONDITIONS` or MIXED. Raises CheckpointError.
    """
    cpu = torch.device("cpu")
    cache = cache_dtype(kv_dtype)
    describers = {
        "Video-LLaVA": _target_writer(load_in(dtype, load_video_llava, target, cpu), target, cache),
        "EventGPT": _event_writer(load_in(dtype, load_eventgpt, event_model, cpu), event_model),
    }
    texts: dict[str, list[str]] = {name: [] for name in describers}
    captions: list[str] = []
    for start in range(0, scenes, BATCH):
        samples = make_samples("held_out", start, min(start + BATCH, scenes), TINY_CLIP.image_size, condition)
        captions += samples.captions.tolist()
        for name, write in describers.items():
            texts[name] += write(samples)
        report(len(captions))
    truths = [claims(sample_scene("held_out", index, condition)[0], 0.0) for index in range(scenes)]
    return tuple(score(name, written, truths, captions) for name, written in texts.items())


def evaluate_visibly(
    target: Path,
    event_model: Path,
    scenes: int,
    dtype: str = "float32",
    kv_dtype: str = "auto",
    condition: str = PLAIN,
) -> tuple[Accuracy, ...]:
    """`evaluate` with progress on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("describing held-out scenes", total=scenes)
        return evaluate(
            target,
            event_model,
            scenes,
            dtype,
            kv_dtype,
            lambda done: progress.update(task, completed=done),
            condition,
        )


def print_accuracies(rows: Iterable[Accuracy]) -> None:
    """A table, in per cent."""
    rows = list(rows)
    table = Table(title=f"right on {rows[0].scenes} held-out scenes, %", title_justify="left")
    names = [name for name in asdict(rows[0]) if name not in ("model", "scenes", "objects")]
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        values = (getattr(row, name) * (1 if name in PER_CENT else 100) for name in names)
        table.add_row(row.model, *(f"{value:.1f}" for value in values))
    Console(highlight=False).print(table)


def _target_writer(
    model: VideoLlava, path: Path, kv_dtype: torch.dtype | None
) -> Callable[[Samples], list[str]]:
    tokenizer = load_target_tokenizer(path, model.config)
    ids = torch.tensor(tokenizer.encode(target_prompt(DEFAULT_PROMPT), bos=True))

    def prompt(frames: Tensor) -> Tensor:
        return model.embed_prompt(ids, model.encode_frames(frames.to(model.lm_head.weight.dtype)))

    @torch.inference_mode()
    def write(samples: Samples) -> list[str]:
        prompts = torch.stack([prompt(normalise(frames)) for frames in samples.frames])
        answers = greedy_answers(model.decoder, model.lm_head, prompts, MAX_NEW_TOKENS, kv_dtype)
        return _texts(tokenizer, answers.tokens)

    return write


def _event_writer(model: EventGpt, path: Path) -> Callable[[Samples], list[str]]:
    tokenizer = load_fitting_tokenizer(path, model.config.text.vocab_size)
    before, after = event_prompt(DEFAULT_PROMPT)
    before_ids, after_ids = (
        torch.tensor(tokenizer.encode(before, bos=True)),
        torch.tensor(tokenizer.encode(after)),
    )
    dtype = model.lm_head.weight.dtype

    @torch.inference_mode()
    def write(samples: Samples) -> list[str]:
        prompts = torch.stack(
            [
                model.embed_prompt(before_ids, model.encode_events(normalise(images).to(dtype)), after_ids)
                for images in samples.event_images
            ]
        )
        return _texts(tokenizer, greedy_answers(model.decoder, model.lm_head, prompts, MAX_NEW_TOKENS).tokens)

    return write


def _texts(tokenizer: Tokenizer, tokens: Tensor) -> list[str]:
    """Special tokens are left out, so what repeats the end token behind the end does not show."""
    return [tokenizer.decode(row) for row in tokens.tolist()]
