"""Training draft heads of every kind for one target and one event model.

The head learns from what the target itself writes: for each scene its own greedy answer, and the features
that it had while writing it. Both are computed once and kept in the run directory; only the head is trained.
EAGLE's objective (Li et al. 2024, arXiv 2401.15077): smooth L1 between predicted and true feature, and cross
entropy between the token distributions that the target's frozen head makes of the two. Uniform noise on the
features that it reads stands for the errors of its own predictions, which it has to read when it drafts.
EAGLE-3's is in `eagle3`; the adapters', which predict features too, is EAGLE's.

Shapes: B scenes, P rows of the prompt, T tokens of the longest answer, D the hidden size, E event rows, F the
event model's hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evspec_ros.errors import TrainingError
from evspec_ros.events.rendering import EVENT_IMAGES
from evspec_ros.networks.adapters import Adapter, FeatureConfig
from evspec_ros.networks.checkpoints import DRAFT_HEADS, Head, HeadConfig
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.training.eagle3 import unrolled, unrolled_loss
from evspec_ros.training.loop import Report, Schedule, fast_bfloat16, fit
from evspec_ros.training.rollout import greedy_answers


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A target and an event model, and each one's default prompt: int64 ids [n] with the one video token,
    and those before and those after the event tokens.
    """

    target: VideoLlava
    event_model: EventGpt
    prompt_ids: Tensor
    event_ids: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """B scenes as both models see them, CLIP-normalised: frames [B, 8, 3, S, S], events [B, 5, 3, S, S]."""

    frames: Tensor
    events: Tensor


Scenes = Callable[[int, int], SceneBatch]  # scenes start to stop - 1 of a split, always the same ones


SCHEDULE = Schedule(steps=1000, learning_rate=1e-3)


@dataclass(frozen=True)
class HeadPlan:
    """kind: of the head; scenes, held_out: how many to learn from and to test with, in batches of `batch`.

    Of those that predict features: noise, half the width of the uniform noise, in standard deviations of the
    features, and the two weights; EAGLE-3's: unroll, how many steps of drafting are trained; the feature
    head's: fusion.
    """

    kind: str = "eagle"
    scenes: int = 2048
    held_out: int = 128
    batch: int = 32
    schedule: Schedule = SCHEDULE
    noise: float = 0.2
    feature_weight: float = 1.0
    token_weight: float = 1.0
    unroll: int = 8
    fusion: str = FeatureConfig.fusion
    max_new_tokens: int = 80
    seed: int = 0


TINY_PLANS = {
    "eagle": HeadPlan(),
    "eagle3": HeadPlan("eagle3", scenes=6144, schedule=Schedule(steps=4000, learning_rate=2e-3)),
    "eventgpt_adapter": HeadPlan("eventgpt_adapter", noise=0.0),
    "feature": HeadPlan("feature"),
}


@dataclass(frozen=True, eq=False)
class Answers:
    """What the target wrote about B scenes, and what the head is to predict.

    prompt: [B, P, D]; tokens: int64 [B, T], the end token repeated after the end; lengths: int64 [B], the end
    token counted; features: [B, P + T - 1, layers * D], of the layers that the head reads, one beside the
    other and the last one's output last, for the prompt and for all tokens but the last; events: [B, E,
    event_size].
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
    def load(path: Path, device: torch.device | str = "cpu") -> Answers:
        """What `save` wrote, floats as float32."""
        tensors = load_file(path, str(device))
        return Answers(**{k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def train_head(
    pair: ModelPair,
    training: Scenes,
    held_out: Scenes,
    run: Path,
    plan: HeadPlan = TINY_PLANS["eagle"],
    report: Report = lambda *_: None,
) -> Head:
    """Train a head, going on from where an earlier call in the same run directory was interrupted.

    report is called with the stage, how much of
    it is done, how much there is, and its figure: 0 for "answers", the loss for the plan's kind, and for
    "held-out agreement" how often the head's likeliest token is the target's. Raises TrainingError where the
    run directory belongs to another plan or another target.
    """
    target, event_model, device = pair.target, pair.event_model, pair.prompt_ids.device
    for model in (target, event_model):
        model.requires_grad_(requires_grad=False)
    run.mkdir(parents=True, exist_ok=True)
    _claim(
        run / "plan.json",
        {**asdict(plan), "target": _fingerprint(target), "event_model": _fingerprint(event_model)},
    )
    torch.manual_seed(plan.seed)
    head: Head = DRAFT_HEADS[plan.kind].head(_sizes(pair, plan)).to(device)
    layers = target.config.text.num_layers
    read = head.feature_layers(layers) if isinstance(head, DraftHead) else (layers,)
    reader = partial(answer, pair, max_new_tokens=plan.max_new_tokens, layers=read)
    answers = _extract(reader, training, run / "train", plan.scenes, plan.batch, report)
    tests = _extract(reader, held_out, run / "held-out", plan.held_out, plan.batch, report)
    objective = eagle3_loss if plan.kind == "eagle3" else feature_loss

    def loss(step: int) -> Tensor:
        batch = Answers.load(_pick(answers, step, plan.seed), device)
        return objective(pair, head, batch, step, plan)

    def watch(stage: str, step: int, steps: int, value: float) -> None:
        report(stage, step, steps, value)
        if step % max(1, steps // 10) == 0 or step == steps:
            report("held-out agreement", step, steps, agreement(pair, head, tests))

    fit(plan.kind, nn.ModuleDict({"head": head}), loss, plan.schedule, run, watch)
    return head


def _sizes(pair: ModelPair, plan: HeadPlan) -> HeadConfig:
    event_rows = EVENT_IMAGES + pair.event_model.config.vision.tokens
    event_size = pair.event_model.config.text.hidden_size
    sizes: HeadConfig = DRAFT_HEADS[plan.kind].config.for_target(
        pair.target.config.text, event_size, event_rows
    )
    return replace(sizes, fusion=plan.fusion) if isinstance(sizes, FeatureConfig) else sizes


# --- the target's own answers -------------------------------------------------------------------------------


@torch.inference_mode()
def answer(
    pair: ModelPair, scenes: SceneBatch, max_new_tokens: int, layers: tuple[int, ...] | None = None
) -> Answers:
    """Let the target answer one prompt about B scenes, greedily and all at once; layers as in
    `greedy_answers`.
    """
    target = pair.target
    with _autocast(pair.prompt_ids.device):
        events = pair.event_model.encode_events(scenes.events)
        video = target.encode_frames(scenes.frames.flatten(0, 1)).chunk(len(scenes.frames))
        prompt = torch.stack([target.embed_prompt(pair.prompt_ids, one) for one in video])
        tokens, features = greedy_answers(
            target.decoder, target.lm_head, prompt, max_new_tokens, layers=layers
        )
    ended = (tokens == target.config.text.eos_token_id).cumsum(1) > 0
    lengths = (~ended).sum(1).add(1).clamp(max=tokens.shape[1])
    return Answers(prompt.float(), tokens, lengths, features.float(), events.float())


def _extract(
    reader: Callable[[SceneBatch], Answers],
    scenes: Scenes,
    directory: Path,
    count: int,
    batch: int,
    report: Report,
) -> list[Path]:
    """One file of Answers per batch; those that are there already stay."""
    directory.mkdir(exist_ok=True)
    paths = []
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        path = directory / f"{start:06d}.safetensors"
        if not path.exists():
            reader(scenes(start, stop)).save(path)
        paths.append(path)
        report(f"answers, {directory.name}", stop, count, 0.0)
    return paths


# --- learning -----------------------------------------------------------------------------------------------


def feature_loss(pair: ModelPair, head: Head, answers: Answers, step: int, plan: HeadPlan) -> Tensor:
    """EAGLE's objective on one batch; its noise follows from seed and step."""
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    known = answers.features[:, :-1]
    width = plan.noise * float(known.std())
    noise = (torch.rand(known.shape, generator=generator) * 2 - 1).to(known.device) * width
    predicted, used = _predict(pair, head, answers, known + noise)
    true = _true(pair.target, answers)
    scale = true[used].pow(2).mean().sqrt()  # features of any size weigh alike
    features = F.smooth_l1_loss(predicted[used] / scale, true[used] / scale)
    wanted = torch.softmax(_logits(pair.target, true[used]).float(), -1)
    found = torch.log_softmax(_logits(pair.target, predicted[used]).float(), -1)
    tokens = -(wanted * found).sum(-1).mean()
    return plan.feature_weight * features + plan.token_weight * tokens


def eagle3_loss(pair: ModelPair, head: Head, answers: Answers, _: int, plan: HeadPlan) -> Tensor:
    """EAGLE-3's objective on one batch."""
    assert isinstance(head, DraftHead)
    target = pair.target
    ahead, used = _ahead(target, answers)
    rows = head.context(answers.prompt.shape[1] - 1) + used.shape[1]
    ahead, fused = ahead[:, -rows:], head.fuse(answers.features[:, -rows - 1 : -1])
    outputs = unrolled(head, ahead, fused, answers.events, used.shape[1], plan.unroll)
    with torch.no_grad():
        wanted = torch.softmax(_logits(target, _true(target, answers)).float(), -1)
    norm, lm_head = head.readout(target.decoder.norm, target.lm_head)
    said = [lm_head(norm(output)) for output in outputs]
    return unrolled_loss(said, wanted, used)


@torch.inference_mode()
def agreement(pair: ModelPair, head: Head, tests: list[Path]) -> float:
    """How often the head's likeliest token is the target's, reading true features: the first draft's
    acceptance.
    """
    right = total = 0
    decoder, lm_head = pair.target.decoder, pair.target.lm_head
    norm, readout = (
        head.readout(decoder.norm, lm_head) if isinstance(head, DraftHead) else (decoder.norm, lm_head)
    )
    for path in tests:
        answers = Answers.load(path, lm_head.weight.device)
        predicted, used = _predict(pair, head, answers, answers.features[:, :-1])
        true = _true(pair.target, answers)
        same = readout(norm(predicted[used])).argmax(-1) == _logits(pair.target, true[used]).argmax(-1)
        right, total = right + int(same.sum()), total + len(same)
    return right / max(1, total)


def _predict(pair: ModelPair, head: Head, answers: Answers, known: Tensor) -> tuple[Tensor, Tensor]:
    """The head's outputs [B, T - 1, d] at the answer's tokens but the last, from features `known`
    [B, P + T - 2, layers * D] one row before each; and bool [B, T - 1], which of them belong to an answer.
    """
    ahead, used = _ahead(pair.target, answers)
    rows = used.shape[1]
    with _autocast(known.device):
        if isinstance(head, DraftHead):
            read = head.context(answers.prompt.shape[1] - 1) + rows
            predicted: Tensor = head(ahead[:, -read:], head.fuse(known[:, -read:]), answers.events)[:, -rows:]
        elif isinstance(head, Adapter):
            predicted = head(_event_features(pair, answers)[:, 1:])
        else:
            adapted = head.adapter(_event_features(pair, answers)[:, :1])
            predicted = head(adapted.expand(-1, rows, -1), known[:, -rows:])
    return predicted.float(), used


@torch.no_grad()
def _event_features(pair: ModelPair, answers: Answers) -> Tensor:
    """The event model's own features [B, T, F] at its prompt's last row and at the answer's tokens but the
    last, as if it had written the answer.
    """
    model, batch = pair.event_model, len(answers.tokens)
    before, after = (model.decoder.embed(ids).expand(batch, -1, -1) for ids in pair.event_ids)
    said = model.decoder.embed(answers.tokens[:, :-1])
    rows = torch.cat((before, answers.events, after, said), 1)
    hidden: Tensor = model.decoder(rows).hidden
    return hidden[:, -answers.tokens.shape[1] :]


def _ahead(target: VideoLlava, answers: Answers) -> tuple[Tensor, Tensor]:
    """Embeddings [B, P + T - 2, D] that the target reads at t + 1, and which answer rows count [B, T - 1]."""
    ahead = torch.cat((answers.prompt[:, 1:], target.decoder.embed(answers.tokens[:, :-1])), 1)
    places = torch.arange(answers.tokens.shape[1] - 1, device=ahead.device)
    return ahead, places < answers.lengths[:, None] - 1


def _true(target: VideoLlava, answers: Answers) -> Tensor:
    """The target's last features [B, T - 1, D] at the answer's tokens but the last."""
    return answers.features[:, answers.prompt.shape[1] :, -target.config.text.hidden_size :]


def _logits(target: VideoLlava, features: Tensor) -> Tensor:
    logits: Tensor = target.lm_head(target.decoder.norm(features))
    return logits


def _pick(answers: list[Path], step: int, seed: int) -> Path:
    """Batches in another order in every epoch."""
    epoch, place = divmod(step, len(answers))
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return answers[int(order[place])]


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device.type))


# --- the run directory --------------------------------------------------------------------------------------


def _claim(path: Path, run: dict[str, Any]) -> None:
    """Write what the run is about, or make sure that it is what the directory was begun with."""
    if not path.exists():
        path.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(f"{path} is damaged; remove its directory or give another one.") from error
    if found != run:
        raise TrainingError(
            f"{path.parent} holds a run of another plan or other models; remove it or give another."
        )


def _fingerprint(model: nn.Module) -> str:
    """Differs where a weight differs."""
    digest = sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished)
    unfinished.rename(path)
