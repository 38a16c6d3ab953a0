"""Online distillation: what is kept of descriptions, and when a better head takes over."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from random_pair import PROMPT, noise_scenes, random_pair

from evspec_ros.cancellation import check
from evspec_ros.describer import SceneDescriber
from evspec_ros.errors import GenerationError
from evspec_ros.loading import load_describer
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.checkpoints import load_draft_head, save_draft_head
from evspec_ros.networks.head_store import HeadStore
from evspec_ros.recordings import open_recording
from evspec_ros.simulation.recorded_scene import record_scene
from evspec_ros.speculative import DecoderTarget, Drafter, EventSide, NoDrafter, Prompt, generate
from evspec_ros.speculative.block import BlockDrafter
from evspec_ros.speculative.eagle import EagleDrafter
from evspec_ros.speculative.learner import LEARNING_HEADS
from evspec_ros.training import online
from evspec_ros.training.draft_heads import HeadPlan, loss_of, needed_features, new_head
from evspec_ros.training.features import Computed
from evspec_ros.training.observed import Pupil, Written, together
from evspec_ros.training.online import OnlineDistiller, OnlineSettings

PAIR = random_pair()
LONG_S = 300  # a thread of the lowest priority may wait for long on a busy machine
QUICK = OnlineSettings(held_out=4, steps=40, trial=40, learning_rate=5e-3, share=1.0)
MODELS = Path(__file__).parents[2] / "models"
TOKENS = 12


def _distiller(kind: str = "eagle3", settings: OnlineSettings = QUICK, **options: Any) -> OnlineDistiller:
    head = new_head(PAIR, HeadPlan(kind))
    assert isinstance(head, LEARNING_HEADS)
    layers = head.feature_layers(PAIR.target.config.text.num_layers)
    return OnlineDistiller(PAIR, Pupil(head, layers), settings, **options)


def _describe(distiller: OnlineDistiller, scenes: range) -> None:
    """Let the head of a distiller draft what the target says about scenes."""
    target = PAIR.target
    decoder = DecoderTarget(target.decoder, target.lm_head, {2}, str)
    head = distiller._head
    if not distiller.drafts:
        inner: Drafter = NoDrafter()
    elif isinstance(head, BlockHead):
        inner = BlockDrafter(decoder, head, EventSide())
    else:
        inner = EagleDrafter(decoder, head, EventSide(), branches=4)
    drafter = distiller.observed(inner)
    for number in scenes:
        seen = noise_scenes(number, number + 1)
        with torch.inference_mode():
            prompt = target.embed_prompt(PROMPT, target.encode_frames(seen.frames[0]))[None]
            events = PAIR.event_model.encode_events(seen.events[0])
        with distiller.writing():
            generate(decoder, drafter, Prompt(prompt, (), lambda: events), max_new_tokens=TOKENS)  # noqa: B023
        while distiller._waiting and distiller._thread.ident is None:
            distiller._go_on()


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "block"])
def test_what_is_kept_is_what_an_extraction_would_have_computed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt, events, tokens and features of each text, in half precision."""
    monkeypatch.setattr("evspec_ros.training.features.fast_bfloat16", lambda device: False)
    distiller = _distiller(kind)
    _describe(distiller, range(4))
    plan = replace(needed_features(PAIR, HeadPlan(kind, max_new_tokens=TOKENS)), shard=1)
    assert len(distiller._windows) >= 3
    computed = Computed(PAIR, noise_scenes, plan, 4)
    expected = [computed[index] for index in range(4)]
    for found in distiller._windows:
        true = min(expected, key=lambda one: float((one.events - found.events).norm()))
        length = int(found.lengths)
        assert torch.equal(found.tokens[0], true.tokens[0, :length])
        rows = found.features.shape[1]
        assert rows == plan.context + length
        torch.testing.assert_close(found.features.float(), true.features[:, :rows], atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(found.events.float(), true.events, atol=1e-2, rtol=1e-2)


def test_the_oldest_windows_are_forgotten_beyond_the_bound() -> None:
    """In bytes of what is kept; one that is larger than all is not kept."""
    window = Written(*(torch.zeros(1, 100, dtype=torch.half) for _ in range(7)))  # 1,400 bytes
    distiller = _distiller(settings=replace(QUICK, max_bytes=5700))
    for number in range(10):
        distiller.add(replace(window, prompt=torch.full((1, 100), number, dtype=torch.half)))
    assert [int(kept.prompt[0, 0]) for kept in distiller._windows] == [6, 7, 8, 9]
    distiller.add(replace(window, prompt=torch.zeros(1, 10_000, dtype=torch.half)))
    assert not distiller._windows


@pytest.mark.parametrize("kind", ["eagle3", "block"])
def test_a_copy_takes_over_where_it_is_accepted_further(kind: str) -> None:
    """The weights are exchanged by `take` alone, and the version counts them."""
    distiller = _distiller(kind)
    head = distiller._head
    before = deepcopy(head.state_dict())
    _describe(distiller, range(12))
    for _ in range(100):
        distiller.learn()
    assert not distiller.take()
    distiller.compare()
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert distiller.take()
    assert distiller.version == 1
    assert not distiller.take()
    _assert_equal(distiller._student, head)


def test_a_new_head_drafts_once_it_would_take_the_passes_further(tmp_path: Path) -> None:
    """Until then it learns on; the weights that are saved are those that learn, then those that draft. Here
    the scenes come twice, so that there is little to learn.
    """
    store = HeadStore(tmp_path, {"target": "t", "event_model": "e", "vocabulary": "v"})
    distiller = _distiller("block", replace(QUICK, batch=4), drafts=False, store=store)
    _describe(distiller, range(6))
    _describe(distiller, range(6))
    distiller.compare()
    assert not distiller.take()
    assert not distiller.drafts
    for _ in range(100):
        distiller.learn()
    assert distiller.steps == 100
    distiller.save()
    assert json.loads((tmp_path / "learnt_from.json").read_text())["drafts"] is False
    saved = load_draft_head(tmp_path).state_dict()
    assert all(torch.equal(value, saved[name].float()) for name, value in _halved(distiller._student).items())
    distiller.compare()
    assert distiller.accepted is not None
    assert distiller.accepted > online.WORTHWHILE
    assert distiller.take()
    assert distiller.drafts
    assert distiller.version == 1
    for _ in range(3):
        distiller.learn()
    distiller.save()
    assert json.loads((tmp_path / "learnt_from.json").read_text())["drafts"] is True
    saved = load_draft_head(tmp_path).state_dict()
    assert all(torch.equal(value, saved[name].float()) for name, value in _halved(distiller._head).items())


def _halved(head: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.half().float() for name, value in head.state_dict().items()}


def test_how_far_passes_would_have_come_is_counted_from_where_they_were_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two passes one had emitted three tokens, where the head comes two far, the other one, where the head
    comes to the end, three tokens on: 2 tokens a pass become 3.
    """
    distiller = _distiller("block", drafts=False)
    rest = (torch.zeros(1, 5, 8), torch.zeros(1, 7, 2), torch.zeros(1, 7, 0))
    window = Written(
        torch.zeros(1, 2, 0), torch.zeros(1, 7, dtype=torch.int64), torch.tensor([7]), *rest,
        torch.tensor([[0, 3], [3, 1]]),
    )  # fmt: skip
    follows = torch.tensor([[1, 9, 9, 4, 9, 9]])
    monkeypatch.setattr(online, "accepted_drafts", lambda *_: follows)
    assert distiller._beside([window]) == (3.0, 2.0)


def test_it_is_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the time has passed and something was learnt."""
    store = HeadStore(tmp_path, {"target": "t", "event_model": "e", "vocabulary": "v"})
    distiller = _distiller("block", replace(QUICK, trial=10_000), store=store)
    _describe(distiller, range(8))
    distiller._go_on()
    assert not list(tmp_path.iterdir())
    distiller._saved_at -= online.SAVE_EVERY_S
    distiller._go_on()
    assert (tmp_path / "config.json").is_file()


def test_windows_of_unlike_lengths_are_learnt_from_together() -> None:
    """The loss of a batch does not see the padding."""
    distiller = _distiller("block", replace(QUICK, batch=4))
    _describe(distiller, range(12))
    other = distiller._windows[-1]
    cut = other.tokens.shape[1] - 5
    one = replace(
        other,
        tokens=other.tokens[:, :5],
        lengths=torch.tensor([5]),
        features=other.features[:, :-cut],
        event_features=other.event_features[:, :5],
    )
    loss = loss_of("block")
    plan = HeadPlan("block")

    def of(*chosen: Written) -> torch.Tensor:
        head = distiller._student
        return loss(PAIR, head, together(chosen, PAIR.device), 0, plan)

    padded = together([one, other], PAIR.device)
    alone = replace(padded, **{name: value[:1] for name, value in vars(padded).items()})
    torch.testing.assert_close(loss(PAIR, distiller._student, alone, 0, plan), of(one))
    before = deepcopy(distiller._student.state_dict())
    distiller.learn()
    assert not torch.equal(before["fc.weight"], distiller._student.state_dict()["fc.weight"])


def test_a_worse_copy_is_thrown_away() -> None:
    """It begins again from the head that drafts."""
    distiller = _distiller()
    _describe(distiller, range(12))
    for _ in range(100):
        distiller.learn()
    distiller.compare()
    assert distiller.take()
    with torch.no_grad():
        for parameter in distiller._student.parameters():
            parameter.zero_()
    distiller.compare()
    assert not distiller.take()
    assert distiller.version == 1
    _assert_equal(distiller._student, distiller._head)


def _assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    weights = other.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


def test_nothing_is_learnt_while_a_description_is_written() -> None:
    """And in all no more than so many steps for each window."""
    distiller = _distiller(settings=replace(QUICK, steps=3, trial=10_000))
    _describe(distiller, range(8))
    windows = len(distiller._windows)
    try:
        with distiller.writing():
            distiller.start()
            time.sleep(0.2)
            assert distiller.steps == 0
        deadline = time.monotonic() + LONG_S
        while distiller.steps < 3 * windows and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        assert distiller.steps == 3 * windows
    finally:
        distiller.close()
    distiller._thread.join(5)
    assert not distiller._thread.is_alive()


def test_who_saves_does_not_wait_for_a_step() -> None:
    """It is given up between two layers, which is no failure, and learning goes on."""
    distiller, steps = _distiller(), threading.Semaphore(0)

    def learn() -> None:
        steps.release()
        deadline = time.monotonic() + LONG_S
        while time.monotonic() < deadline:
            check()
            time.sleep(0.005)

    distiller.learn = learn  # type: ignore[method-assign]
    distiller.start()
    _describe(distiller, range(QUICK.held_out + 1))
    for _ in range(2):
        assert steps.acquire(timeout=LONG_S)
        began = time.monotonic()
        distiller.save()
        assert time.monotonic() - began < LONG_S / 2
    assert distiller.take_failure() is None
    distiller.close()


def test_it_rests_so_long_that_its_share_of_the_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second of work three without, where it may have a quarter."""
    distiller = _distiller(settings=replace(QUICK, share=0.25))
    seconds, rests, due = iter(range(100)), list[float](), iter((True, True, False))
    monkeypatch.setattr(online, "_lower_priority", lambda: None)  # of the thread that runs this test
    monkeypatch.setattr(online.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(online.time, "sleep", rests.append)
    monkeypatch.setattr(distiller, "_wait", lambda: next(due))
    monkeypatch.setattr(distiller, "_go_on", lambda: None)
    distiller._work()
    assert rests == [3.0, 3.0]


def test_a_describer_says_which_head_drafted(tmp_path: Path) -> None:
    """An untrained head learns from a scene's windows until a copy takes over; the texts stay what they were;
    the thread ends with the describer.
    """
    torch.manual_seed(0)
    config = load_draft_head(MODELS / "tiny_eagle3").config
    save_draft_head(type(load_draft_head(MODELS / "tiny_eagle3"))(config), tmp_path / "head")  # type: ignore[arg-type]
    record_scene(tmp_path / "bag", seed=1, seconds=1.5)
    recording = open_recording(tmp_path / "bag")
    frames = list(recording.frames())

    def loaded(settings: OnlineSettings | None) -> SceneDescriber:
        return load_describer(
            MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt", tmp_path / "head",
            drafter="eagle3",
            learner=None if settings is None else partial(OnlineDistiller.between_windows, settings=settings),
        )  # fmt: skip

    settings = OnlineSettings(held_out=2, steps=40, trial=20, learning_rate=3e-3, share=1.0)
    describer, plain = loaded(settings), loaded(None)
    versions: list[int] = []
    deadline = time.monotonic() + LONG_S
    while (not versions or versions[-1] == 0) and time.monotonic() < deadline:
        stop = 1_100_000_000 + 100_000_000 * (len(versions) % 4)
        events = next(recording.events(stop - 50_000_000, stop))
        window = events, [frame for frame in frames if frame.stamp_ns < stop][-8:]
        described = describer.describe(*window, stamp_ns=stop)
        versions.append(described.head_version)
        if len(versions) <= 3 or described.head_version:
            assert described.text == plain.describe(*window, stamp_ns=stop).text
        time.sleep(0.3)
    assert versions[0] == 0
    assert versions[-1] == 1
    assert described.as_dict()["head_version"] == 1
    del describer
    gc.collect()
    deadline = time.monotonic() + LONG_S
    while any(thread.name == "distil" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "distil" for thread in threading.enumerate())


def test_a_drafter_without_such_a_head_is_refused() -> None:
    """One sentence."""
    with pytest.raises(GenerationError, match="no head that could learn"):
        load_describer(
            MODELS / "tiny_video_llava", None, None, drafter="none", learner=OnlineDistiller.between_windows
        )


def test_a_step_that_fails_is_told_and_learning_goes_on_with_the_next_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread lives, the copy begins anew from the head that drafts, nothing is offered."""
    distiller = _distiller(settings=replace(QUICK, held_out=1, steps=2))
    learn = distiller.learn
    failing = [KeyError("features")]

    def once() -> None:
        learn()
        if failing:
            raise failing.pop()

    monkeypatch.setattr(distiller, "learn", once)
    distiller.start()
    try:
        _describe(distiller, range(3))
        failure = _until(distiller.take_failure)
        assert failure.problem == "KeyError: 'features'"
        assert "in once" in failure.traceback
        assert distiller.take_failure() is None
        steps = distiller.steps
        _describe(distiller, range(3, 6))
        _until(lambda: distiller.steps > steps)
    finally:
        distiller.close()
        distiller._thread.join()


def _until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LONG_S
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value
