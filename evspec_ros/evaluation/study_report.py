"""What a study found, as a page of Markdown with a picture: `docs/results.md`, and `docs/results_block.md` of
two kinds of heads alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.decoding import DEFAULT
from evspec_ros.evaluation.study import (
    FREE_TOKENS,
    SCALED,
    SIZED,
    UNTRAINED,
    Outcome,
    Study,
    Trial,
    studied_kinds,
)
from evspec_ros.networks.checkpoints import DRAFT_HEADS
from evspec_ros.training.acceptance import CHAIN
from evspec_ros.training.controls import CONTROLS, ON, SHUFFLED, ZEROED

# Student's t of 97.5 % for so many values
T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
ALL = "all"  # the mean of the conditions
ONE_PASS, STEPWISE = "block", "eagle3"  # whether the one gains more from events than the other is asked
PANELS = 3  # of the picture beside each other


@dataclass(frozen=True)
class Interval:
    """The mean over seeds and half its 95 % confidence interval (Student's t; 0 of a single value)."""

    mean: float
    half: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of one value for each seed."""
        count = len(values)
        half = T_QUANTILE[count] * stdev(values) / count**0.5 if count > 1 else 0.0
        return cls(fmean(values), half)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}" if self.half else f"{self.mean:.2f}"

    @property
    def signed(self) -> str:
        """For differences."""
        return f"{self.mean:+.2f} ± {self.half:.2f}"

    @property
    def shown(self) -> bool:
        """Whether zero lies outside."""
        return abs(self.mean) > self.half


def lengths(outcomes: Iterable[Outcome], condition: str, control: str) -> list[float]:
    """Acceptance lengths, seed by seed."""
    return [_figure(outcome, condition, control, "length") for outcome in outcomes]


def agreements(outcomes: Iterable[Outcome], condition: str, control: str) -> list[float]:
    """Shares of first drafts that are right, in per cent, seed by seed."""
    return [100 * _figure(outcome, condition, control, "agreement") for outcome in outcomes]


def _figure(outcome: Outcome, condition: str, control: str, name: str) -> float:
    tests = [t for t in outcome.tests if t.control == control and condition in (ALL, t.condition)]
    return fmean(getattr(test, name) for test in tests)


def _untrained_length(study: Study, condition: str, control: str) -> float:
    return _figure(study.untrained, condition, control, "length")


def learnt_difference(study: Study, kind: str, condition: str) -> Interval:
    """Acceptance length of heads that learned and draft with events over that of heads that never had any."""
    return Interval.of(_gains(study, kind, condition))


def exchanged_difference(study: Study, kind: str, condition: str) -> Interval:
    """Acceptance length with the scene's own events over that with another scene's, of the same heads."""
    heads = study.of(kind)
    return Interval.of(_differences(lengths(heads, condition, ON), lengths(heads, condition, SHUFFLED)))


def compared_gains(study: Study, condition: str) -> Interval:
    """How much more ONE_PASS gains from events than STEPWISE, by `learnt_difference`."""
    return Interval.of(_differences(*(_gains(study, kind, condition) for kind in (ONE_PASS, STEPWISE))))


def _gains(study: Study, kind: str, condition: str) -> list[float]:
    """`learnt_difference`, seed by seed."""
    own = lengths(study.of(kind), condition, ON)
    return _differences(own, lengths(study.of(kind, ZEROED), condition, ZEROED))


def _differences(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ones, others, strict=True)]


# --- the page -----------------------------------------------------------------------------------------------


def write_results(study: Study, path: Path, command: str, *, shipped: bool = False) -> None:
    """The page, and its picture beside it with the suffix .svg; command: what makes them; shipped: whether of
    the package's own models. EvspecError where they cannot be written.
    """
    picture = path.with_suffix(".svg")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_study(study, picture)
        path.write_text(results_page(study, picture.name, command, shipped=shipped), encoding="utf-8")
    except OSError as error:
        raise EvspecError(f"The results cannot be written to {path}: {error}.") from error


def results_page(study: Study, picture: str, command: str, *, shipped: bool = False) -> str:
    """The page as text."""
    template = Path(__file__).with_name("results.md.jinja").read_text(encoding="utf-8")
    page = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined).from_string(
        template
    )
    asked_of_all = (
        {
            "scaled": SCALED,
            "race": _race_table(study),
            "sizes": _size_table(study),
            "data": _data_table(study),
            "claims": _claims(study),
        }
        if study.plan.whole
        else {}
    )
    return page.render(
        command=command,
        picture=picture,
        plan=study.plan,
        kinds=[f"`{kind}`" for kind in studied_kinds(study.plan)],
        chain=CHAIN,
        shipped=shipped,
        verdicts=_verdicts(study),
        comparison=_comparison(study),
        events=_events_table(study),
        accuracy=_accuracy_table(study),
        **asked_of_all,
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _verdicts(study: Study) -> list[str]:
    """A sentence for the event model's own tokens and one for each kind of head."""
    own, zeroed, other = (_untrained_length(study, ALL, control) for control in CONTROLS)
    untrained = (
        f"`{UNTRAINED}`, the event model's own tokens: {own:.2f} tokens a pass with the scene's own events, "
        f"{other:.2f} with another scene's and {zeroed:.2f} with zeros; one model, hence no interval."
    )
    sentences = [untrained]
    for kind in studied_kinds(study.plan):
        whole = learnt_difference(study, kind, ALL)
        verdict = "they help" if whole.mean > 0 else "they harm"
        sentences.append(
            f"`{kind}`: with events {whole.signed} tokens a pass over never having had any; "
            f"{verdict if whole.shown else 'no difference is shown'}.{_where(study, kind)}"
        )
    return sentences


def _where(study: Study, kind: str) -> str:
    """A sentence about single conditions, where there are several."""
    conditions = _conditions(study)
    if len(conditions) == 1:
        return ""
    found = [
        f"{condition} ({learnt_difference(study, kind, condition).signed})"
        for condition in conditions
        if learnt_difference(study, kind, condition).shown
    ]
    return f" A difference is shown, taken alone, in {', '.join(found) if found else 'no condition'}."


def _comparison(study: Study) -> str | None:
    """Whether a head that drafts in one pass gains more from events; None where not both kinds are there."""
    if not {ONE_PASS, STEPWISE} <= set(studied_kinds(study.plan)):
        return None
    found = compared_gains(study, ALL)
    shown = "Yes" if found.mean > 0 else "No, less"
    answer = shown if found.shown else "No difference is shown"
    one_pass, stepwise = (learnt_difference(study, kind, ALL).signed for kind in (ONE_PASS, STEPWISE))
    return (
        f"Does a head that drafts in one pass gain more from events? {answer}: over never having had any, "
        f"`{ONE_PASS}` gains {one_pass} tokens a pass and `{STEPWISE}` {stepwise}, a difference of "
        f"{found.signed}, taken seed by seed."
    )


def _events_table(study: Study) -> str:
    rows: list[Sequence[object]] = []
    for kind in studied_kinds(study.plan):
        heads, blind = study.of(kind), study.of(kind, ZEROED)
        for condition in _shown_conditions(study):
            tests = [Interval.of(lengths(heads, condition, control)) for control in CONTROLS]
            never = Interval.of(lengths(blind, condition, ZEROED))
            rows.append(
                (
                    f"`{kind}`", condition, *tests, never, learnt_difference(study, kind, condition).signed,
                    exchanged_difference(study, kind, condition).signed,
                )
            )  # fmt: skip
    for condition in _shown_conditions(study):
        found = [_untrained_length(study, condition, control) for control in CONTROLS]
        shown = [f"{one:.2f}" for one in found]
        rows.append((f"`{UNTRAINED}`", condition, *shown, "", "", f"{found[0] - found[-1]:+.2f}"))
    columns = (
        "drafter",
        "scenes",
        "own",
        "zeroed",
        "shuffled",
        "never had any",
        "own - never",
        "own - shuffled",
    )
    return _table(columns, rows)


def _accuracy_table(study: Study) -> str:
    names = "shape", "colour", "direction", "size", "speed", "counted", "exact"
    rows = [
        (row["model"], condition, *(f"{100 * row[name]:.1f}" for name in names))
        for condition, found in study.accuracies.items()
        for row in found
    ]
    return _table(("model", "scenes", *names), rows)


def _race_table(study: Study) -> str:
    rows = [
        (
            f"`{row['drafter']}`", "on" if row["overlap"] else "", f"{row['speedup']:.2f}",
            f"{row['speedup_decode']:.2f}", f"{row['mean_accepted_length']:.2f}",
            f"{row['acceptance_rate']:.2f}", {True: "yes", False: "NO"}[row["identical"]],
        )
        for row in study.race
    ]  # fmt: skip
    return _table(("drafter", "overlap", "speed-up", "decode", "length", "accepted", "same text"), rows)


def _size_table(study: Study) -> str:
    rows = []
    for kind in SIZED:
        for millions, found in sized(study, kind):
            rows.append((f"`{kind}`", f"{millions:.2f} M", Interval.of(lengths(found, ALL, ON))))
    return _table(("head", "parameters", "length"), rows)


def _data_table(study: Study) -> str:
    conditions = _shown_conditions(study)
    rows = [
        (f"{scenes:,}", *(Interval.of(lengths(found, condition, ON)) for condition in conditions))
        for scenes, found in scaled(study)
    ]
    return _table(("scenes", *conditions), rows)


def _claims(study: Study) -> dict[str, object]:
    """What the design paper's claims are held against, by name."""

    def agreement(outcomes: Sequence[Outcome]) -> str:
        own, other = (Interval.of(agreements(outcomes, ALL, control)) for control in (ON, SHUFFLED))
        return f"{own} % (another scene's events: {other} %)"

    def free(outcomes: Sequence[Outcome]) -> Interval:
        return Interval.of([_figure(outcome, ALL, ON, "free") for outcome in outcomes])

    adapters = study.of("eventgpt_adapter")
    return {
        "untrained": agreement([study.untrained]),
        **{kind: agreement(study.of(kind)) for kind in DRAFT_HEADS},
        "written": FREE_TOKENS,
        "free_untrained": free([study.untrained]),
        "free_adapter": free(adapters),
        "in_turn": _fastest(study, overlap=False),
        "overlapped": _fastest(study, overlap=True),
    }


def _fastest(study: Study, *, overlap: bool) -> str:
    """The design paper's drafter and the default."""
    found = []
    for name in ("feature", "eagle3", DEFAULT):
        row = next(r for r in study.race if (r["drafter"], r["overlap"]) == (name, overlap))
        found.append(f"`{name}` {row['speedup_decode']:.2f} ({row['speedup']:.2f} with prefill)")
    return ", ".join(found)


def sized(study: Study, kind: str) -> list[tuple[float, list[Outcome]]]:
    """Outcomes by an adapter's parameters, in millions."""
    groups: dict[float, list[Outcome]] = {}
    for outcome in study.outcomes:
        if outcome.trial and (outcome.trial.kind, outcome.trial.learned) == (kind, ON):
            groups.setdefault(outcome.parameters / 1e6, []).append(outcome)
    return sorted(groups.items(), key=lambda item: item[0])


def scaled(study: Study) -> list[tuple[int, list[Outcome]]]:
    """Outcomes of SCALED by the scenes that it learned from."""
    amounts = sorted({study.plan.scenes, *study.plan.amounts})
    wanted = {scenes: [Trial(SCALED, seed, scenes) for seed in range(study.plan.seeds)] for scenes in amounts}
    return [(scenes, [o for o in study.outcomes if o.trial in these]) for scenes, these in wanted.items()]


def _conditions(study: Study) -> list[str]:
    return list(study.accuracies)


def _shown_conditions(study: Study) -> list[str]:
    """And the mean, where there are several."""
    conditions = _conditions(study)
    return conditions if len(conditions) == 1 else [*conditions, ALL]


# --- the picture --------------------------------------------------------------------------------------------


def plot_study(study: Study, path: Path) -> None:
    """Own, zeroed, shuffled and never, by condition, for each kind; acceptance by size and by data where
    they were asked about.
    """
    panels: list[Callable[[Axes], None]] = [
        partial(_bars, study=study, kind=kind) for kind in studied_kinds(study.plan)
    ]
    if study.plan.whole:
        panels += [partial(_curves, study=study), partial(_growth, study=study)]
    columns = min(PANELS, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context({"svg.hashsalt": "evspec", "svg.fonttype": "none"}):  # the same file every time
        figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
        for number, panel in enumerate(panels):
            panel(figure.add_subplot(rows, columns, number + 1))
        figure.savefig(path, metadata={"Date": None})


def _bars(axes: Axes, study: Study, kind: str) -> None:
    conditions = _shown_conditions(study)
    heads, blind = study.of(kind), study.of(kind, ZEROED)
    series = {
        "own events": [lengths(heads, condition, ON) for condition in conditions],
        "zeroed": [lengths(heads, condition, ZEROED) for condition in conditions],
        "shuffled": [lengths(heads, condition, SHUFFLED) for condition in conditions],
        "never had any": [lengths(blind, condition, ZEROED) for condition in conditions],
    }
    for number, (label, values) in enumerate(series.items()):
        found = [Interval.of(value) for value in values]
        places = [index + 0.2 * (number - 1.5) for index in range(len(conditions))]
        axes.bar(places, [one.mean for one in found], 0.2, yerr=[one.half for one in found], label=label)
    axes.set_xticks(range(len(conditions)), conditions, rotation=30)
    axes.set(title=kind, ylabel="tokens per pass")
    axes.legend(fontsize="small")


def _curves(axes: Axes, study: Study) -> None:
    for kind in SIZED:
        points = sized(study, kind)
        found = [Interval.of(lengths(group, ALL, ON)) for _, group in points]
        _errors(axes, [millions for millions, _ in points], found, kind)
    axes.set(title="the adapter's size", xlabel="million parameters", ylabel="tokens per pass", xscale="log")
    axes.legend(fontsize="small")


def _growth(axes: Axes, study: Study) -> None:
    for condition in _shown_conditions(study):
        points = scaled(study)
        found = [Interval.of(lengths(group, condition, ON)) for _, group in points]
        _errors(axes, [scenes for scenes, _ in points], found, condition)
    axes.set(title=f"{SCALED}: more data", xlabel="scenes", ylabel="tokens per pass", xscale="log")
    axes.legend(fontsize="small")


def _errors(axes: Axes, places: Sequence[float], found: Sequence[Interval], label: str) -> None:
    axes.errorbar(
        places, [one.mean for one in found], [one.half for one in found], marker="o", capsize=3, label=label
    )
