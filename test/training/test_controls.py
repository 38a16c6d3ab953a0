"""Answers without events, with the shipped kinds of models at random."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from random_pair import noise_scenes, random_pair

from evspec_ros.training.acceptance import acceptance, free_tokens
from evspec_ros.training.controls import ON, SHUFFLED, ZEROED, Controlled
from evspec_ros.training.draft_heads import TINY_PLANS, needed_features
from evspec_ros.training.features import Answers, Computed, ModelPair, SceneBatch, Scenes, read_answers


def _answers(pair: ModelPair, scenes: Scenes = noise_scenes) -> Answers:
    plan = dataclasses.replace(TINY_PLANS["eventgpt_adapter"], max_new_tokens=12)
    return Computed(pair, scenes, needed_features(pair, plan), 4)[0]


def _same(one: Answers, other: Answers, *names: str) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_on_changes_nothing() -> None:
    """The batch itself."""
    pair = random_pair()
    batches = [_answers(pair)]
    assert Controlled(pair, batches, ON)[0] is batches[0]


@pytest.mark.parametrize("control", [ZEROED, SHUFFLED])
def test_only_what_comes_of_events_changes(control: str) -> None:
    """The target's answers and features stay; event tokens and what the event model made of them do not."""
    pair = random_pair()
    batches = [_answers(pair)]
    found = Controlled(pair, batches, control)[0]
    assert _same(found, batches[0], "prompt", "tokens", "lengths", "features")
    assert not _same(found, batches[0], "events")
    assert not _same(found, batches[0], "event_features")
    assert torch.equal(found.events, torch.zeros_like(found.events)) is (control == ZEROED)


def test_shuffled_events_are_those_of_the_scene_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that scene's events had been recorded with this scene's frames."""
    monkeypatch.setattr("evspec_ros.training.features.fast_bfloat16", lambda device: False)
    pair = random_pair()
    shuffled = Controlled(pair, [_answers(pair)], SHUFFLED)[0]

    def exchanged(start: int, stop: int) -> SceneBatch:
        scenes = noise_scenes(start, stop)
        return SceneBatch(scenes.frames, scenes.events.roll(1, 0))

    wanted = _answers(pair, exchanged)
    torch.testing.assert_close(shuffled.events, wanted.events)
    torch.testing.assert_close(shuffled.event_features, wanted.event_features)


def test_what_the_event_model_itself_wrote_is_followed_whole() -> None:
    """Where the answers are its own, each of its tokens is accepted, and of free ones as many as written."""
    pair = random_pair()
    model, answers = pair.event_model, _answers(pair)
    last = (model.config.text.num_layers,)
    tokens = answers.tokens.clone()
    for place in range(1, tokens.shape[1]):
        features = read_answers(pair, answers.events, tokens, last)[:, place]
        tokens[:, place] = model.lm_head(model.decoder.norm(features)).argmax(-1)
    own = dataclasses.replace(
        answers,
        tokens=tokens,
        lengths=torch.full_like(answers.lengths, tokens.shape[1]),
        event_features=read_answers(pair, answers.events, tokens, last),
    )
    assert acceptance(pair, None, [own])["held-out agreement"] == 1.0
    assert free_tokens(pair, None, [own], written=5) == 5
    assert free_tokens(pair, None, [answers], written=5) < 5
