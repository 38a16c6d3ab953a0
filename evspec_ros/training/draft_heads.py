"""Training EAGLE's draft head for one target and one event model.

The head learns from what the target itself writes: for each scene its own greedy answer, and the features
that it had while writing it. Both are computed once and kept in the run directory; only the head is trained.
Objective (Li et al. 2024, arXiv 2401.15077): smooth L1 between predicted and true feature, and cross entropy
between the token distributions that the target's frozen head makes of the two. Uniform noise on the features
that it reads stands for the errors of its own predictions, which it has to read when it drafts.

Shapes: B scenes, P rows of the prompt, T tokens of the longest answer, D the target's hidden size, E event
rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from evspec_ros.errors import TrainingError
from evspec_ros.networks.draft_head import EagleConfig, EagleHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.llama import KVCache
from evspec_ros.networks.video_llava import VideoLlava

WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.95)
MAX_GRADIENT = 0.5
WARM_UP = 0.05  # share of the steps


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """What both models see of B scenes, CLIP-normalised: frames [B, 8, 3, S, S], event images [B, 5, 3, S,
    S].
    """

    frames: Tensor
    events: Tensor


Scenes = Callable[[int, int], SceneBatch]  # scenes start to stop - 1 of a split, always the same ones


@dataclass(frozen=True)
class EagleSettings:
    """scenes, held_out: how many to learn from and to test with, in batches of `batch`; steps: of the
    optimiser; noise: half the width of the uniform noise, in standard deviations of the features.
    """

    scenes: int = 4096
    held_out: int = 128
    batch: int = 32
    steps: int = 1500
    learning_rate: float = 1e-3
    noise: float = 0.2
    feature_weight: float = 1.0
    token_weight: float = 1.0
    max_new_tokens: int = 80
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Answers:
    """What the target wrote about B scenes, and what the head is to predict.

    prompt: [B, P, D]; tokens: int64 [B, T], the end token repeated after the end; lengths: int64 [B], the end
    token counted; features: [B, P + T - 1, D], the last layer's output before the final norm, for the prompt
    and for all tokens but the last; events: [B, E, event_size].
    """

    prompt: Tensor
    tokens: Tensor
    lengths: Tensor
    features: Tensor
    events: Tensor

    def save(self, path: Path) -> None:
        """Write them whole or not at all, features in half precision."""
        tensors = {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in vars(self).items()
        }
        _save(tensors, path)

    @staticmethod
    def load(path: Path) -> Answers:
        """What `save` wrote, floats as float32."""
        tensors = load_file(path)
        return Answers(**{k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


class Report(Protocol):
    """Called as the work goes on: the stage's name, how much of it is done, and figures worth showing."""

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Show it."""


def train_eagle(
    target: VideoLlava,
    event_model: EventGpt,
    prompt_ids: Tensor,
    training: Scenes,
    held_out: Scenes,
    run: Path,
    settings: EagleSettings,
    report: Report,
) -> EagleHead:
    """Train a head, going on from where an earlier call in the same run directory was interrupted.

    prompt_ids: int64 [n], the prompt with its one video token. The result does not depend on interruptions.
    Raises TrainingError where the run directory belongs to other settings.
    """
    target.requires_grad_(requires_grad=False)
    run.mkdir(parents=True, exist_ok=True)
    _claim(run / "settings.json", asdict(settings))
    answers = _extract(
        target, event_model, prompt_ids, training, run, "train", settings.scenes, settings, report
    )
    tests = _extract(
        target, event_model, prompt_ids, held_out, run, "held_out", settings.held_out, settings, report
    )

    torch.manual_seed(settings.seed)
    event_rows = Answers.load(tests[0]).events.shape[1]
    head = EagleHead(
        EagleConfig.for_target(target.config.text, event_model.config.text.hidden_size, event_rows)
    )
    optimiser = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
    )
    done = _restore(run / "state.safetensors", head, optimiser)
    every = max(1, settings.steps // 20)
    for step in range(done, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
        loss = train_step(
            target, head, optimiser, Answers.load(_pick(answers, step, settings.seed)), step, settings
        )
        figures = {"loss": loss}
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            figures["agreement"] = agreement(target, head, tests)
            _store(run / "state.safetensors", head, optimiser, step + 1)
        report("train", step + 1, settings.steps, **figures)
    return head.eval()


# --- the target's own answers -------------------------------------------------------------------------------


@torch.inference_mode()
def answer(
    target: VideoLlava, event_model: EventGpt, prompt_ids: Tensor, scenes: SceneBatch, max_new_tokens: int
) -> Answers:
    """Let the target answer one prompt about B scenes, greedily and all at once."""
    batch, frames = scenes.frames.shape[:2]
    with _autocast():
        events = torch.stack([event_model.encode_events(images) for images in scenes.events])
        video = target.encode_frames(scenes.frames.flatten(0, 1)).view(
            batch, frames, -1, target.config.text.hidden_size
        )
        prompt = torch.stack([target.embed_prompt(prompt_ids, one.flatten(0, 1)) for one in video])
        tokens, features = _decode(target, prompt, max_new_tokens)
    ended = (tokens == target.config.text.eos_token_id).cumsum(1) > 0
    lengths = (~ended).sum(1).add(1).clamp(max=tokens.shape[1])
    return Answers(prompt.float(), tokens, lengths, features.float(), events.float())


def _decode(target: VideoLlava, prompt: Tensor, max_new_tokens: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens [B, T] until every row has ended, and features [B, P + T - 1, D]."""
    config, end = target.config.text, target.config.text.eos_token_id
    batch, rows, _ = prompt.shape
    cache = KVCache(config, rows + max_new_tokens, batch, dtype=_cache_dtype(), device=prompt.device)
    tokens: list[Tensor] = []
    features: list[Tensor] = []
    embeddings = prompt
    ended = torch.zeros(batch, dtype=torch.bool, device=prompt.device)
    while len(tokens) < max_new_tokens and not bool(ended.all()):
        output = target.decoder(embeddings, cache, layers=(config.num_layers,))
        features.append(output.features[0])
        choice = target.lm_head(output.hidden[:, -1]).argmax(-1).masked_fill(ended, end)
        tokens.append(choice)
        ended = ended | (choice == end)
        embeddings = target.decoder.embed(choice[:, None])
    return torch.stack(tokens, 1), torch.cat(features, 1)


def _extract(
    target: VideoLlava,
    event_model: EventGpt,
    prompt_ids: Tensor,
    scenes: Scenes,
    run: Path,
    split: str,
    count: int,
    settings: EagleSettings,
    report: Report,
) -> list[Path]:
    """One file of Answers per batch; those that are there already stay."""
    paths = []
    for start in range(0, count, settings.batch):
        stop = min(start + settings.batch, count)
        path = run / f"{split}-{start:06d}.safetensors"
        if not path.exists():
            answer(target, event_model, prompt_ids, scenes(start, stop), settings.max_new_tokens).save(path)
        paths.append(path)
        report(f"answers, {split}", stop, count)
    return paths


# --- learning -----------------------------------------------------------------------------------------------


def train_step(
    target: VideoLlava,
    head: EagleHead,
    optimiser: torch.optim.Optimizer,
    answers: Answers,
    step: int,
    settings: EagleSettings,
) -> float:
    """One step of the optimiser on one batch; the loss. What is random in it follows from seed and step."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    known = answers.features[:, :-1]
    noise = (
        torch.rand(known.shape, generator=generator).sub_(0.5).mul_(2 * settings.noise * float(known.std()))
    )
    predicted, true, used = _predict(target, head, answers, known + noise)
    scale = float(true[used].pow(2).mean().sqrt())  # features of any size weigh alike
    features = F.smooth_l1_loss(predicted[used] / scale, true[used] / scale)
    with _autocast():
        wanted = torch.softmax(_logits(target, true[used]).float(), -1)
        found = torch.log_softmax(_logits(target, predicted[used]).float(), -1)
    tokens = -(wanted * found).sum(-1).mean()
    loss = settings.feature_weight * features + settings.token_weight * tokens
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(head.parameters(), MAX_GRADIENT)
    optimiser.step()
    return loss.item()


@torch.inference_mode()
def agreement(target: VideoLlava, head: EagleHead, tests: list[Path]) -> float:
    """How often the head's likeliest token is the target's, reading true features: the first draft's
    acceptance.
    """
    right = total = 0
    for path in tests:
        answers = Answers.load(path)
        predicted, true, used = _predict(target, head, answers, answers.features[:, :-1])
        same = _logits(target, predicted[used]).argmax(-1) == _logits(target, true[used]).argmax(-1)
        right, total = right + int(same.sum()), total + len(same)
    return right / max(1, total)


def _predict(
    target: VideoLlava, head: EagleHead, answers: Answers, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and true features [B, T - 1, D] of the answer's tokens but the last, from features `known`
    [B, P + T - 2, D] one row before each; and bool [B, T - 1], which of them belong to an answer.
    """
    rows = answers.prompt.shape[1]
    ahead = torch.cat((answers.prompt[:, 1:], target.decoder.embed(answers.tokens[:, :-1])), 1)
    with _autocast():
        predicted: Tensor = head(ahead, known, answers.events)[:, rows - 1 :].float()
    places = torch.arange(predicted.shape[1], device=known.device)
    return predicted, answers.features[:, rows:], places < answers.lengths[:, None] - 1


def _logits(target: VideoLlava, features: Tensor) -> Tensor:
    logits: Tensor = target.lm_head(target.decoder.norm(features))
    return logits


def _pick(answers: list[Path], step: int, seed: int) -> Path:
    """Batches in another order in every epoch."""
    epoch, place = divmod(step, len(answers))
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return answers[int(order[place])]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if _has_bfloat16() else nullcontext()


def _cache_dtype() -> torch.dtype:
    return torch.bfloat16 if _has_bfloat16() else torch.float32


# --- the run directory --------------------------------------------------------------------------------------


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or make sure that they are the ones that the run was started with."""
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(f"{path} is damaged; remove its directory or give another one.") from error
    if found != settings:
        raise TrainingError(
            f"{path.parent} holds a run with other settings; give those or another directory."
        )


def _store(path: Path, head: EagleHead, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Everything that the next step depends on: weights, the optimiser's moments, the number of steps
    done.
    """
    tensors = {f"weights.{name}": value for name, value in head.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors.update({f"optimiser.{index}.{name}": value for name, value in moments.items()})
    tensors["step"] = torch.tensor(step)
    _save({name: value.detach().contiguous() for name, value in tensors.items()}, path)


def _restore(path: Path, head: EagleHead, optimiser: torch.optim.Optimizer) -> int:
    """Read what `_store` wrote, if there is something; the number of steps done."""
    if not path.exists():
        return 0
    tensors = load_file(path)
    head.load_state_dict({name: tensors[f"weights.{name}"] for name in head.state_dict()})
    state: dict[int, dict[str, Tensor]] = {}
    for index, name, value in _moments(tensors):
        state.setdefault(index, {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return int(tensors["step"])


def _moments(tensors: dict[str, Tensor]) -> Iterator[tuple[int, str, Tensor]]:
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimiser":
            index, _, name = rest.partition(".")
            yield int(index), name, value


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished)
    unfinished.rename(path)
