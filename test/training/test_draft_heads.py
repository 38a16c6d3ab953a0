"""Training draft heads, with a tiny random target."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from evspec_ros.errors import TrainingError
from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.draft_head import EagleConfig, EagleHead
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig
from evspec_ros.speculative import DecoderTarget, NoDrafter, Prompt, generate
from evspec_ros.training.draft_heads import (
    TINY_PLANS,
    Answers,
    HeadPlan,
    ModelPair,
    SceneBatch,
    agreement,
    answer,
    train_head,
)
from evspec_ros.training.loop import Schedule

CLIP = ClipConfig(16, 32, 2, 2, 32, 16, projection_dim=16)
VIDEO_TOKEN, EOS = 39, 2
PROMPT = torch.tensor([1, 5, VIDEO_TOKEN, 7, 8])
PLAN = HeadPlan(scenes=8, held_out=4, batch=4, schedule=Schedule(6, 1e-3, warmup=1), max_new_tokens=12)


def _models() -> ModelPair:
    torch.manual_seed(0)
    target = VideoLlava(
        VideoLlavaConfig(LlamaConfig(40, 32, 48, 3, 4, 4, 8, max_positions=96), CLIP, 38, VIDEO_TOKEN)
    )
    event_model = EventGpt(EventGptConfig(LlamaConfig(40, 24, 32, 1, 2, 2, 12, max_positions=96), CLIP))
    with torch.no_grad():
        for parameter in (*target.parameters(), *event_model.parameters()):
            if parameter.dim() >= 2:
                parameter.normal_(std=0.3)
    return ModelPair(target.eval(), event_model.eval(), PROMPT, (torch.tensor([1, 4]), torch.tensor([6, 9])))


def _scenes(start: int, stop: int) -> SceneBatch:
    """Noise in place of scenes: batch k is always the same."""
    generator = torch.Generator().manual_seed(start)
    count = stop - start
    return SceneBatch(
        torch.randn(count, 8, 3, 32, 32, generator=generator),
        torch.randn(count, 5, 3, 32, 32, generator=generator),
    )


def _quiet(stage: str, done: int, total: int, figure: float) -> None:
    """Progress that nobody looks at."""


def _train(run: Path, plan: HeadPlan = PLAN, report=_quiet) -> EagleHead:  # type: ignore[no-untyped-def]
    return train_head(_models(), _scenes, _scenes, run, plan, report)


def test_answers_are_the_target_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and features of a batch are those of decoding each scene alone; after the end comes nothing."""
    monkeypatch.setattr("evspec_ros.training.draft_heads.fast_bfloat16", lambda device: False)
    pair = _models()
    target = pair.target
    scenes = _scenes(0, 4)
    found = answer(pair, scenes, 12)
    end = int(found.tokens[0, 6])  # a token that ends the first answer in mid-block
    object.__setattr__(target.config.text, "eos_token_id", end)
    found = answer(pair, scenes, 12)
    alone = DecoderTarget(target.decoder, target.lm_head, {end}, str)
    for index in range(4):
        with torch.inference_mode():
            prompt = target.embed_prompt(PROMPT, target.encode_frames(scenes.frames[index]))
        torch.testing.assert_close(found.prompt[index], prompt, atol=1e-4, rtol=1e-4)
        tokens = generate(alone, NoDrafter(), Prompt(prompt[None]), max_new_tokens=12).tokens
        length = int(found.lengths[index])
        assert tuple(found.tokens[index, :length].tolist()) == tokens
        assert (found.tokens[index, length:] == end).all()
        with torch.inference_mode():
            read = torch.cat((prompt, target.decoder.embed(torch.tensor(tokens[:-1], dtype=torch.long))))
            features = target.decoder(read[None], layers=(3,)).features[0][0]
        torch.testing.assert_close(found.features[index, : len(read)], features, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", list(TINY_PLANS))
def test_training_reduces_the_loss_and_raises_the_agreement(kind: str, tmp_path: Path) -> None:
    """Some steps on eight answers; EAGLE-3's head has an output head of its own to learn."""
    losses: list[float] = []
    agreements: list[float] = []

    def report(stage: str, done: int, total: int, figure: float) -> None:
        {kind: losses, "held-out agreement": agreements}.get(stage, []).append(figure)

    schedule = Schedule(200 if kind == "eagle3" else 60, 5e-3, warmup=3)
    _train(tmp_path, dataclasses.replace(PLAN, kind=kind, schedule=schedule), report)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])  # each is a mean over the steps before it
    assert agreements[-1] > agreements[0] + 0.1


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while answers are computed and again between steps: the same weights to the bit."""
    monkeypatch.setattr("evspec_ros.training.loop.SAVE_SECONDS", 0.0)
    whole = _train(tmp_path / "whole")
    for last in (("answers, train", 4), ("eagle", 4)):

        def stop(stage: str, done: int, total: int, figure: float) -> None:
            if (stage, done) == last:  # noqa: B023
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "parts", report=stop)
    resumed = _train(tmp_path / "parts")
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_only_the_head_learns(tmp_path: Path) -> None:
    """The weights of target and event model are what they were."""
    pair = _models()
    learnt = [*pair.target.parameters(), *pair.event_model.parameters()]
    before = [parameter.clone() for parameter in learnt]
    train_head(pair, _scenes, _scenes, tmp_path, PLAN, _quiet)
    assert all(torch.equal(old, new) for old, new in zip(before, learnt, strict=True))


def test_a_head_that_knows_the_features_agrees(tmp_path: Path) -> None:
    """Rows are aligned: a head that returns the true next feature agrees always, one a row off does not."""
    pair = _models()
    answers = answer(pair, _scenes(0, 4), 12)
    answers.save(tmp_path / "answers.safetensors")
    features = Answers.load(tmp_path / "answers.safetensors").features

    class Oracle(EagleHead):
        """Knows the answers' features."""

        shift = 0

        def forward(self, embeddings: torch.Tensor, carried: torch.Tensor, *_: object) -> torch.Tensor:
            """Those of so many rows on."""
            return features[:, self.shift : self.shift + carried.shape[1]]

    oracle = Oracle(EagleConfig.for_target(pair.target.config.text, 24, 10))
    assert agreement(pair, oracle, [tmp_path / "answers.safetensors"]) < 0.9
    oracle.shift = 1
    assert agreement(pair, oracle, [tmp_path / "answers.safetensors"]) == 1.0


def test_a_run_of_another_plan_is_refused(tmp_path: Path) -> None:
    """Its answers and its state would not fit."""
    _train(tmp_path)
    with pytest.raises(TrainingError, match="another plan"):
        _train(tmp_path, dataclasses.replace(PLAN, noise=0.5))
