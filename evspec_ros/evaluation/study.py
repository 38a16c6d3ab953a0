"""Do event features help? Draft heads trained and tested with events, without, and with another scene's.

Heads of every kind learn from the target's answers about the same scenes, over several seeds, once with the
event tokens and once with zeros in their place, and are tested on held-out scenes of each condition with the
scene's own events, zeros, and another scene's. Beside that: how well the two models describe each condition
and, where all kinds are studied, how acceptance grows with the adapter's size and with the number of scenes,
and a race of all drafters.

Every result is a JSON file in the run directory, written whole; a study that was interrupted goes on with
those that are missing. Acceptance is computed by `training.acceptance`, which is what decoding with chains
shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from evspec_ros.errors import TrainingError
from evspec_ros.evaluation.accuracy import evaluate
from evspec_ros.evaluation.decoding import Bench, contestants, held_out
from evspec_ros.evaluation.study_plan import StudyPlan
from evspec_ros.networks.adapters import AdapterConfig
from evspec_ros.networks.checkpoints import DRAFT_HEADS, Head, load_draft_head, save_draft_head
from evspec_ros.training.acceptance import acceptance, free_tokens
from evspec_ros.training.controls import CONTROLS, ON, ZEROED, Controlled
from evspec_ros.training.draft_heads import TINY_PLANS, needed_features, train_head
from evspec_ros.training.features import FeatureShards, ModelPair, Selected, extract
from evspec_ros.training.files import claim, written_whole
from evspec_ros.training.head_run import UNSEEN, load_pair, simulated
from evspec_ros.training.loop import Report
from evspec_ros.training.progress import training_progress

UNTRAINED = "eventgpt"  # drafts by its own output head
SIZED = ("eventgpt_adapter", "feature")
SCALED = "eagle3"
FREE_WRITERS = (UNTRAINED, "eventgpt_adapter")  # they can write before the target has read its prompt
FREE_TOKENS = 28  # that the design paper's event model writes meanwhile
PICKED_BATCHES = 2


@dataclass(frozen=True)
class Trial:
    """One training: of a kind of head, from a seed, on so many scenes, with events as `learned` says (ON or
    ZEROED); bottleneck: an adapter's width.
    """

    kind: str
    seed: int
    scenes: int
    learned: str = ON
    bottleneck: int = AdapterConfig.bottleneck

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.kind}-{self.learned}-{self.scenes}-{self.bottleneck}-{self.seed}"


@dataclass(frozen=True)
class Score:
    """Acceptance on the held-out scenes of a condition with the events of a control: length, tokens per pass
    of the target with the bonus token; agreement, share of first drafts that are right; free, how many of
    FREE_TOKENS written while the target reads are followed, of drafters that write then.
    """

    condition: str
    control: str
    length: float
    agreement: float
    free: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a training came to; trial: None for the event model's own tokens. parameters: of the head."""

    trial: Trial | None
    parameters: int
    tests: tuple[Score, ...]


@dataclass(frozen=True)
class Study:
    """Everything that was found. accuracies: rows of `evaluation.accuracy` by condition; race: rows of
    `evaluation.decoding`.
    """

    plan: StudyPlan
    accuracies: Mapping[str, list[dict[str, Any]]]
    untrained: Outcome
    outcomes: tuple[Outcome, ...]
    race: tuple[dict[str, Any], ...]

    def of(self, kind: str, learned: str = ON) -> list[Outcome]:
        """The outcomes of the trials that the controls are about, seed by seed."""
        wanted = [Trial(kind, seed, self.plan.scenes, learned) for seed in range(self.plan.seeds)]
        return [outcome for trial in wanted for outcome in self.outcomes if outcome.trial == trial]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def studied_kinds(plan: StudyPlan) -> tuple[str, ...]:
    """The kinds of heads that a study is about."""
    return plan.kinds or tuple(DRAFT_HEADS)


def trials(plan: StudyPlan, pair: ModelPair) -> list[Trial]:
    """All trainings of a study, each once."""
    seeds = range(plan.seeds)
    main = [
        Trial(kind, seed, plan.scenes, learned)
        for seed in seeds
        for kind in studied_kinds(plan)
        for learned in (ON, ZEROED)
    ]
    if not plan.whole:
        return main
    sized = [
        Trial(kind, seed, plan.scenes, bottleneck=bottleneck_of(kind, millions, pair))
        for kind in SIZED
        for millions in plan.sizes
        for seed in seeds
    ]
    scaled = [Trial(SCALED, seed, scenes) for scenes in plan.amounts for seed in seeds]
    return list(dict.fromkeys((*main, *sized, *scaled)))


def bottleneck_of(kind: str, millions: float, pair: ModelPair) -> int:
    """The width at which an adapter of this kind comes nearest to so many million parameters."""

    def parameters(width: int) -> int:
        sizes = DRAFT_HEADS[kind].config.for_target(
            pair.target.config.text, pair.event_model.config.text.hidden_size, pair.event_rows
        )
        return _parameters(DRAFT_HEADS[kind].head(replace(sizes, bottleneck=width)))

    fixed, each = parameters(0), parameters(1) - parameters(0)
    return max(1, round((millions * 1e6 - fixed) / each))


def run_study(
    target: Path, event_model: Path, run: Path, plan: StudyPlan, report: Report = lambda *_: None
) -> Study:
    """The whole study of two checkpoint directories; report is called with what is being done, how much of it
    is done and how much there is, as in training. Raises CheckpointError, and TrainingError where run was
    begun for another plan or other models.
    """
    pair = load_pair(target, event_model)
    for model in (pair.target, pair.event_model):
        model.requires_grad_(requires_grad=False)
    claim(run / "study.json", json.loads(json.dumps({**pair.fingerprints, **asdict(plan)})))
    accuracies = {
        condition: _kept(
            run / f"accuracy-{condition}.json", partial(_accuracies, target, event_model, plan, condition)
        )
        for condition in plan.conditions
    }
    learnt, tests = _features(pair, run, plan, report)
    untrained = _kept(run / f"{UNTRAINED}.json", partial(_test, pair, None, None, tests, CONTROLS))
    outcomes = []
    wanted = trials(plan, pair)
    for number, trial in enumerate(wanted):
        make = partial(_try, pair, trial, learnt, tests, run, plan, report)
        outcomes.append(_outcome(_kept(run / "outcomes" / f"{trial.name}.json", make)))
        _directory(run, trial).joinpath(f"{trial.kind}.pt").unlink(missing_ok=True)  # it is finished
        report("trainings", number + 1, len(wanted), 0.0)
    race = _kept(run / "race.json", partial(_race, pair, run, plan)) if plan.whole else []
    return Study(plan, accuracies, _outcome(untrained), tuple(outcomes), tuple(race))


def run_study_visibly(target: Path, event_model: Path, run: Path, plan: StudyPlan) -> Study:
    """`run_study` with progress on stderr."""
    with training_progress() as report:
        return run_study(target, event_model, run, plan, report)


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """What is in a JSON file, which is made where it is not there."""
    if not path.exists():
        found = json.dumps(make(), indent=1)
        with written_whole(path) as unfinished:
            unfinished.write_text(found, encoding="utf-8")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(
            f"{path} is damaged ({error}); delete it and go on with the same command."
        ) from error


def _accuracies(target: Path, event_model: Path, plan: StudyPlan, condition: str) -> list[dict[str, Any]]:
    rows = evaluate(target, event_model, plan.held_out, condition=condition)
    return [row.as_dict() for row in rows]


def _features(
    pair: ModelPair, run: Path, plan: StudyPlan, report: Report
) -> tuple[FeatureShards, dict[str, FeatureShards]]:
    """The target's answers with what any kind of head reads that is studied: to learn from, the last ones to
    pick a training's best weights by, and to test with, of each condition.
    """
    tiny_plans = [replace(TINY_PLANS[kind], batch=plan.batch) for kind in studied_kinds(plan)]
    plans = [needed_features(pair, one) for one in tiny_plans]
    layers = sorted({layer for one in plans for layer in one.layers})
    everything = replace(plans[0], layers=tuple(layers), context=max(one.context for one in plans))

    def of(split: str, condition: str, count: int) -> FeatureShards:
        source = {"scenes": split, "first": UNSEEN, "condition": condition}
        scenes = simulated(split, UNSEEN, condition=condition)
        return extract(pair, scenes, run / f"{split}-{condition}", everything, count, source, report)

    most = max(trial.scenes for trial in trials(plan, pair))
    return (
        of("train", plan.condition, most + PICKED_BATCHES * plan.batch),
        {condition: of("held_out", condition, plan.held_out) for condition in plan.conditions},
    )


def _try(
    pair: ModelPair,
    trial: Trial,
    learnt: FeatureShards,
    tests: Mapping[str, FeatureShards],
    run: Path,
    plan: StudyPlan,
    report: Report,
) -> dict[str, Any]:
    """Train and test one head."""
    tiny = TINY_PLANS[trial.kind]
    head_plan = replace(
        tiny,
        scenes=trial.scenes,
        condition=plan.condition,
        batch=plan.batch,
        schedule=replace(tiny.schedule, steps=plan.steps),
        bottleneck=trial.bottleneck,
        seed=trial.seed,
    )
    wanted = needed_features(pair, head_plan)
    numbers = range(-(-trial.scenes // plan.batch)), range(len(learnt) - PICKED_BATCHES, len(learnt))
    data, picked = (
        Controlled(pair, Selected(learnt, some, learnt.plan, wanted), trial.learned) for some in numbers
    )
    directory = _directory(run, trial)
    head = train_head(pair, data, picked, directory, head_plan, report)
    save_draft_head(head, directory / "head")
    return _test(pair, trial, head, tests, _controls(trial, plan))


def _controls(trial: Trial, plan: StudyPlan) -> tuple[str, ...]:
    """What a head is tested with: without events where it never had any, and with nothing but its own where
    size and data are asked about.
    """
    if trial.learned == ZEROED:
        return (ZEROED,)
    return CONTROLS if trial == Trial(trial.kind, trial.seed, plan.scenes) else (ON,)


def _test(
    pair: ModelPair,
    trial: Trial | None,
    head: Head | None,
    tests: Mapping[str, FeatureShards],
    controls: tuple[str, ...],
) -> dict[str, Any]:
    """An Outcome, ready for JSON."""
    kind = trial.kind if trial else UNTRAINED
    # the event model's own output head reads what its adapter reads
    wanted = needed_features(pair, TINY_PLANS[trial.kind if trial else "eventgpt_adapter"])
    found = []
    for condition, shards in tests.items():
        whole = Selected(shards, range(len(shards)), shards.plan, wanted)
        for control in controls:
            changed = Controlled(pair, whole, control)
            batches = [changed[index] for index in range(len(changed))]
            figures = acceptance(pair, head, batches)
            free = free_tokens(pair, head, batches, FREE_TOKENS) if kind in FREE_WRITERS else None
            found.append(
                Score(condition, control, figures["acceptance length"], figures["held-out agreement"], free)
            )
    return asdict(Outcome(trial, 0 if head is None else _parameters(head), tuple(found)))


def _outcome(found: Mapping[str, Any]) -> Outcome:
    trial = found["trial"] and Trial(**found["trial"])
    return Outcome(trial, found["parameters"], tuple(Score(**test) for test in found["tests"]))


def _race(pair: ModelPair, run: Path, plan: StudyPlan) -> list[dict[str, Any]]:
    """All drafters, with the heads of the first seed."""
    heads = {
        kind: load_draft_head(_directory(run, Trial(kind, 0, plan.scenes)) / "head") for kind in DRAFT_HEADS
    }
    bench = Bench(pair, heads)
    racers = contestants(bench.able(), temperatures=(0.0,))
    return [row.as_dict() for row in bench.race(racers, held_out(plan.raced, plan.condition))]


def _directory(run: Path, trial: Trial) -> Path:
    return run / "heads" / trial.name


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
