"""Training the tiny checkpoints: the parts, and the whole at a size of seconds."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from evspec_ros.errors import TrainingError
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.networks.checkpoints import load_eventgpt, load_video_llava
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.tiny import TINY_CLIP, tiny_eventgpt, tiny_video_llava
from evspec_ros.networks.tokenizer import load_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.prompts import DEFAULT_PROMPT, EVENT_TOKENS, target_prompt
from evspec_ros.simulation.samples import NO_OBJECT, make_sample, make_samples
from evspec_ros.simulation.scenes import DIRECTIONS
from evspec_ros.training import dataset
from evspec_ros.training.loop import Schedule, fit
from evspec_ros.training.patches import (
    WAY_UNIT,
    WAYS,
    columns,
    event_patches,
    motion_labels,
    normalise,
    patch_labels,
    ranks,
)
from evspec_ros.training.rollout import greedy_answers
from evspec_ros.training.tiny import TARGET_TOKENS, EventTask, TinyPlan, answer_ids, deepen, drawn, train_tiny
from evspec_ros.training.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(TARGET_TOKENS)


@given(st.text(st.characters(codec="utf-8", exclude_characters="▁\x00")))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    """What has no token of its own falls back to bytes, as in LLaMA."""
    if not text.startswith(" ") and "<" not in text:  # "<" may begin a special token
        assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


class OnePatch(nn.Module):
    """A tower that sees something under patch `patch` alone."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.config = TINY_CLIP
        self.seen = nn.Parameter(torch.zeros(TINY_CLIP.tokens, TINY_CLIP.hidden_size), requires_grad=False)
        self.seen[patch + 1] = 1.0  # behind CLIP's class token

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] -> [N, tokens, hidden], whatever is there."""
        return self.seen.expand(len(pixels), -1, -1)


@pytest.mark.parametrize("patch", [0, 7, 15])
def test_the_event_model_is_asked_about_a_patch_at_its_own_token(patch: int) -> None:
    """Where no token reads another, only the row of the patch that shows something differs from the rest."""
    samples = make_samples("train", 0, 2, TINY_CLIP.image_size)
    tokenizer = train_tokenizer(EVENT_TOKENS)
    model = EventGpt(tiny_eventgpt(tokenizer.get_vocab_size()))
    for layer in model.decoder.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
    seen = event_patches(samples)
    look = nn.Linear(model.config.text.hidden_size, columns(seen.sizes) + 2)
    asked: list[torch.Tensor] = []
    look.register_forward_pre_hook(lambda _, given: asked.append(given[0]))
    task = EventTask(samples, seen, OnePatch(patch), tokenizer, 2, lambda *_: None)
    task.loss(model, look, 0)
    (rows,) = asked
    others = torch.cat((rows[:, :patch], rows[:, patch + 1 :]), 1)
    assert rows.shape[:2] == (2, 16)
    torch.testing.assert_close(others, others[:, :1].expand_as(others))
    assert not torch.allclose(rows[:, patch], others[:, 0])


def test_both_models_share_the_base_vocabulary() -> None:
    """Ids below the special tokens mean the same, so that one model's tokens can be the other's drafts."""
    other = train_tokenizer(EVENT_TOKENS)
    base = {t: i for t, i in TOKENIZER.get_vocab().items() if t not in TARGET_TOKENS}
    assert base == {t: i for t, i in other.get_vocab().items() if t not in EVENT_TOKENS}
    assert [TOKENIZER.token_to_id(token) for token in ("<unk>", "<s>", "</s>", "<0x00>")] == [0, 1, 2, 3]


def test_normalised_samples_are_what_the_preprocessor_makes() -> None:
    """Training and describing see the same pixels."""
    image = np.random.default_rng(0).integers(0, 256, (100, 80, 3), np.uint8)
    preprocessor = ClipPreprocessor(64)
    seen = normalise(preprocessor.resize(image)[None])
    np.testing.assert_allclose(seen.numpy(), preprocessor([image]), atol=1e-5)


def test_deepening_changes_nothing_at_first() -> None:
    """The layers put between add nothing until they are trained."""
    config = tiny_video_llava(60, 58, 59)
    shallow = VideoLlava(replace(config, text=replace(config.text, num_layers=3))).eval()
    deep = VideoLlava(replace(config, text=replace(config.text, num_layers=7))).eval()
    deepen(shallow, deep)
    embeddings = torch.randn(1, 9, config.text.hidden_size)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(deep.decoder(embeddings).hidden, shallow.decoder(embeddings).hidden)
        torch.testing.assert_close(deep.encode_frames(pixels), shallow.encode_frames(pixels))
        assert (deep.lm_head.weight == shallow.lm_head.weight).all()


def one_object(looks: tuple[int, ...], x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Looks [1, 3, A] and places [1, 3, 2] of a single object."""
    all_looks = np.full((1, 3, len(looks)), NO_OBJECT, np.int8)
    all_looks[0, 0] = looks
    places = np.zeros((1, 3, 2), np.float32)
    places[0, 0] = x, y
    return all_looks, places


def test_patch_labels_of_one_object() -> None:
    """Looks (1, 2, 1) of 3 x 4 x 2 at (0.45, 0.2) of a 4 x 4 grid lie in patch 1, right of and below its
    middle.
    """
    labels = patch_labels(*one_object((1, 2, 1), 0.45, 0.2), (3, 4, 2))
    assert labels.centred[0].nonzero().flatten().tolist() == [1]
    torch.testing.assert_close(labels.vectors[0, 1], torch.tensor([0.3, 0.3]))
    assert labels.wanted[0].sum(1).nonzero().flatten().tolist() == [1, 2, 5, 6]  # whose middles are near
    assert labels.wanted[0, 1].nonzero().flatten().tolist() == [1, 3 + 2, 3 + 4 + 1, 3 + 4 + 2 + 1 * 4 + 2]


def test_ranks_count_the_objects_to_the_left() -> None:
    """An object that is not there has none and counts for nobody."""
    looks = np.array([[[0], [0], [NO_OBJECT]]], np.int8)
    places = np.array([[[0.7, 0.1], [0.2, 0.9], [0.0, 0.0]]], np.float32)
    assert ranks(looks, places)[0, :, 0].tolist() == [1, 0, NO_OBJECT]


def test_motion_labels_follow_the_places() -> None:
    """Quickly downwards, then (after the wall) upwards; the vector is the way since the frame before."""
    looks, _ = one_object((0, 0, DIRECTIONS.index("downwards"), 0), 0, 0)
    places = np.zeros((1, 3, 8, 2), np.float32)
    places[0, 0] = [(0.4, y) for y in (0.55, 0.63, 0.71, 0.79, 0.87, 0.79, 0.71, 0.63)]
    labels = motion_labels(looks, places)
    seen = [frame.nonzero().flatten().tolist() for frame in labels.centred]
    assert seen == [[9], [9], [13], [13], [13], [9], [9]]  # one frame after another, but the first
    downwards, upwards, quick = DIRECTIONS.index("downwards"), DIRECTIONS.index("upwards"), WAYS + 1
    ways = [downwards] * 4 + [upwards] * 3
    for frame, (patch, way) in enumerate(zip((9, 9, 13, 13, 13, 9, 9), ways, strict=True)):
        assert labels.wanted[frame, patch, [way, quick]].tolist() == [1, 1]
        sign = 1 if way == downwards else -1
        torch.testing.assert_close(labels.vectors[frame, patch], torch.tensor([0, sign * 0.08 / WAY_UNIT]))


def test_every_sample_is_drawn_once_an_epoch() -> None:
    """Batches of an epoch are disjoint, and the next epoch has another order."""
    first = np.concatenate([drawn(12, 4, step) for step in range(3)])
    second = np.concatenate([drawn(12, 4, step) for step in range(3, 6)])
    assert sorted(first) == sorted(second) == list(range(12))
    assert (first != second).any()


def test_answers_end_with_the_end_token() -> None:
    """Rows are padded behind it."""
    rows = answer_ids(TOKENIZER, ["a ball", "a ball a box a ball"])
    assert rows[0].tolist()[-1] == -100
    assert rows[1].tolist()[-1] == TOKENIZER.token_to_id("</s>")


def _regression(run: Path, steps: int, stop_at: int = -1) -> nn.Module:
    """A linear layer that Muon trains, one that AdamW trains; stop_at: the step that is interrupted."""
    torch.manual_seed(0)
    inner = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])})
    model = nn.ModuleDict({"decoder": inner, "out": nn.Linear(4, 1)})
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))

    def loss(step: int) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        batch = inputs[step % 8 :: 8]
        found = model["out"](inner["layers"][0](batch))  # type: ignore[index]
        return (found.squeeze(-1) - batch.sum(1)).square().mean()

    fit("regression", model, loss, Schedule(steps, 0.01, warmup=2), run)
    return model


@contextmanager
def _files_no_longer_than(size: int) -> Iterator[None]:
    """The system refuses more, here and in processes that begin meanwhile, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, both optimizers' states and the schedule go on."""
    monkeypatch.setattr("evspec_ros.training.loop.SAVE_SECONDS", 0.0)
    whole = _regression(tmp_path / "whole", 20)
    with pytest.raises(KeyboardInterrupt):
        _regression(tmp_path / "halves", 20, stop_at=11)
    resumed = _regression(tmp_path / "halves", 20)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_a_foreign_state_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    _regression(tmp_path, 2)
    with pytest.raises(TrainingError, match=r"regression\.pt holds the state of another model"):
        fit("regression", nn.Linear(2, 2), lambda step: torch.zeros(()), Schedule(3, 0.1), tmp_path)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    """A file that torch cannot read gives one sentence."""
    (tmp_path / "regression.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(TrainingError, match=r"regression\.pt"):
        _regression(tmp_path, 2)


def test_a_disk_that_fills_up_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses to write on in mid-state: one sentence, and with room again it goes on."""
    monkeypatch.setattr("evspec_ros.training.loop.SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        _regression(tmp_path, 20, stop_at=5)
    kept = (tmp_path / "regression.pt").read_bytes()
    with _files_no_longer_than(1000), pytest.raises(TrainingError, match=r"regression\.pt cannot be written"):
        _regression(tmp_path, 20)
    assert (tmp_path / "regression.pt").read_bytes() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["regression.pt"]
    _regression(tmp_path, 20)


@pytest.fixture
def _any_precision() -> Iterator[None]:
    """Accelerate keeps the first one for the rest of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("_any_precision")
def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    """Two batches, one after the other, teach what one of both does."""
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def train(accumulate: int, run: Path) -> nn.Linear:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)

        def loss(number: int) -> torch.Tensor:
            batch = inputs.chunk(accumulate)[number % accumulate]
            return (model(batch).squeeze(-1) - batch.sum(1)).square().mean()

        fit("one", model, loss, Schedule(5, 0.01, warmup=1, accumulate=accumulate, precision="no"), run)
        return model

    one, two = train(1, tmp_path / "one"), train(2, tmp_path / "two")
    torch.testing.assert_close(one.weight, two.weight)
    assert not torch.equal(one.weight, nn.Linear(4, 1).weight)


@pytest.mark.usefixtures("_any_precision")
@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_mixed_precision_computes_in_it_and_keeps_float32_weights(
    precision: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Products are in the precision asked for, weights and optimiser are not."""
    model = nn.Linear(4, 4)
    seen: list[torch.dtype] = []

    def loss(number: int) -> torch.Tensor:
        product = model(torch.ones(2, 4))
        seen.append(product.dtype)
        return product.float().square().mean()

    fit("one", model, loss, Schedule(2, 0.01, warmup=1, precision=precision), tmp_path)
    assert seen == [dtype] * 2
    assert model.weight.dtype == torch.float32


def test_a_precision_that_the_processor_lacks_is_refused(tmp_path: Path) -> None:
    """One sentence that names it and the others, rather than float32 without a word."""
    model = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match="fp16 cannot be had on cpu; choose another of no, bf16"):
        fit("one", model, lambda _: model.weight.sum(), Schedule(1, 0.1, precision="fp16"), tmp_path)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    """Rather than write weights of it."""
    model = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match="nan"):
        fit("nan", model, lambda step: model.weight.sum() * float("nan"), Schedule(3, 0.1), tmp_path)


def test_samples_are_the_same_on_every_draw_and_differ_between_splits() -> None:
    """A scene is its split and its number."""
    one, same = make_sample("train", 5, TINY_CLIP.image_size), make_sample("train", 5, TINY_CLIP.image_size)
    other = make_sample("held_out", 5, TINY_CLIP.image_size)
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(same, name))
    assert one.captions[0] != other.captions[0]
    assert one.frames.shape == (1, 8, 64, 64, 3)
    assert one.event_images.shape == (1, 5, 64, 64, 3)


def test_interrupted_data_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that are there are left alone; a half-written one is not taken for whole."""
    monkeypatch.setattr(dataset, "SHARD", 2)
    dataset.prepare(tmp_path, "train", 2)
    written = (tmp_path / "train-000000.npz").stat().st_mtime_ns
    (tmp_path / "train-000002.npz.part").write_bytes(b"half")
    progress: list[int] = []
    dataset.prepare(tmp_path, "train", 4, lambda stage, done, *_: progress.append(done))
    assert (tmp_path / "train-000000.npz").stat().st_mtime_ns == written
    assert progress == [4]
    samples = dataset.load(tmp_path, "train", 4)
    np.testing.assert_array_equal(samples.frames[3], make_sample("train", 3, TINY_CLIP.image_size).frames[0])


def test_scenes_that_do_not_fit_on_the_disk_or_are_damaged_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence each, also out of another process; a shard that was begun is not there."""
    monkeypatch.setattr(dataset, "SHARD", 1)
    shard = tmp_path / "train-000000.npz"
    with _files_no_longer_than(1000), pytest.raises(TrainingError, match=r"train-000000\.npz cannot be writ"):
        dataset.prepare(tmp_path, "train", 1)
    assert not list(tmp_path.iterdir())
    dataset.prepare(tmp_path, "train", 1)
    whole = shard.read_bytes()
    for damaged in (whole[:-100], whole[:100], b""):
        shard.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"train-000000\.npz is damaged .* delete it"):
            dataset.load(tmp_path, "train", 1)


def test_the_whole_training_writes_checkpoints_in_the_published_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps of each stage: both directories load, transformers' own loader included."""
    from transformers import VideoLlavaForConditionalGeneration

    monkeypatch.setattr(dataset, "SHARD", 4)
    short = Schedule(2, 1e-3, warmup=1)
    plan = TinyPlan(
        scenes=8,
        batch=2,
        tower_batch=4,
        tower=short,
        event_tower=short,
        shallow=short,
        deep=short,
        event=short,
        shallow_layers=2,
    )
    stages: list[str] = []
    train_tiny(tmp_path / "run", tmp_path / "models", plan, lambda stage, *_: stages.append(stage))
    assert set(stages) == {
        "scenes",
        "frame-tower",
        "features",
        "target-shallow",
        "target-deep",
        "event-tower",
        "event-model",
    }
    target = load_video_llava(tmp_path / "models" / "tiny_video_llava")
    assert 5e6 < sum(p.numel() for p in target.parameters()) < 10e6
    event_model = load_eventgpt(tmp_path / "models" / "tiny_eventgpt")
    assert sum(p.numel() for p in event_model.parameters()) < 5e6
    _, problems = VideoLlavaForConditionalGeneration.from_pretrained(
        tmp_path / "models" / "tiny_video_llava", output_loading_info=True
    )
    assert not problems["missing_keys"]
    assert not problems["unexpected_keys"]
    tokenizer = load_tokenizer(tmp_path / "models" / "tiny_video_llava")
    ids = torch.tensor(tokenizer.encode(target_prompt(DEFAULT_PROMPT), bos=True))
    prompt = target.embed_prompt(ids, target.encode_frames(torch.randn(8, 3, 64, 64)))
    assert prompt.shape == (len(ids) - 1 + 8 * TINY_CLIP.tokens, 256)
    rollout = greedy_answers(target.decoder, target.lm_head, prompt[None].expand(2, -1, -1), 5)
    assert rollout.tokens.shape[0] == 2
    assert (rollout.tokens[0] == rollout.tokens[1]).all()
