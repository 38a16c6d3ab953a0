"""Training draft heads, with a tiny random target."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from random_pair import PROMPT, noise_scenes, random_pair

from evspec_ros.errors import TrainingError
from evspec_ros.networks.checkpoints import Head, load_draft_head, save_draft_head
from evspec_ros.networks.draft_head import Eagle3Head
from evspec_ros.speculative import (
    DecoderTarget,
    DecodingStatistics,
    DraftLimits,
    DraftModels,
    EventSide,
    NoDrafter,
    Prompt,
    generate,
    make_drafter,
)
from evspec_ros.speculative.eagle import EagleDrafter
from evspec_ros.training.acceptance import acceptance
from evspec_ros.training.draft_heads import TINY_PLANS, HeadPlan, needed_features, train_head
from evspec_ros.training.features import Computed, FeaturePlan, ModelPair, answer, extract
from evspec_ros.training.loop import Schedule

PLAN = HeadPlan(scenes=8, held_out=4, batch=4, schedule=Schedule(6, 1e-3, warmup=1), max_new_tokens=12)


def _quiet(stage: str, done: int, total: int, figure: float) -> None:
    """Progress that nobody looks at."""


def _train(run: Path, plan: HeadPlan = PLAN, report=_quiet) -> Head:  # type: ignore[no-untyped-def]
    pair = random_pair()
    wanted = needed_features(pair, plan)
    batches, tests = (
        extract(pair, noise_scenes, run / name, wanted, count, "noise", report)
        for name, count in (("train", plan.scenes), ("held_out", plan.held_out))
    )
    return train_head(pair, batches, tests, run, plan, report)


def test_answers_are_the_target_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and features of a batch are those of decoding each scene alone; after the end comes nothing."""
    monkeypatch.setattr("evspec_ros.training.features.fast_bfloat16", lambda device: False)
    pair = random_pair()
    target = pair.target
    scenes = noise_scenes(0, 4)
    found = answer(pair, scenes, FeaturePlan.for_pair(pair, max_new_tokens=12))
    end = int(found.tokens[0, 6])  # a token that ends the first answer in mid-block
    object.__setattr__(target.config.text, "end_tokens", (end,))
    found = answer(pair, scenes, FeaturePlan.for_pair(pair, max_new_tokens=12))
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
    """Some steps on eight answers; two kinds have an output head of their own to learn."""
    losses: list[float] = []
    agreements: list[float] = []

    def report(stage: str, done: int, total: int, figure: float) -> None:
        {kind: losses, "held-out agreement": agreements}.get(stage, []).append(figure)

    schedule = Schedule(200 if kind in ("block", "eagle3") else 60, 5e-3, warmup=3)
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
    pair = random_pair()
    learnt = [*pair.target.parameters(), *pair.event_model.parameters()]
    before = [parameter.clone() for parameter in learnt]
    answers = Computed(pair, noise_scenes, needed_features(pair, PLAN), 8)
    train_head(pair, answers, answers, tmp_path, PLAN, _quiet)
    assert all(torch.equal(old, new) for old, new in zip(before, learnt, strict=True))


@pytest.mark.parametrize("kind", list(TINY_PLANS))
def test_the_acceptance_length_is_what_the_decoder_shows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains on stored answers and real decoding with one branch give the same passes and tokens."""
    monkeypatch.setattr("evspec_ros.networks.block_head.BEST", 1)
    monkeypatch.setattr("evspec_ros.training.features.fast_bfloat16", lambda device: False)
    pair = random_pair()
    plan = dataclasses.replace(PLAN, kind=kind, schedule=Schedule(60, 5e-3, warmup=3))
    computed = Computed(pair, noise_scenes, needed_features(pair, plan), 8)
    answers = [computed[index] for index in range(len(computed))]
    head = train_head(pair, answers, answers, tmp_path, plan)
    n_max = 5
    found = acceptance(pair, head, answers, n_max)
    shown = _decoded(pair, head, n_max, plan.max_new_tokens)
    assert found["acceptance length"] == pytest.approx(shown.mean_accepted_length)
    assert shown.mean_accepted_length > 1.2


def _decoded(pair: ModelPair, head: Head, n_max: int, max_new_tokens: int) -> DecodingStatistics:
    """Eight scenes, decoded with chains."""
    target = pair.target
    decoder = DecoderTarget(target.decoder, target.lm_head, target.config.text.end_tokens, str)
    kind, side = head.config.kind, EventSide()
    drafter = (
        EagleDrafter(decoder, head, side)  # type: ignore[arg-type]
        if kind.startswith("eagle")
        else make_drafter(kind, decoder, DraftModels(head, pair.event_model, side))
    )
    scenes = noise_scenes(0, 8)
    before, after = (tuple(ids.tolist()) for ids in pair.event_ids)
    total = DecodingStatistics()
    for index in range(8):
        with torch.inference_mode():
            prompt = target.embed_prompt(PROMPT, target.encode_frames(scenes.frames[index]))[None]
            events = pair.event_model.encode_events(scenes.events[index])
        total += generate(
            decoder,
            drafter,
            Prompt(prompt, tuple(PROMPT.tolist()), lambda: events, (before, after)),  # noqa: B023
            max_new_tokens=max_new_tokens,
            limits=DraftLimits(n_max, n_max),
        ).statistics
    return total


def test_answers_shorter_than_the_unrolling_teach_as_well(tmp_path: Path) -> None:
    """EAGLE-3's eight drafted steps have no row in an answer of four tokens but the first three."""
    losses: list[float] = []

    def report(stage: str, done: int, total: int, figure: float) -> None:
        losses.extend([figure] if stage == "eagle3" else [])

    schedule = Schedule(60, 5e-3, warmup=3)
    _train(tmp_path, dataclasses.replace(PLAN, kind="eagle3", max_new_tokens=4, schedule=schedule), report)
    assert losses[-1] < 0.9 * losses[0]


def test_a_run_of_another_plan_is_refused(tmp_path: Path) -> None:
    """Its answers and its state would not fit."""
    _train(tmp_path)
    with pytest.raises(TrainingError, match="another plan"):
        _train(tmp_path, dataclasses.replace(PLAN, noise=0.5))


def test_training_ends_where_acceptance_grows_no_more(tmp_path: Path) -> None:
    """With patience 2 and a rate at which nothing is learnt, after the first examination and two more; again
    at once when it is called again.
    """
    schedule = Schedule(40, 1e-12, warmup=1)
    steps: list[int] = []

    def report(stage: str, done: int, total: int, figure: float) -> None:
        steps.extend([done] if stage == "eagle" else [])

    plan = dataclasses.replace(PLAN, schedule=schedule, patience=2)
    _train(tmp_path, plan, report)
    assert steps == list(range(1, 13))
    _train(tmp_path, plan, report)
    assert len(steps) == 12


def test_the_weights_that_were_accepted_longest_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the last ones, also by a run that was interrupted after they were found."""
    monkeypatch.setattr("evspec_ros.training.loop.SAVE_SECONDS", 0.0)
    scores = iter((1.0, 3.0, 2.0, 1.0))
    seen: list[torch.Tensor] = []

    def score(pair: ModelPair, head: Head, tests: object) -> dict[str, float]:
        seen.append(head.fc.weight.detach().clone())  # type: ignore[operator, union-attr]
        return {"acceptance length": next(scores)}

    def stop(stage: str, done: int, total: int, figure: float) -> None:
        if (stage, done) == ("eagle", 4):
            raise KeyboardInterrupt

    monkeypatch.setattr("evspec_ros.training.draft_heads.acceptance", score)
    monkeypatch.setattr("evspec_ros.training.draft_heads.EXAMINATIONS", 4)
    plan = dataclasses.replace(PLAN, schedule=Schedule(4, 1e-2, warmup=1))
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, plan, stop)
    head = _train(tmp_path, plan)
    assert len(seen) == 4
    assert torch.equal(head.fc.weight, seen[1])  # type: ignore[union-attr, arg-type]
    assert not torch.equal(seen[1], seen[3])


def test_a_reduced_vocabulary_holds_the_most_frequent_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head says nothing else, is saved and loaded with them, and the decoder shows its acceptance."""
    monkeypatch.setattr("evspec_ros.training.features.fast_bfloat16", lambda device: False)
    pair = random_pair()
    plan = dataclasses.replace(PLAN, kind="eagle3", vocabulary=9, schedule=Schedule(100, 5e-3, warmup=3))
    computed = Computed(pair, noise_scenes, needed_features(pair, plan), 8)
    answers = [computed[index] for index in range(len(computed))]
    head = train_head(pair, answers, answers, tmp_path, plan)
    said = [t for a in answers for row, n in zip(a.tokens, a.lengths, strict=True) for t in row[:n].tolist()]
    assert isinstance(head, Eagle3Head)
    assert len(head.config.tokens) == 9
    assert min(map(said.count, head.config.tokens)) >= max(
        said.count(token) for token in range(40) if token not in head.config.tokens
    )
    save_draft_head(head, tmp_path / "head", torch.float32)
    loaded = load_draft_head(tmp_path / "head")
    found = acceptance(pair, loaded, answers, 5)
    assert found == acceptance(pair, head, answers, 5)
    assert found["acceptance length"] > 1.1
    shown = _decoded(pair, loaded, 5, plan.max_new_tokens)
    assert found["acceptance length"] == pytest.approx(shown.mean_accepted_length)


def test_eagle3_has_no_features_to_compare(tmp_path: Path) -> None:
    """Its objective is the tokens' cross entropy alone."""
    with pytest.raises(TrainingError, match="cross_entropy alone"):
        _train(tmp_path, dataclasses.replace(PLAN, kind="eagle3", objective="mse"))
