"""`evspec features ...` and `evspec train ...`: the work is done in `training` and `evaluation`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from evspec_ros.cli.options import (
    DEVICE_HELP,
    HEADS,
    RUN_HELP,
    add_condition,
    add_models,
    add_verb,
    count,
    given,
    models,
    positive,
    print_json,
    whole,
)


def add_features(verbs: Any) -> None:
    """Add `features` and what it does."""
    features = verbs.add_parser(
        "features", help="what both models have inside", description="What both models have inside."
    )
    actions = features.add_subparsers(title="what", metavar="WHAT", required=True)
    extract = add_verb(
        actions,
        "extract",
        _extract_features,
        "run both models over recordings or simulated scenes",
    )
    extract.add_argument("directory", type=Path, help="where to write, and to go on after an interruption")
    add_models(extract)
    extract.add_argument(
        "--recording", type=Path, action="append", default=[], help="with frames; may be given again"
    )
    extract.add_argument(
        "--step", type=positive, default=0.5, help="seconds from window to window; default: %(default)s"
    )
    extract.add_argument(
        "--scenes", type=count, default=512, help="simulated ones without a recording; default: %(default)s"
    )
    extract.add_argument(
        "--split", choices=("train", "held_out"), default="train", help="of the scenes; default: %(default)s"
    )
    add_condition(extract)
    extract.add_argument("--first", type=whole, default=0, help="scene of the split; default: %(default)s")
    for option, model in (("--layers", "target"), ("--event-layers", "event model")):
        extract.add_argument(
            option,
            type=_layers,
            help=f"of the {model}, as in 2,5; the last is always kept; default: a low one and the middle",
        )
    extract.add_argument(
        "--context", type=whole, help="rows kept of the prompt, the last ones; default: all, as eagle needs"
    )
    extract.add_argument("--max-new-tokens", type=count, default=80, help="default: %(default)s")
    extract.add_argument("--shard", type=count, default=32, help="scenes in a file; default: %(default)s")
    extract.add_argument("--device", default="cpu", help=DEVICE_HELP)
    analysis = add_verb(actions, "analyse", _analyse_features, "compare the two models' features")
    analysis.add_argument("directory", type=Path, help="what `evspec features extract` wrote")
    add_models(analysis, head="eventgpt_adapter")
    analysis.add_argument("--plot", type=Path, help="a picture to write, .png, .svg or .pdf")
    analysis.add_argument("--device", default="cpu", help=DEVICE_HELP)


def add_trainings(verbs: Any) -> None:
    """Add `train` and what can be trained."""
    train = verbs.add_parser("train", help="train checkpoints", description="Train checkpoints.")
    trainings = train.add_subparsers(title="what", metavar="WHAT", required=True)
    tiny = add_verb(
        trainings, "tiny", _train_tiny, "train the tiny target and event model from simulated scenes"
    )
    tiny.add_argument("--models", type=Path, default=Path("models"), help="default: %(default)s")
    tiny.add_argument("--run", type=Path, default=Path("runs/tiny"), help=RUN_HELP)
    add_condition(tiny)
    _add_execution(tiny)
    for kind, what in HEADS.items():
        head = add_verb(trainings, kind, _train_head, f"train {what} for a target and an event model")
        add_models(head, head=kind)
        head.add_argument("--run", type=Path, default=Path("runs") / kind, help=RUN_HELP)
        _add_execution(head)
        _add_plan(head)
        head.set_defaults(kind=kind)
        if kind in ("block", "eagle3"):
            head.add_argument(
                "--vocabulary", type=count, help="tokens that it can say, the most frequent; default: all"
            )
        if kind == "block":
            head.add_argument(
                "--mask",
                choices=("causal", "full"),
                help="which rows of its block a row sees: those up to itself, or all; default: causal",
            )
            head.add_argument("--block", type=count, help="rows of a block; default: 16")
        if kind in ("eventgpt_adapter", "feature"):
            head.add_argument("--bottleneck", type=count, help="width of the adapter; default: 256")
        if kind == "feature":
            head.add_argument(
                "--fusion",
                choices=("factorised", "full"),
                help="3 or 34 million weights at 7B; default: factorised",
            )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    """How a training is computed; `accelerate launch` adds processes."""
    parser.add_argument("--device", default="cpu", help=DEVICE_HELP)
    parser.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), help="mixed; default: bf16 where it is fast, else no"
    )
    parser.add_argument("--accumulate", type=count, help="batches that make one step; default: 1")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    """What a head learns from, and how; what is left out stays as it is in the plan of its kind."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--features", type=Path, help="learn from what `evspec features extract` wrote; default: new scenes"
    )
    source.add_argument(
        "--online", action="store_true", help="compute features when they are needed, store none"
    )
    add_condition(parser)
    parser.add_argument("--scenes", type=count, help="simulated ones to learn from")
    parser.add_argument("--held-out", type=count, help="simulated ones to test with")
    parser.add_argument("--batch", type=count, help="scenes in a batch; with --features a shard is one")
    parser.add_argument("--steps", type=count, help="of the optimiser")
    parser.add_argument("--learning-rate", type=positive, help="the highest")
    parser.add_argument(
        "--objective", help="a weighted sum such as mse=1,cosine=0.5,contrastive=0.1,cross_entropy=1"
    )
    parser.add_argument(
        "--patience", type=count, help="end after so many tests in a row, of ten in all, without a gain"
    )
    parser.add_argument("--seed", type=whole, help="of the head's first weights and the batches' order")


def _layers(text: str) -> tuple[int, ...]:
    return tuple(whole(part) for part in text.split(","))


def _extract_features(options: argparse.Namespace) -> None:
    from evspec_ros.training.feature_run import ExtractionRequest, extract_visibly

    target, event_model, _ = models(options)
    wanted = ExtractionRequest(
        tuple(options.recording), options.step, options.scenes, options.split, options.condition,
        options.first, options.layers, options.event_layers, options.context, options.max_new_tokens,
        options.shard,
    )  # fmt: skip
    found = extract_visibly(target, event_model, options.directory, wanted, options.device)
    if options.json and found:
        print_json(found)


def _analyse_features(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.analysis_report import analyse_visibly, plot_analysis, print_analysis

    target, event_model, adapter = models(options, "eventgpt_adapter")
    analysis = analyse_visibly(target, event_model, options.directory, adapter, options.device)
    if options.plot:
        plot_analysis(analysis, options.plot)
    if options.json:
        print_json(analysis.as_dict())
    else:
        print_analysis(analysis)


def _train_tiny(options: argparse.Namespace) -> None:
    from evspec_ros.training.tiny import train_tiny_visibly

    execution = given(options, "accumulate", "precision")
    made = train_tiny_visibly(options.run, options.models, options.device, execution, options.condition)
    if options.json and made:
        print_json(made)


def _train_head(options: argparse.Namespace) -> None:
    from evspec_ros.training.draft_heads import TINY_PLANS
    from evspec_ros.training.head_run import train_head_visibly

    plan = TINY_PLANS[options.kind]
    schedule = given(options, "steps", "learning_rate", "accumulate", "precision")
    data = given(options, "condition", "scenes", "held_out", "batch")
    learning = given(options, "objective", "patience", "seed", "bottleneck", "fusion")
    learning |= given(options, "vocabulary", "mask", "block")
    figures = train_head_visibly(
        *models(options, options.kind),
        options.run,
        replace(plan, schedule=replace(plan.schedule, **schedule), **data, **learning),
        options.device,
        options.features,
        store=not options.online,
    )
    if options.json and figures:
        print_json(figures)
