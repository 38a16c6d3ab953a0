"""`evspec bench ...`: the work is done in `evaluation`, and for the node in `ros`."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from evspec_ros.choices import CONDITIONS, DRAFTER_BACKENDS, EXPORT_PRECISIONS, MIXED
from evspec_ros.cli.comparisons import add_comparisons
from evspec_ros.cli.export import add_networks, networks_of
from evspec_ros.cli.gpu import add_gpu_bench
from evspec_ros.cli.node import add_node_bench
from evspec_ros.cli.options import (
    DEVICE_HELP,
    HEADS,
    RUN_HELP,
    add_models,
    add_pair,
    add_placement,
    add_verb,
    capability,
    count,
    given,
    messages,
    models,
    own_checkpoint,
    own_heads,
    placement,
    positive,
    print_json,
    probability,
    whole,
)
from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.learning_plan import LearningPlan
from evspec_ros.evaluation.study_plan import StudyPlan

_STUDY_OPTIONS = {
    "scenes": "to learn from",
    "held_out": "scenes of each condition to test with",
    "steps": "of each training",
    "raced": "windows of the race of drafters",
}

_LEARNING_OPTIONS = {
    "scenes": "that follow each other",
    "windows": "of each scene",
    "starts": "of the describer, each of which goes on from the head that was saved",
}


def add_benches(verbs: Any) -> None:
    """Add `bench` and all that it measures."""
    bench = verbs.add_parser("bench", help="measure", description="Measure.")
    benches = bench.add_subparsers(title="what", metavar="WHAT", required=True)
    _add_decode_bench(benches)
    _add_lossless_bench(benches)
    _add_decoder_bench(benches)
    _add_engine_bench(benches)
    _add_learning_bench(benches)
    _add_ingest_bench(benches)
    _add_scene_bench(benches)
    _add_results_bench(benches)
    _add_build_bench(benches)
    add_gpu_bench(benches)
    add_node_bench(benches)
    add_comparisons(benches)


def _add_decode_bench(benches: Any) -> None:
    decode = add_verb(
        benches, "decode", _bench_decode, "compare drafters with plain decoding on held-out scenes"
    )
    add_models(decode)
    decode.add_argument("--scenes", type=count, default=10, help="default: %(default)s")
    decode.add_argument(
        "--streams", type=whole, default=1, help="of twelve windows each, besides; default: %(default)s"
    )
    decode.add_argument("--plot", type=Path, help="a picture to write, .png, .svg or .pdf")
    decode.add_argument(
        "--drafter", action="append", default=[], help="may be given again; default: all that have a head"
    )
    decode.add_argument("--n-max", type=count, default=40, help="most tokens per draft; default: %(default)s")
    decode.add_argument(
        "--p-min", type=probability, default=0.0, help="confidence to draft on; default: %(default)s"
    )
    add_placement(decode)
    decode.add_argument(
        "--drafter-backend",
        choices=DRAFTER_BACKENDS,
        default="auto",
        help="of the drafters' networks; default: %(default)s",
    )


def _add_lossless_bench(benches: Any) -> None:
    lossless = add_verb(
        benches, "lossless", _bench_lossless, "compare every drafter's texts with plain decoding's, greedily"
    )
    add_pair(lossless)
    lossless.add_argument("--scenes", type=count, default=500, help="default: %(default)s")
    lossless.add_argument(
        "--first", type=whole, default=0, help="scene, to go on after an interruption; default: %(default)s"
    )
    lossless.add_argument("--device", default="cpu", help=DEVICE_HELP)
    lossless.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="in half precision texts are equal up to rounding; default: %(default)s",
    )
    lossless.add_argument(
        "--exact-half", action="store_true", help="in half precision, give all passes the same shape"
    )


def _add_decoder_bench(benches: Any) -> None:
    decoder = add_verb(
        benches, "decoder", _bench_decoder, "compare the target's decoder with transformers' on its weights"
    )
    decoder.add_argument(
        "--target", type=Path, help="a Video-LLaVA checkpoint; default: the package's models/tiny_video_llava"
    )
    decoder.add_argument(
        "--shape",
        choices=("tiny", "7b"),
        default="tiny",
        help="sizes and prompt length; default: %(default)s",
    )
    decoder.add_argument(
        "--random-weights", action="store_true", help="of the shape, no checkpoint; --shape 7b needs a GPU"
    )
    add_placement(decoder)
    decoder.add_argument("--threads", type=count, help="of both decoders; default: torch's")
    decoder.add_argument("--repetitions", type=count, default=50, help="default: %(default)s")


def _add_engine_bench(benches: Any) -> None:
    engines = add_verb(
        benches, "engines", _bench_engines, "compare engines of the drafter's networks with torch's modules"
    )
    add_networks(engines)
    engines.add_argument("--device", default="cpu", help=DEVICE_HELP)
    engines.add_argument(
        "--precision", choices=EXPORT_PRECISIONS, default="float32", help="default: %(default)s"
    )
    engines.add_argument("--threads", type=count, help="of all of them; default: torch's")
    engines.add_argument("--repetitions", type=count, default=50, help="default: %(default)s")


def _add_learning_bench(benches: Any) -> None:
    learning = add_verb(
        benches,
        "learning",
        _bench_learning,
        "replay a simulated stream to a draft head that is new and learns",
    )
    add_pair(learning)
    learning.add_argument(
        "--draft-head-dir",
        type=Path,
        default=Path("runs/learning"),
        help="where the head is kept, and gone on from; default: %(default)s",
    )
    for name, what in _LEARNING_OPTIONS.items():
        default = getattr(LearningPlan, name)
        learning.add_argument(f"--{name}", type=count, help=f"{what}; default: {default}")
    learning.add_argument("--plot", type=Path, help="a picture to write, .png, .svg or .pdf")


def _add_ingest_bench(benches: Any) -> None:
    ingest = add_verb(
        benches, "ingest", _bench_ingest, "measure decoders, windows and the node at sensor rate"
    )
    ingest.add_argument(
        "--seconds", type=positive, default=3.0, help="for each measurement; default: %(default)s"
    )
    ingest.add_argument("--no-node", action="store_true", help="leave out the node, which needs ROS")


def _add_scene_bench(benches: Any) -> None:
    scenes = add_verb(
        benches, "scenes", _bench_scenes, "compare the events of simulated scenes with those of recordings"
    )
    scenes.add_argument("--scenes", type=count, default=40, help="of each condition; default: %(default)s")
    scenes.add_argument(
        "--recording", type=Path, action="append", default=[], help="to compare with; may be given again"
    )
    scenes.add_argument("--plot", type=Path, help="a picture of the figures to write, .png, .svg or .pdf")
    scenes.add_argument("--sheet", type=Path, help="a picture of a scene of each condition to write")


def _add_results_bench(benches: Any) -> None:
    results = add_verb(
        benches,
        "results",
        _bench_results,
        "train heads with and without events over several seeds and write what came of it (hours)",
    )
    add_pair(results)
    results.add_argument("--run", type=Path, default=Path("runs/results"), help=RUN_HELP)
    results.add_argument(
        "--write", type=Path, default=Path("docs/results.md"), help="and an .svg beside; default: %(default)s"
    )
    results.add_argument(
        "--seeds", type=_seeds, help=f"of each kind of head, 2 to 10; default: {StudyPlan.seeds}"
    )
    results.add_argument(
        "--kind",
        action="append",
        choices=HEADS,
        help="of heads to compare with and without events, and nothing else; may be given again; default: "
        "all kinds, by size and data too, and a race",
    )
    results.add_argument(
        "--condition",
        choices=(MIXED, *CONDITIONS),
        help=f"of the scenes to learn from and to test with; default: {MIXED}, and tests with each",
    )
    for name, what in _STUDY_OPTIONS.items():
        default = getattr(StudyPlan, name)
        results.add_argument(f"--{name.replace('_', '-')}", type=count, help=f"{what}; default: {default}")


def _add_build_bench(benches: Any) -> None:
    builds = add_verb(
        benches, "builds", _bench_builds, "measure what compiling full-width networks with TensorRT takes"
    )
    builds.add_argument("--layers", type=count, default=2, help="of EventGPT's decoder; default: %(default)s")
    builds.add_argument(
        "--compute-capability",
        type=capability,
        action="append",
        dest="capabilities",
        help="of a GPU; may be given again; default: 8.6, 8.9 and 12.0",
    )


def _seeds(text: str) -> int:
    value = count(text)
    if not 2 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 2 to 10")
    return value


def _bench_decode(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.decoding import Placement, bench_visibly
    from evspec_ros.evaluation.decoding_report import plot_report, print_report
    from evspec_ros.speculative import DraftLimits

    limits = DraftLimits(options.n_max, options.n_max, options.p_min)
    target, event_model, _ = models(options)
    report = bench_visibly(
        target,
        event_model,
        _heads(options),
        options.scenes,
        limits,
        options.drafter,
        options.streams,
        Placement(*placement(options), options.drafter_backend),
    )
    if options.plot:
        plot_report(report, options.plot)
    if options.json:
        print_json(report.as_dict())
    else:
        print_report(report)


def _heads(options: argparse.Namespace) -> list[Path]:
    """The draft head that was named, or all of the package's own."""
    if options.draft_head:
        return [options.draft_head]
    return own_heads()


def _bench_lossless(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.lossless import print_proof, prove_visibly

    target, event_model, _ = models(options)
    report = prove_visibly(
        target,
        event_model,
        _heads(options),
        options.scenes,
        options.first,
        device=options.device,
        dtype=options.dtype,
        exact_half=options.exact_half,
    )
    if options.json:
        print_json(report.as_dict())
    else:
        print_proof(report)
    if report.different:
        raise EvspecError(f"{len(report.different)} texts differ from plain decoding's.")


def _bench_decoder(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.decoder_speed import DecoderBench, bench_visibly, print_speed

    if options.shape != "tiny" and options.target is None and not options.random_weights:
        raise EvspecError("The package ships the tiny shape alone; add --target DIR or --random-weights.")
    own = None if options.random_weights else options.target or own_checkpoint("tiny_video_llava")
    device, dtype, backend = placement(options)
    speed = bench_visibly(
        DecoderBench(
            shape=options.shape,
            target=own,
            device=device,
            dtype=dtype,
            backend=backend,
            threads=options.threads,
            repetitions=options.repetitions,
        )
    )
    if options.json:
        print_json(speed.as_dict())
    else:
        print_speed(speed)


def _bench_engines(options: argparse.Namespace) -> None:
    import torch

    from evspec_ros.evaluation.engine_speed import bench_visibly, print_speeds

    if options.threads:
        torch.set_num_threads(options.threads)
    networks = networks_of(options, options.precision, options.device)
    rows = bench_visibly(networks, options.repetitions)
    if options.json:
        print_json({"rows": [row.as_dict() for row in rows]})
    else:
        print_speeds(rows)


def _bench_learning(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.learning import plot_learning, print_learning, replay_visibly

    target, event_model, _ = models(options)
    plan = replace(LearningPlan(), **given(options, *_LEARNING_OPTIONS))
    report = replay_visibly(target, event_model, options.draft_head_dir, plan)
    if options.plot:
        plot_learning(report, options.plot)
    if options.json:
        print_json(report.as_dict())
    else:
        print_learning(report)


def _bench_ingest(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.ingest_speed import measure, print_speed

    node = None
    if not options.no_node:
        from evspec_ros.ros.requirements import require_ros

        require_ros()
        from evspec_ros.ros.trials.node_load import measure_node

        with messages.status("Loading the node with events ..."):
            node = measure_node(max(options.seconds, 5.0))  # it reports once a second
    with messages.status("Decoding ..."):
        speed = measure(options.seconds, node)
    if options.json:
        print_json(speed.as_dict())
    else:
        print_speed(speed)


def _bench_scenes(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.scene_pictures import draw_sheet, plot_statistics
    from evspec_ros.evaluation.scene_statistics import compare_visibly, print_statistics

    rows = compare_visibly(options.scenes, options.recording)
    if options.plot:
        plot_statistics(rows, options.plot)
    if options.sheet:
        draw_sheet(options.sheet)
    if options.json:
        print_json({"rows": [row.as_dict() for row in rows]})
    else:
        print_statistics(rows)


def _bench_builds(options: argparse.Namespace) -> None:
    from evspec_ros.engines.building import print_plans
    from evspec_ros.evaluation.engine_builds import bench_builds

    rows = bench_builds(options.layers, options.capabilities or [(8, 6), (8, 9), (12, 0)])
    if options.json:
        print_json({"rows": [row.as_dict() for row in rows]})
    else:
        print_plans(rows)


def _bench_results(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.study import run_study_visibly
    from evspec_ros.evaluation.study_report import write_results

    target, event_model, _ = models(options)
    plan = replace(StudyPlan(), **given(options, "seeds", "condition", *_STUDY_OPTIONS))
    kinds = tuple(dict.fromkeys(options.kind or ()))
    conditions = CONDITIONS if plan.condition == MIXED else (plan.condition,)
    plan = replace(plan, kinds=kinds, conditions=conditions)
    study = run_study_visibly(target, event_model, options.run, plan)
    named = given(options, "target", "event_model", "seeds", "condition", *_STUDY_OPTIONS)
    words = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in named.items()]
    words += [f"--kind {kind}" for kind in kinds]
    command = " ".join(("evspec bench results", *words))
    write_results(study, options.write, command, shipped="target" not in named)
    if options.json:
        print_json(study.as_dict())
    else:
        messages.print(f"Written: {options.write}", markup=False)
