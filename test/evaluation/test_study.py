"""The study of what event features bring, with the shipped models and hardly any training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from evspec_ros.errors import TrainingError
from evspec_ros.evaluation.study import (
    FREE_TOKENS,
    Outcome,
    Score,
    Study,
    Trial,
    bottleneck_of,
    run_study,
    trials,
)
from evspec_ros.evaluation.study_plan import StudyPlan
from evspec_ros.evaluation.study_report import (
    ALL,
    Interval,
    compared_gains,
    exchanged_difference,
    learnt_difference,
    results_page,
    write_results,
)
from evspec_ros.networks.adapters import Adapter, AdapterConfig
from evspec_ros.networks.checkpoints import load_draft_head
from evspec_ros.training.controls import CONTROLS, ON, SHUFFLED, ZEROED
from evspec_ros.training.head_run import load_pair

MODELS = Path(__file__).resolve().parents[2] / "models"
TARGET, EVENT_MODEL = MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"
PLAN = StudyPlan(
    seeds=1, scenes=4, held_out=2, steps=1, batch=2, sizes=(0.2,), amounts=(2,), raced=1,
    conditions=("night",),
)  # fmt: skip
STOP_AT = 3  # trainings
TWO_KINDS = dataclasses.replace(PLAN, kinds=("block", "eagle3"), condition="night")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was interrupted, and when its first outcome was written."""
    run = tmp_path_factory.mktemp("study")

    def stop(stage: str, done: int, *_: object) -> None:
        if (stage, done) == ("trainings", STOP_AT):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(TARGET, EVENT_MODEL, run, PLAN, stop)
    return run


@pytest.fixture(scope="module")
def study(run: Path) -> Study:
    """The same, gone on with to its end."""
    before = {path: path.stat().st_mtime_ns for path in (run / "outcomes").iterdir()}
    found = run_study(TARGET, EVENT_MODEL, run, PLAN)
    assert len(before) == STOP_AT
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "trained twice"
    return found


def test_every_trial_has_an_outcome_and_keeps_no_optimiser(study: Study, run: Path) -> None:
    """Each training is there once, with its head, and without the state that it would go on from."""
    wanted = trials(PLAN, load_pair(TARGET, EVENT_MODEL))
    assert [outcome.trial for outcome in study.outcomes] == wanted
    assert {path.stem for path in (run / "outcomes").iterdir()} == {trial.name for trial in wanted}
    assert not list(run.glob("heads/*/*.pt"))
    for trial in wanted:
        load_draft_head(run / "heads" / trial.name / "head")


def test_heads_are_tested_with_what_is_asked_about_them(study: Study) -> None:
    """Who never had events with zeros alone, every size and amount of data with events alone, and all else
    with every control.
    """
    for outcome in (study.untrained, *study.outcomes):
        trial, wanted = outcome.trial, list(CONTROLS)
        if trial is not None and trial.learned == ZEROED:
            wanted = [ZEROED]
        elif trial is not None and (trial.scenes, trial.bottleneck) != (
            PLAN.scenes,
            AdapterConfig.bottleneck,
        ):
            wanted = [ON]
        assert [test.control for test in outcome.tests] == wanted
        assert all(test.length >= 1 for test in outcome.tests)


def test_the_event_model_itself_reads_the_events(study: Study) -> None:
    """Its own tokens are other ones without the scene's events."""
    found = {test.control: (test.length, test.agreement) for test in study.untrained.tests}
    assert len(set(found.values())) > 1
    assert all(0 <= (test.free or 0) <= FREE_TOKENS for test in study.untrained.tests)


def test_a_run_directory_belongs_to_one_plan(run: Path) -> None:
    """Another plan in the same directory is refused in a sentence that names what differs."""
    with pytest.raises(TrainingError, match="steps"):
        run_study(TARGET, EVENT_MODEL, run, dataclasses.replace(PLAN, steps=2))


def test_a_damaged_result_is_named(run: Path, tmp_path: Path) -> None:
    """One sentence with the file's name."""
    damaged = tmp_path / "accuracy-night.json"
    for name in ("study.json", damaged.name):
        shutil.copy(run / name, tmp_path)
    damaged.write_text(damaged.read_text()[:-9])
    with pytest.raises(TrainingError, match=rf"{damaged.name} is damaged"):
        run_study(TARGET, EVENT_MODEL, tmp_path, PLAN)


def test_the_page_has_every_drafter_and_a_picture(study: Study, tmp_path: Path) -> None:
    """Written beside each other, and the same every time."""
    write_results(study, tmp_path / "results.md", "a command")
    page, picture = (tmp_path / f"results.{suffix}" for suffix in ("md", "svg"))
    first = page.read_text(), picture.read_text()
    assert all(f"| `{row['drafter']}` |" in first[0] for row in study.race)
    assert "](results.svg)" in first[0]
    write_results(study, tmp_path / "results.md", "a command")
    assert first == (page.read_text(), picture.read_text())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of two kinds alone."""
    return run_study(TARGET, EVENT_MODEL, tmp_path_factory.mktemp("compared"), TWO_KINDS)


def test_named_kinds_are_compared_and_nothing_else(compared: Study, tmp_path: Path) -> None:
    """With and without events, by the same plan; no other size, amount of data or race, nor on the page."""
    found = [outcome.trial for outcome in compared.outcomes]
    assert found == [
        Trial(kind, 0, PLAN.scenes, learned) for kind in TWO_KINDS.kinds for learned in (ON, ZEROED)
    ]
    assert compared.race == ()
    write_results(compared, tmp_path / "page.md", "a command", shipped=True)
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Results of `block`, `eagle3`\n")
    assert "the shipped target's own answers about 4 simulated scenes of the condition `night`" in page
    assert all(name not in page for name in ("`feature`", "## Every drafter", "## More data", "| all |"))
    assert "](page.svg)" in page
    assert ">block<" in (tmp_path / "page.svg").read_text()


def test_scenes_to_learn_from_are_of_the_plan_s_condition(tmp_path: Path) -> None:
    """Their manifest says so."""

    def stop(stage: str, *_: object) -> None:
        if stage == "answers, train-night":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(TARGET, EVENT_MODEL, tmp_path, TWO_KINDS, stop)
    about = json.loads((tmp_path / "train-night" / "features.json").read_text())
    assert about["source"]["condition"] == "night"


@pytest.mark.parametrize("kind", ["eventgpt_adapter", "feature"])
@pytest.mark.parametrize("millions", [0.5, 10])
def test_an_adapter_s_width_gives_its_size(kind: str, millions: float) -> None:
    """Within half a per cent."""
    pair = load_pair(TARGET, EVENT_MODEL)
    width = bottleneck_of(kind, millions, pair)
    sizes = pair.target.config.text.hidden_size, pair.event_model.config.text.hidden_size
    d, f = sizes
    weights = width * (f + d) + width + d if kind == "eventgpt_adapter" else 0
    if kind == "feature":  # adapter, and 2 D -> width -> D
        weights = width * (f + d) + width + d + width * 3 * d + width + d
    assert weights == pytest.approx(millions * 1e6, rel=0.005)
    if kind == "eventgpt_adapter":
        head = Adapter(AdapterConfig(d, f, width))
        assert sum(parameter.numel() for parameter in head.parameters()) == weights


def _study(
    own: tuple[float, ...], shuffled: tuple[float, ...], never: tuple[float, ...], kind: str = "eagle3"
) -> Study:
    """A study of a kind with these lengths, seed by seed."""
    outcomes = []
    for seed, (one, other, blind) in enumerate(zip(own, shuffled, never, strict=True)):
        tests = (Score("night", ON, one, 0.5), Score("night", SHUFFLED, other, 0.5))
        tests = (*tests, Score("night", ZEROED, other, 0.5))
        outcomes.append(Outcome(Trial(kind, seed, 8), 1, tests))
        outcomes.append(Outcome(Trial(kind, seed, 8, ZEROED), 1, (Score("night", ZEROED, blind, 0.5),)))
    plan = StudyPlan((kind,), seeds=len(own), scenes=8, conditions=("night",))
    untrained = Outcome(None, 0, tuple(Score("night", control, 2.0, 0.5) for control in CONTROLS))
    return Study(plan, {"night": []}, untrained, tuple(outcomes), ())


def _two_kinds(block_gains: tuple[float, ...], eagle3_gains: tuple[float, ...]) -> Study:
    """A study of both with these gains over never having had events, seed by seed."""
    never = tuple(3.0 + 2 * seed for seed in range(len(block_gains)))
    studies = []
    for kind, gains in (("block", block_gains), ("eagle3", eagle3_gains)):
        own = tuple(one + gain for one, gain in zip(never, gains, strict=True))
        studies.append(_study(own, own, never, kind))
    one, other = studies
    plan = dataclasses.replace(one.plan, kinds=("block", "eagle3"))
    return dataclasses.replace(one, plan=plan, outcomes=one.outcomes + other.outcomes)


def test_intervals_are_student_s() -> None:
    """Of 1, 2, 3: mean 2, t 4.303 over the root of 3; of one value there is none."""
    found = Interval.of([1.0, 2.0, 3.0])
    assert (found.mean, found.half) == (2.0, pytest.approx(4.303 / 3**0.5))
    assert str(Interval.of([1.5])) == "1.50"


def test_differences_are_taken_seed_by_seed() -> None:
    """Seeds that differ by much while each gains the same show the gain; gains of both signs show none."""
    steady = _study((2.0, 5.0, 9.0), (1.9, 4.9, 8.9), (1.5, 4.5, 8.5))
    for difference, gain in ((learnt_difference, 0.5), (exchanged_difference, 0.1)):
        found = difference(steady, "eagle3", ALL)
        assert found.mean == pytest.approx(gain)
        assert found.shown
    assert not learnt_difference(_study((2, 3, 4), (1, 1, 1), (3, 2, 4.5)), "eagle3", ALL).shown


def test_the_verdict_follows_the_interval(study: Study) -> None:
    """The page says that events help only where the interval lies above zero."""
    gains = {kind: learnt_difference(study, kind, ALL) for kind in ("eagle", "eagle3", "feature")}
    page = results_page(study, "results.svg", "a command")
    for kind, gain in gains.items():
        line = next(line for line in page.splitlines() if line.startswith(f"- `{kind}`"))
        assert ("no difference is shown." in line) is not gain.shown


@pytest.mark.parametrize(
    ("block", "eagle3", "gain", "answer"),
    [
        ((1.1, 1.2, 1.15), (0.1, 0.2, 0.15), 1.0, "events? Yes:"),
        ((0.1, 0.2, 0.15), (1.1, 1.2, 1.15), -1.0, "events? No, less:"),
        ((0.5, 2.0, 1.1), (0.4, 1.9, 1.6), -0.1, "events? No difference is shown:"),
        ((0.1, 0.9, 0.5), (0.0, 0.8, 0.4), 0.1, "events? Yes:"),  # seeds differ, each gains as much
    ],
)
def test_gains_of_two_kinds_are_compared_seed_by_seed(
    block: tuple[float, ...], eagle3: tuple[float, ...], gain: float, answer: str
) -> None:
    """A one-pass head gains more where the interval of the seeds' differences lies above zero, less below."""
    study = _two_kinds(block, eagle3)
    assert compared_gains(study, ALL).mean == pytest.approx(gain)
    page = results_page(study, "results.svg", "a command")
    assert answer in page
    assert f"a difference of {gain:+.2f} ±" in page
    alone = dataclasses.replace(study, plan=dataclasses.replace(study.plan, kinds=("block",)))
    assert "one pass gain more" not in results_page(alone, "results.svg", "a command")
