"""Trains the tiny checkpoints from simulated scenes: first the two CLIP towers, then the language models on
them.

The towers learn to name what lies under each patch, as CLIP's come with knowledge of objects, and stay as
they are from then on, as in LLaVA. The target's decoder begins shallow, which is where it learns to look, and
is then deepened by layers that change nothing at first (LLaMA Pro's block expansion, arXiv 2401.02415).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor, nn

from evspec_ros.choices import PLAIN
from evspec_ros.networks.checkpoints import save_eventgpt, save_video_llava
from evspec_ros.networks.clip import ClipTower
from evspec_ros.networks.devices import compute_device
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.llama import DecoderLayer, LlamaDecoder
from evspec_ros.networks.tiny import tiny_eventgpt, tiny_video_llava
from evspec_ros.networks.tokenizer import save_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.prompts import DEFAULT_PROMPT, EVENT_TOKENS, VIDEO_TOKEN, event_prompt, target_prompt
from evspec_ros.simulation.samples import Samples
from evspec_ros.training import dataset
from evspec_ros.training.files import claim
from evspec_ros.training.loop import Report, Schedule, fit
from evspec_ros.training.patches import (
    MOTIONS,
    PatchProbe,
    PatchTask,
    columns,
    event_patches,
    frame_patches,
    motion_labels,
    normalise,
    patch_loss,
)
from evspec_ros.training.processes import own_device, process
from evspec_ros.training.progress import training_progress
from evspec_ros.training.tokenizer import train_tokenizer

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
TARGET_TOKENS = (IMAGE_TOKEN, VIDEO_TOKEN, PAD_TOKEN)
FEATURES_BATCH = 64  # scenes
IGNORED = -100  # cross entropy's mark for a position that does not count


TOWER = Schedule(steps=4500, learning_rate=1e-3)
EVENT_TOWER = Schedule(steps=1500, learning_rate=1e-3)
SHALLOW = Schedule(steps=5000, learning_rate=1e-3)
DEEP = Schedule(steps=400, learning_rate=3e-4)
EVENT = Schedule(steps=6000, learning_rate=1e-3)


@dataclass(frozen=True)
class TinyPlan:
    """condition: what makes the scenes hard to see, one of CONDITIONS or MIXED; the rest: how long each stage
    is trained.
    """

    condition: str = PLAIN
    scenes: int = 24_576
    batch: int = 16
    tower_batch: int = 96
    tower: Schedule = TOWER
    event_tower: Schedule = EVENT_TOWER
    shallow: Schedule = SHALLOW
    deep: Schedule = DEEP
    event: Schedule = EVENT
    shallow_layers: int = 4


TINY_PLAN = TinyPlan()


def train_tiny(
    run: Path,
    models: Path,
    plan: TinyPlan = TINY_PLAN,
    report: Report = lambda *_: None,
    device: str = "cpu",
) -> None:
    """Make models/tiny_video_llava and models/tiny_eventgpt; run keeps the data and every stage's state.

    Interrupt it at any time and call it again: it goes on where it was. Raises TrainingError, also where run
    belongs to another plan.
    """
    state = process(device)
    with state.main_process_first():
        claim(run / "plan.json", asdict(plan))
        dataset.prepare(run / "scenes", "train", plan.scenes, report, plan.condition)
    samples = dataset.load(run / "scenes", "train", plan.scenes, plan.condition)
    target = train_target(samples, run, plan, report, device)
    if state.is_main_process:
        _write(models / "tiny_video_llava", target, save_video_llava, TARGET_TOKENS)
    event_model = train_event_model(samples, run, plan, report, device)
    if state.is_main_process:
        _write(models / "tiny_eventgpt", event_model, save_eventgpt, EVENT_TOKENS)


def train_tiny_visibly(
    run: Path, models: Path, device: str, execution: Mapping[str, Any], condition: str = PLAIN
) -> dict[str, str]:
    """`train_tiny` with progress on stderr and TensorBoard's logs in run; what was made, to the first of
    several processes. execution: of every stage's schedule, `accumulate` and `precision`.
    """
    place = own_device(compute_device(device))
    stages = ("tower", "event_tower", "shallow", "deep", "event")
    schedules = {name: replace(getattr(TINY_PLAN, name), **execution) for name in stages}
    plan = replace(TINY_PLAN, condition=condition, **schedules)
    first = process(place).is_main_process
    with training_progress(run / "tensorboard", visible=first) as report:
        train_tiny(run, models, plan, report, str(place))
    return {"models": str(models)} if first else {}


def train_target(samples: Samples, run: Path, plan: TinyPlan, report: Report, device: str) -> VideoLlava:
    """The tiny Video-LLaVA."""
    tokenizer = train_tokenizer(TARGET_TOKENS)
    torch.manual_seed(0)
    config = tiny_video_llava(
        tokenizer.get_vocab_size(), token_id(tokenizer, IMAGE_TOKEN), token_id(tokenizer, VIDEO_TOKEN)
    )
    shallow = VideoLlava(replace(config, text=replace(config.text, num_layers=plan.shallow_layers))).to(
        device
    )
    seen = frame_patches(samples)
    teach("frame-tower", shallow.video_tower, seen, run, plan.tower, plan.tower_batch, report)
    task = TargetTask(samples, shallow.video_tower, tokenizer, plan.batch, report)
    motion = nn.Linear(config.text.hidden_size, columns(MOTIONS) + 2, device=device)

    def loss(step: int) -> Tensor:
        return task.loss(shallow, motion, step)

    fit("target-shallow", nn.ModuleList([shallow, motion]), loss, plan.shallow, run, report)
    model = VideoLlava(config).to(device)
    deepen(shallow, model)
    model.video_tower.requires_grad_(requires_grad=False)

    def deep_loss(step: int) -> Tensor:
        return task.loss(model, motion, plan.shallow.steps + step)

    fit("target-deep", nn.ModuleList([model, motion]), deep_loss, plan.deep, run, report)
    return model


def train_event_model(samples: Samples, run: Path, plan: TinyPlan, report: Report, device: str) -> EventGpt:
    """The tiny EventGPT; it is taught the same captions, colours included, which events do not show."""
    tokenizer = train_tokenizer(EVENT_TOKENS)
    torch.manual_seed(1)
    model = EventGpt(tiny_eventgpt(tokenizer.get_vocab_size())).to(device)
    seen = event_patches(samples)
    teach("event-tower", model.visual_tower, seen, run, plan.event_tower, plan.tower_batch, report)
    task = EventTask(samples, seen, model.visual_tower, tokenizer, plan.batch, report)
    look = nn.Linear(model.config.text.hidden_size, columns(seen.sizes) + 2, device=device)

    def loss(step: int) -> Tensor:
        return task.loss(model, look, step)

    fit("event-model", nn.ModuleList([model, look]), loss, plan.event, run, report)
    return model


def deepen(shallow: VideoLlava, deep: VideoLlava) -> None:
    """Give `deep` the weights of `shallow`, its layers spread out; the layers between add nothing to begin
    with.
    """
    state = shallow.state_dict()
    ours = len(deep.decoder.layers)
    theirs = len(shallow.decoder.layers)
    places = {int(place): index for index, place in enumerate(np.linspace(0, ours - 1, theirs).round())}
    for place in range(ours):
        source = max(index for at, index in places.items() if at <= place)
        layer = deep.decoder.layers[place]
        assert isinstance(layer, DecoderLayer)
        layer.load_state_dict(shallow.decoder.layers[source].state_dict())
        if place not in places:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
    rest = {name: tensor for name, tensor in state.items() if ".layers." not in name or "decoder" not in name}
    deep.load_state_dict(rest, strict=False)


# --- towers ------------------------------------------------------------------------------------------------


def teach(
    stage: str, tower: ClipTower, task: PatchTask, run: Path, schedule: Schedule, batch: int, report: Report
) -> None:
    """Train a tower on one task; it is not trained any further."""
    probe = PatchProbe(tower, task.sizes).to(next(tower.parameters()).device)
    # CLIP's last norm serves only who wants one vector of an image, and here it gets no gradient
    getattr(tower.clip, "vision_model", tower.clip).post_layernorm.requires_grad_(requires_grad=False)
    fit(stage, probe, lambda step: task.loss(probe, step, batch), schedule, run, report)
    tower.requires_grad_(requires_grad=False)


@torch.no_grad()
def tower_features(tower: ClipTower, images: NDArray[np.uint8], report: Report) -> Tensor:
    """What a tower makes of images [N, M, S, S, 3], float16 [N, M, tokens, hidden]; computed once, as it
    stays as it is.
    """
    count, per_scene = images.shape[:2]
    features = torch.empty(count, per_scene, tower.config.tokens, tower.config.hidden_size, dtype=torch.half)
    for start in range(0, count, FEATURES_BATCH):
        part = normalise(images[start : start + FEATURES_BATCH]).to(next(tower.parameters()).device)
        features[start : start + FEATURES_BATCH] = tower(part.flatten(0, 1)).unflatten(0, (-1, per_scene))
        report("features", min(start + FEATURES_BATCH, count), count, 0.0)
    return features


# --- language models ---------------------------------------------------------------------------------------


class TargetTask:
    """Caption prediction from eight frames, in batches.

    Beside it the decoder is asked how what lies under each patch of each frame but the first moves: captions
    alone teach that slowly, for they mention it once an object.
    """

    def __init__(
        self, samples: Samples, tower: ClipTower, tokenizer: FastTokenizer, batch: int, report: Report
    ) -> None:
        self._samples = samples
        self._tower = tower
        self._report = report
        self._answers = answer_ids(tokenizer, samples.captions)
        self._batch = batch
        self._before, self._after = (
            prompt_ids(tokenizer, part, bos)
            for part, bos in zip(target_prompt(DEFAULT_PROMPT).split(VIDEO_TOKEN), (True, False), strict=True)
        )

    @cached_property
    def _features(self) -> Tensor:
        """Of all frames; minutes, and not needed by a stage that is finished."""
        return tower_features(self._tower, self._samples.frames, self._report)

    def loss(self, model: VideoLlava, motion: nn.Linear, step: int) -> Tensor:
        """Mean cross entropy of one batch's captions, plus `patch_loss` of what `motion` reads off the
        frames.
        """
        chosen = drawn(len(self._answers), self._batch, step)
        video = model.projector(
            self._features[chosen].to(model.lm_head.weight.device).float()
        )  # [B, 8, tokens, D]
        answers = self._answers[chosen]
        told, rows = caption_loss(
            model.decoder, model.lm_head, self._before, video.flatten(1, 2), self._after, answers
        )
        patches = rows.view_as(video)[:, 1:, 1:]
        labels = motion_labels(self._samples.looks[chosen], self._samples.places[chosen])
        return told + patch_loss(motion(patches.flatten(0, 1)), labels)


class EventTask:
    """Caption prediction from five event images, in batches.

    Beside it the decoder is asked what lies under each patch, as the tower was: most of a caption's loss is
    about colours, which events do not show, and drowns what they do.
    """

    def __init__(
        self,
        samples: Samples,
        patches: PatchTask,
        tower: ClipTower,
        tokenizer: FastTokenizer,
        batch: int,
        report: Report,
    ) -> None:
        self._patches = patches
        self._tower = tower
        self._report = report
        self._answers = answer_ids(tokenizer, samples.captions)
        self._batch = batch
        before, after = event_prompt(DEFAULT_PROMPT)
        self._before, self._after = prompt_ids(tokenizer, before, True), prompt_ids(tokenizer, after, False)

    @cached_property
    def _features(self) -> Tensor:
        """Of all event images."""
        return tower_features(self._tower, self._patches.images, self._report)

    def loss(self, model: EventGpt, look: nn.Linear, step: int) -> Tensor:
        """Mean cross entropy of one batch's captions, plus `patch_loss` of what `look` reads off the tokens
        of the places.
        """
        chosen = drawn(len(self._answers), self._batch, step)
        events = model.pool(self._features[chosen].to(model.lm_head.weight.device).float())
        answers = self._answers[chosen]
        told, rows = caption_loss(model.decoder, model.lm_head, self._before, events, self._after, answers)
        images = self._patches.images.shape[1]
        patches = rows[:, images + 1 :]  # behind one token an image and the one of CLIP's class
        return told + patch_loss(look(patches), self._patches.labels(chosen, images - 1))


def caption_loss(
    decoder: LlamaDecoder, lm_head: nn.Linear, before: Tensor, seen: Tensor, after: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of answers [B, A] (IGNORED beyond their end) behind ids [b], features [B, V, D], ids
    [a]; and what the decoder makes of the features, [B, V, D].
    """
    before, after, answers = (ids.to(seen.device) for ids in (before, after, answers))
    answers = answers[:, : int((answers != IGNORED).sum(1).max())]
    batch = len(answers)
    given = answers[:, :-1].clamp(min=0)
    embeddings = torch.cat(
        (
            decoder.embed(before).expand(batch, -1, -1),
            seen,
            decoder.embed(after).expand(batch, -1, -1),
            decoder.embed(given),
        ),
        1,
    )
    hidden = decoder(embeddings).hidden
    logits = lm_head(hidden[:, -answers.shape[1] :]).float()
    told = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED)
    return told, hidden[:, len(before) : len(before) + seen.shape[1]]


def answer_ids(tokenizer: FastTokenizer, captions: Iterable[str]) -> Tensor:
    """Token ids [N, longest], </s> at each end and IGNORED behind it."""
    end = token_id(tokenizer, "</s>")
    rows = [[*encoding.ids, end] for encoding in tokenizer.encode_batch([str(text) for text in captions])]
    table = torch.full((len(rows), max(map(len, rows))), IGNORED)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return table


def prompt_ids(tokenizer: FastTokenizer, text: str, bos: bool) -> Tensor:
    """Token ids [T] of a part of a prompt."""
    start = [token_id(tokenizer, "<s>")] if bos else []
    return torch.tensor([*start, *tokenizer.encode(text).ids])


def token_id(tokenizer: FastTokenizer, token: str) -> int:
    """The id of a token that the tokenizer was made with."""
    index = tokenizer.token_to_id(token)
    assert index is not None, f"the tokenizer was made without {token}"
    return index


def drawn(count: int, batch: int, step: int) -> NDArray[np.int64]:
    """The samples of one step: every epoch goes through all of them in an order of its own."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([3, epoch]).permutation(count)
    return order[place * batch : (place + 1) * batch]


def _write(path: Path, model: nn.Module, save: Callable[..., None], special: Sequence[str]) -> None:
    save(model, path)
    save_tokenizer(train_tokenizer(special), path, special)
