"""`evspec eval`: recordings replayed, simulated scenes scored, two runs compared."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evspec_ros.choices import AUTO_DRAFTER, DESCRIBE, KV_PRECISIONS, PRECISIONS, RECORDINGS, WAIT
from evspec_ros.cli.options import (
    DEVICE_HELP,
    add_condition,
    add_models,
    add_topics,
    add_verb,
    count,
    given,
    messages,
    models,
    own_checkpoint,
    own_heads,
    positive,
    print_json,
    wanted,
    whole,
)
from evspec_ros.errors import EvspecError

if TYPE_CHECKING:
    from evspec_ros.evaluation.drafted_texts import DraftedAccuracy
    from evspec_ros.evaluation.replay.plan import ReplayPlan
    from evspec_ros.evaluation.replay.store import RunFolder


def add_eval(verbs: Any) -> None:
    """Add `eval` and what it evaluates."""
    evaluate = add_verb(verbs, "eval", _eval, "replay recordings, or score simulated scenes, and report")
    evaluate.add_argument("recording", type=Path, nargs="*", help=f"{RECORDINGS}; may be several")
    evaluate.add_argument("--out", type=Path, help="the run's folder; a run that is there goes on")
    evaluate.add_argument(
        "--simulated", type=count, metavar="N", help="score the models on so many simulated held-out scenes"
    )
    evaluate.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="show two runs side by side, by their folders, with confidence intervals",
    )
    evaluate.add_argument(
        "--live", action="store_true", help="play the recordings to the node over DDS; needs ROS"
    )
    evaluate.add_argument(
        "--rate", type=positive, default=1.0, help="with --live: times real speed; default: %(default)s"
    )
    evaluate.add_argument(
        "--highest-rate",
        action="store_true",
        help="with --live: find the highest rate with under 5 %% of the windows missed",
    )
    evaluate.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="offline, a task for each recording, on the Ray cluster there (local: on one of its own)",
    )
    evaluate.add_argument(
        "--with-drafters", action="store_true", help="with --simulated: with every drafter, too, in float32"
    )
    add_models(evaluate, "default: the package's own")
    evaluate.add_argument(
        "--drafter", default=AUTO_DRAFTER, help="none is plain decoding; default: %(default)s"
    )
    evaluate.add_argument("--device", default="cpu", help=DEVICE_HELP)
    evaluate.add_argument(
        "--dtype", choices=PRECISIONS, default="float32", help="precision; default: %(default)s"
    )
    evaluate.add_argument(
        "--kv-dtype",
        choices=KV_PRECISIONS,
        default="auto",
        help="with --simulated: precision of the target's key/value cache; default: %(default)s",
    )
    evaluate.add_argument("--threads", type=whole, help="of the networks on the CPU; default: torch's")
    evaluate.add_argument("--prompt", help="what is asked about each window; default: Describe the scene.")
    evaluate.add_argument("--max-new-tokens", type=count, help="longest description; default: 80")
    evaluate.add_argument(
        "--without-frames",
        choices=(DESCRIBE, WAIT),
        help=f"where there are no images, {DESCRIBE} pictures of the events, or {WAIT}; default: {WAIT}",
    )
    add_topics(evaluate)
    add_condition(evaluate)


def _eval(options: argparse.Namespace) -> None:
    modes = [bool(options.recording), options.simulated is not None, options.compare is not None]
    if sum(modes) != 1:
        raise EvspecError(
            "Give recordings with --out DIR, or --simulated N, or --compare A B, and one of them alone."
        )
    if options.compare is not None:
        _compare(options)
    elif options.simulated is not None:
        _score_simulated(options)
    else:
        _replay(options)


def _compare(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.replay.compare import compare_runs, print_comparison

    found = compare_runs(*options.compare)
    if options.json:
        print_json(found.as_dict())
    else:
        print_comparison(found)


def _score_simulated(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.accuracy import evaluate_visibly, print_accuracies

    target, event_model, _ = models(options)
    rows = evaluate_visibly(
        target, event_model, options.simulated, options.dtype, options.kv_dtype, options.condition
    )
    drafted: tuple[DraftedAccuracy, ...] = ()
    if options.with_drafters:
        from evspec_ros.evaluation.drafted_texts import score_drafters_visibly

        heads = [options.draft_head] if options.draft_head else own_heads()
        drafted = score_drafters_visibly(target, event_model, heads, options.simulated, options.condition)
    if options.json:
        print_json({"rows": [row.as_dict() for row in rows] + [row.as_dict() for row in drafted]})
    else:
        print_accuracies([*rows, *(row.accuracy for row in drafted)])
        for row in drafted:
            if row.lossless and row.same_text < 1:
                raise EvspecError(f"{row.accuracy.model} changed {1 - row.same_text:.1%} of the texts.")


def _replay(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.replay.console import print_summary, replay_visibly
    from evspec_ros.evaluation.replay.report import write_replay_report
    from evspec_ros.evaluation.replay.store import RunFolder
    from evspec_ros.evaluation.replay.summary import write_summary

    if options.out is None:
        raise EvspecError("Say with --out DIR where the run is to be kept.")
    plan = _plan(options)
    folder = RunFolder(options.out, plan.as_dict())
    if options.live:
        _play(options, plan, folder)
    elif options.ray:
        from evspec_ros.evaluation.replay.fleet import evaluate_on_fleet

        with messages.status("Waiting for the fleet ..."):
            evaluate_on_fleet(options.recording, plan, folder, wanted(options), options.ray)
    else:
        replay_visibly(options.recording, plan, folder, wanted(options))
    summary = write_summary(folder)
    write_replay_report(folder, summary, wanted(options))
    if options.json:
        print_json(summary)
    else:
        print_summary(summary, folder.path)
    if not summary["total"]["windows"]:
        raise EvspecError("Nothing was evaluated: none of the recordings has a window that can be described.")


def _play(options: argparse.Namespace, plan: ReplayPlan, folder: RunFolder) -> None:
    from evspec_ros.ros.requirements import require_ros

    require_ros()
    from evspec_ros.ros.trials.live_eval import evaluate_live

    with messages.status("Loading the networks ...") as status:
        evaluate_live(
            options.recording,
            plan,
            folder,
            wanted(options),
            rate=options.rate,
            search=options.highest_rate,
            told=status.update,
        )


def _plan(options: argparse.Namespace) -> ReplayPlan:
    from evspec_ros.evaluation.replay.plan import ReplayPlan

    target, event_model, _ = models(options)
    head = options.draft_head or _own_head(options.drafter, target, event_model)
    asked = given(options, "threads", "prompt", "max_new_tokens", "without_frames")
    return ReplayPlan(
        str(target),
        str(event_model),
        "" if head is None else str(head),
        options.drafter,
        options.device,
        options.dtype,
        **asked,
    )


def _own_head(drafter: str, target: Path, event_model: Path) -> Path | None:
    """The package's draft head for a drafter, as the node takes it; None where it needs none, or the models
    are others.
    """
    from evspec_ros.speculative.registry import DEFAULT_DRAFTER, drafter_kind

    kinds = drafter_kind(DEFAULT_DRAFTER if drafter == AUTO_DRAFTER else drafter).head_kinds
    own = (own_checkpoint("tiny_video_llava"), own_checkpoint("tiny_eventgpt"))
    return own_checkpoint(f"tiny_{kinds[0]}") if kinds and (target, event_model) == own else None
