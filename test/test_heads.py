"""Which drafter `auto` makes of the checkpoints at hand, and how a new head begins, is kept and goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evspec_ros.choices import NEW_HEAD
from evspec_ros.describer import SceneDescriber
from evspec_ros.errors import CheckpointError, GenerationError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.heads import plan_drafting
from evspec_ros.loading import load_describer
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.checkpoints import load_draft_head, read_video_llava_config
from evspec_ros.networks.memory import Checkpoints
from evspec_ros.simulation.samples import sample_scene
from evspec_ros.speculative import drafters_of_heads
from evspec_ros.speculative.learner import Beginner
from evspec_ros.training.online import FROM_NOTHING, OnlineDistiller, OnlineSettings

MODELS = Path(__file__).parents[1] / "models"
TARGET, EVENT_MODEL = MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"
NEW = Path(NEW_HEAD)
NEVER = replace(FROM_NOTHING, steps=0)


@pytest.fixture(scope="module")
def window() -> tuple[Events, list[Frame]]:
    """One scene."""
    _, camera, times = sample_scene("held_out", 0)
    return camera.events(0.0), [Frame(round((1 + time) * 1e9), camera.image(time)) for time in times]


@pytest.fixture(scope="module")
def text(window: tuple[Events, list[Frame]]) -> str:
    """What the target alone says about it."""
    return load_describer(TARGET, None, None, drafter="none").describe(*window, stamp_ns=0).text


class Teacher:
    """Makes distillers, and remembers the last one."""

    def __init__(self, settings: OnlineSettings = NEVER) -> None:
        self.settings = settings
        self.beginner: Beginner
        self.made: OnlineDistiller

    def __call__(self, target: Any, event_model: Any, beginner: Beginner) -> OnlineDistiller:
        """See loading.MakeLearner."""
        self.beginner = beginner
        self.made = OnlineDistiller.between_windows(target, event_model, beginner, self.settings)
        return self.made


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    """One whose thread has ended when the test has."""
    teacher = Teacher()
    yield teacher
    if hasattr(teacher, "made") and teacher.made._thread.ident is not None:
        teacher.made.close()
        teacher.made._thread.join()


@pytest.mark.parametrize(
    ("head", "drafter"),
    [
        (None, "combined without a head"),
        ("tiny_block", "combined"),
        ("tiny_eagle3", "combined"),
        ("tiny_eagle", "eagle2"),
        ("tiny_eventgpt_adapter", "eventgpt_adapter"),
        ("tiny_feature", "feature"),
    ],
)
def test_auto_drafts_with_whatever_head_there_is(
    head: str | None, drafter: str, window: tuple[Events, list[Frame]], text: str
) -> None:
    """It says what it took and why; the text is the target's."""
    describer = load_describer(TARGET, EVENT_MODEL, None if head is None else MODELS / head)
    assert describer.drafter == drafter
    reason = "no draft head" if head is None else f"{head} is of kind {head.removeprefix('tiny_')}"
    assert describer.chosen.startswith(f"The drafter is {drafter}: ")
    assert reason in describer.chosen
    assert describer.left_out == ""
    found = describer.describe(*window, stamp_ns=0)
    assert found.text == text
    assert found.drafter == drafter
    assert found.draft_problem == ""


def _changed(config: Mapping[str, Any], kind: str, path: Path) -> Path:
    shutil.copytree(MODELS / f"tiny_{kind}", path)
    found = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**found, **config}))
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target_size": 40}, "made for features of 40 values"),
        ({"event_size": 7}, "made for event features of 7 values"),
        ({"vocab_size": 5000}, "says 5000 tokens and the target"),
        ({"kind": "oracle"}, "names the kind 'oracle'"),
        ({"block": 0}, "a block of 0 rows"),
    ],
)
def test_auto_goes_without_a_head_that_does_not_fit(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    """One sentence; the same head is an error where a drafter is asked for by its name."""
    head = _changed(changes, "block", tmp_path / "head")
    describer = load_describer(TARGET, EVENT_MODEL, head)
    assert describer.drafter == "combined without a head"
    assert describer.left_out.startswith("The draft head is not used: ")
    assert sentence in describer.left_out
    for drafter in ("block", "combined"):
        with pytest.raises(CheckpointError, match=sentence):
            load_describer(TARGET, EVENT_MODEL, head, drafter=drafter)


def test_auto_goes_without_a_head_that_is_missing_or_cut_off(
    tmp_path: Path, window: tuple[Events, list[Frame]], text: str
) -> None:
    """The sentence names the place."""
    head = _changed({}, "block", tmp_path / "head")
    weights = (head / "model.safetensors").read_bytes()
    (head / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for path in (head, tmp_path / "nowhere"):
        describer = load_describer(TARGET, EVENT_MODEL, path)
        assert str(path) in describer.left_out
        assert describer.drafter == "combined without a head"
        assert describer.describe(*window, stamp_ns=0).text == text
        with pytest.raises(CheckpointError):
            load_describer(TARGET, EVENT_MODEL, path, drafter="block")


def test_a_named_drafter_that_needs_a_head_has_none() -> None:
    """`combined` alone can do without."""
    with pytest.raises(GenerationError, match="needs a draft head"):
        load_describer(TARGET, EVENT_MODEL, None, drafter="eagle3")
    assert load_describer(TARGET, EVENT_MODEL, None, drafter="combined").chosen.endswith("it was asked for.")


def test_an_event_model_that_nobody_needs_is_not_loaded() -> None:
    """Without a head and without overlap nobody reads events."""
    assert load_describer(TARGET, EVENT_MODEL, None)._reader.events is None
    assert load_describer(TARGET, EVENT_MODEL, None, overlap="on")._reader.events is not None


def _new(directory: Path, teacher: Teacher, **changes: Any) -> SceneDescriber:
    arguments = {"target": TARGET, "event_model": EVENT_MODEL, "draft_head": NEW, **changes}
    return load_describer(**arguments, draft_head_dir=directory, learner=teacher)


def test_a_new_head_drafts_nothing_and_is_taught(
    tmp_path: Path, teacher: Teacher, window: tuple[Events, list[Frame]], text: str
) -> None:
    """What the target says is kept for it, with events that nobody read to draft."""
    describer = _new(tmp_path, teacher)
    assert describer.drafter == "combined without a head"
    assert "a new draft head learns" in describer.chosen
    assert describer.left_out == ""
    found = describer.describe(*window, stamp_ns=0)
    assert found.text == text
    assert found.head_version == 0
    while not teacher.made.idle:
        pass
    (kept,) = teacher.made._windows
    assert kept.events.shape[1] == 22
    assert kept.tokens[0].tolist() == list(found.tokens)
    places, emitted = kept.passes.T.tolist()
    assert places == [sum(emitted[:number]) for number in range(len(emitted))]
    assert sum(emitted) == len(found.tokens) - 1


def test_a_head_goes_on_where_the_last_start_left_it(
    tmp_path: Path, teacher: Teacher, window: tuple[Events, list[Frame]], text: str
) -> None:
    """It has the weights that were saved, drafts at once if it did, and learns on."""
    _new(tmp_path, teacher)
    head = load_draft_head(MODELS / "tiny_block")
    assert isinstance(head, BlockHead)
    assert teacher.beginner.store is not None
    teacher.beginner.store.save(head, drafts=True)
    describer = _new(tmp_path, teacher)
    assert isinstance(teacher.beginner.head, BlockHead)
    assert torch.equal(teacher.beginner.head.fc.weight, head.fc.weight)
    assert describer.drafter == "combined"
    assert f"learnt before lies in {tmp_path}" in describer.chosen
    found = describer.describe(*window, stamp_ns=0)
    assert found.text == text
    assert found.statistics.drafted > 0


def test_what_was_learnt_is_saved_at_rest_and_at_the_end(tmp_path: Path, teacher: Teacher) -> None:
    """Only where there is something new."""
    describer = _new(tmp_path, teacher)
    assert describer.rest() is None
    assert not list(tmp_path.iterdir())
    teacher.made.steps = 1
    assert describer.rest() is None
    assert (tmp_path / "model.safetensors").is_file()
    (tmp_path / "model.safetensors").unlink()
    describer.rest()
    assert not (tmp_path / "model.safetensors").exists()
    teacher.made.steps = 2
    teacher.made.close()
    assert (tmp_path / "model.safetensors").is_file()


def _other_target(directory: Path, path: Path) -> dict[str, Any]:
    shutil.copytree(TARGET, path)
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-200_000:] = bytes(200_000)
    (path / "model.safetensors").write_bytes(weights)
    return {"target": path}


def _cut_off(directory: Path, _: Path) -> dict[str, Any]:
    weights = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(weights[:-100])
    return {}


def _other_kind(directory: Path, _: Path) -> dict[str, Any]:
    shutil.copytree(MODELS / "tiny_eagle3", directory, dirs_exist_ok=True)
    return {}


def _other_sizes(directory: Path, _: Path) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "vocab_size": 5000}))
    return {}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_other_target, "learnt from another target"),
        (_cut_off, "model.safetensors"),
        (_other_kind, "kind 'eagle3'"),
        (_other_sizes, "says 5000 tokens"),
    ],
)
def test_a_saved_head_of_no_use_is_moved_aside_and_a_new_one_begins(
    spoil: Any, sentence: str, tmp_path: Path, teacher: Teacher
) -> None:
    """One sentence says so, and the new one can be saved; the old one is not lost."""
    directory = tmp_path / "heads"
    _new(directory, teacher)
    assert teacher.beginner.store is not None
    teacher.beginner.store.save(teacher.beginner.head, drafts=True)
    changes = spoil(directory, tmp_path / "other")
    describer = _new(directory, teacher, **changes)
    assert describer.left_out.startswith("A new draft head begins, as the one in ")
    assert sentence in describer.left_out
    assert not teacher.beginner.drafts
    assert (directory / "set_aside_1" / "model.safetensors").is_file()
    teacher.made.steps = 1
    assert describer.rest() is None
    assert _new(directory, teacher, **changes).left_out == ""


def test_a_head_that_cannot_be_saved_learns_all_the_same(
    tmp_path: Path, teacher: Teacher, window: tuple[Events, list[Frame]], text: str
) -> None:
    """One sentence when it is loaded, and no more of it."""
    (tmp_path / "file").write_text("")
    describer = _new(tmp_path / "file" / "below", teacher)
    assert describer.left_out.count("cannot be saved in") == 1
    found = describer.describe(*window, stamp_ns=0)
    assert (found.text, found.learning_problem) == (text, "")
    teacher.made.steps = 1
    assert describer.rest() is None
    while not teacher.made.idle:
        pass
    assert len(teacher.made._windows) == 1


def test_a_disk_that_is_full_later_is_told_once(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch, window: tuple[Events, list[Frame]]
) -> None:
    """With the next description, or at rest; describing goes on."""
    describer = _new(tmp_path, teacher)
    describer.warm_up()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evspec_ros.networks.weights.save_file", full)
    teacher.made.steps = 1
    teacher.made.save()
    assert "No space left" in describer.describe(*window, stamp_ns=0).learning_problem
    assert describer.describe(*window, stamp_ns=0).learning_problem == ""
    teacher.made.steps = 2
    failure = describer.rest()
    assert failure is not None
    assert "No space left" in failure.problem


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drafter": "eagle3"}, "choose the drafter auto or combined"),
        ({"drafter": "block"}, "choose the drafter auto or combined"),
        ({"event_model": None}, "learns from an event model"),
        ({"learner": None}, "needs online distillation"),
    ],
)
def test_a_new_head_that_cannot_learn_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    """One sentence each."""
    arguments = {"event_model": EVENT_MODEL, "learner": Teacher(), **changes}
    with pytest.raises(GenerationError, match=sentence):
        load_describer(TARGET, draft_head=NEW, draft_head_dir=tmp_path, **arguments)


def test_online_distillation_without_a_head_is_told_and_drafting_goes_on(teacher: Teacher) -> None:
    """With `auto`; it says what to ask for."""
    describer = load_describer(TARGET, EVENT_MODEL, None, learner=teacher)
    assert describer.left_out == "There is no draft head that could learn; ask for a new one."


def test_heads_that_read_the_event_model_need_one() -> None:
    """Without it `auto` has no use for an adapter or a feature head."""
    assert drafters_of_heads("auto", event_model=False).keys() == {"block", "eagle3", "eagle"}
    assert {"eventgpt_adapter", "feature"} < drafters_of_heads("auto", event_model=True).keys()
    assert drafters_of_heads("eagle", event_model=True) == {"eagle": "eagle"}
    with pytest.raises(CheckpointError, match="needs one of kind 'block' or 'eagle3'"):
        plan_drafting("combined", MODELS / "tiny_feature", Checkpoints(read_video_llava_config(TARGET)))
