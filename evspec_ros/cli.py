"""The command `evspec`: one short function per verb; the work is done in the modules that they import."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from evspec_ros.choices import BACKENDS, CONDITIONS, KV_PRECISIONS, MIXED, PLAIN, PRECISIONS
from evspec_ros.errors import EvspecError

FAILED, INTERRUPTED = 1, 130  # argparse itself exits with 2 on misuse
_RUN_HELP = "kept to go on from after an interruption; default: %(default)s"
_RECORDINGS = (
    "rosbag2 folder, .mcap or .db3 (ROS 2), .bag (ROS 1), Prophesee's .raw (EVT2, EVT3) or .dat, a DSEC "
    "folder or its events' .h5, .aedat4 or .npy; told by content"
)
_DEVICE_HELP = "cpu, cuda or cuda:N; default: %(default)s"

_HEADS = {
    "eagle": "a draft head of EAGLE's kind",
    "eagle3": "a draft head of EAGLE-3's kind",
    "eventgpt_adapter": "the adapter from the event model's features to the target's",
    "feature": "the design paper's adapter with its fusion",
}
_STUDY_OPTIONS = {
    "scenes": "to learn from; default: 2048",
    "held_out": "scenes of each condition to test with; default: 128",
    "steps": "of each training; default: 600",
    "raced": "windows of the race of drafters; default: 40",
}
_MACHINES = ("desktop", "orin_agx_64gb", "orin_nx_16gb", "this")

_messages = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0, 1 (failed, one sentence on stderr), 2 (misused) or 130 (interrupted)."""
    options = _parser().parse_args(arguments)
    try:
        options.verb(options)
    except EvspecError as error:
        _messages.print(f"evspec: {error}", markup=False, soft_wrap=True)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evspec", description="Describes in words what an event camera and an RGB camera see."
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and leave")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    demo = _verb(verbs, "demo", _demo, "run the node on a recording and show what it says")
    demo.add_argument(
        "--recording", type=Path, help="what `evspec info` can read; default: a simulated scene"
    )
    demo.add_argument(
        "--seconds", type=_positive, help="how long to play; default: to the end, at least 10 s"
    )
    demo.add_argument("--report", type=Path, help="where to write; default: runs/demo/report.html")

    info = _verb(verbs, "info", _info, "print what is in a recording")
    info.add_argument("recording", type=Path, help=_RECORDINGS)

    convert = _verb(verbs, "convert", _convert, "write a recording as rosbag2 (EventPacket and Image)")
    convert.add_argument("source", type=Path, help=_RECORDINGS)
    convert.add_argument("destination", type=Path, help="the rosbag2 folder to create")
    convert.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default="mcap", help="default: %(default)s"
    )

    evaluate = _verb(verbs, "eval", _eval, "score both models on simulated held-out scenes")
    _add_models(evaluate)
    evaluate.add_argument("--scenes", type=_count, default=200, help="default: %(default)s")
    evaluate.add_argument(
        "--dtype", choices=PRECISIONS, default="float32", help="precision of both; default: %(default)s"
    )
    evaluate.add_argument(
        "--kv-dtype",
        choices=KV_PRECISIONS,
        default="auto",
        help="precision of the target's key/value cache; default: %(default)s",
    )
    _add_condition(evaluate)

    _add_benches(verbs)

    doctor = _verb(verbs, "doctor", _doctor, "print what this machine has, and which checkpoints fit where")
    _add_models(doctor, "a directory; without any, the published 7B sizes")
    doctor.add_argument("--machine", choices=_MACHINES, help="default: all of them but this one")
    doctor.add_argument("--dtype", choices=PRECISIONS, help="default: float16, on a processor float32")
    doctor.add_argument("--kv-dtype", choices=KV_PRECISIONS, help="default: float16")

    _add_features(verbs)
    _add_trainings(verbs)
    return parser


def _add_benches(verbs: Any) -> None:
    bench = verbs.add_parser("bench", help="measure", description="Measure.")
    benches = bench.add_subparsers(title="what", metavar="WHAT", required=True)
    _add_decode_bench(benches)
    _add_lossless_bench(benches)
    _add_decoder_bench(benches)
    _add_ingest_bench(benches)
    _add_scene_bench(benches)
    _add_results_bench(benches)


def _add_decode_bench(benches: Any) -> None:
    decode = _verb(
        benches, "decode", _bench_decode, "compare drafters with plain decoding on held-out scenes"
    )
    _add_models(decode)
    decode.add_argument("--scenes", type=_count, default=50, help="default: %(default)s")
    decode.add_argument(
        "--streams", type=_whole, default=8, help="of twelve windows each, besides; default: %(default)s"
    )
    decode.add_argument("--plot", type=Path, help="a picture to write, .png, .svg or .pdf")
    decode.add_argument(
        "--drafter", action="append", default=[], help="may be given again; default: all that have a head"
    )
    decode.add_argument(
        "--n-max", type=_count, default=40, help="most tokens per draft; default: %(default)s"
    )
    decode.add_argument(
        "--p-min", type=_probability, default=0.0, help="confidence to draft on; default: %(default)s"
    )


def _add_lossless_bench(benches: Any) -> None:
    lossless = _verb(
        benches, "lossless", _bench_lossless, "compare every drafter's texts with plain decoding's, greedily"
    )
    _add_models(lossless)
    lossless.set_defaults(draft_head=None)
    lossless.add_argument("--scenes", type=_count, default=500, help="default: %(default)s")


def _add_decoder_bench(benches: Any) -> None:
    decoder = _verb(
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
    decoder.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: %(default)s")
    decoder.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: float32 on the CPU, float16 on a GPU",
    )
    decoder.add_argument(
        "--backend",
        choices=BACKENDS,
        help="default: cuda_graphs on a GPU, else auto",
    )
    decoder.add_argument("--threads", type=_count, help="of both decoders; default: torch's")
    decoder.add_argument("--repetitions", type=_count, default=50, help="default: %(default)s")


def _add_ingest_bench(benches: Any) -> None:
    ingest = _verb(benches, "ingest", _bench_ingest, "measure decoders, windows and the node at sensor rate")
    ingest.add_argument(
        "--seconds", type=_positive, default=3.0, help="for each measurement; default: %(default)s"
    )
    ingest.add_argument("--no-node", action="store_true", help="leave out the node, which needs ROS")


def _add_scene_bench(benches: Any) -> None:
    scenes = _verb(
        benches, "scenes", _bench_scenes, "compare the events of simulated scenes with those of recordings"
    )
    scenes.add_argument("--scenes", type=_count, default=40, help="of each condition; default: %(default)s")
    scenes.add_argument(
        "--recording", type=Path, action="append", default=[], help="to compare with; may be given again"
    )
    scenes.add_argument("--plot", type=Path, help="a picture of the figures to write, .png, .svg or .pdf")
    scenes.add_argument("--sheet", type=Path, help="a picture of a scene of each condition to write")


def _add_results_bench(benches: Any) -> None:
    results = _verb(
        benches,
        "results",
        _bench_results,
        "train heads with and without events over several seeds and write what came of it (hours)",
    )
    _add_models(results)
    results.set_defaults(draft_head=None)
    results.add_argument("--run", type=Path, default=Path("runs/results"), help=_RUN_HELP)
    results.add_argument(
        "--write", type=Path, default=Path("docs/results.md"), help="and an .svg beside; default: %(default)s"
    )
    results.add_argument("--seeds", type=_seeds, help="of each kind of head, 2 to 10; default: 3")
    for name, what in _STUDY_OPTIONS.items():
        results.add_argument(f"--{name.replace('_', '-')}", type=_count, help=what)


def _add_features(verbs: Any) -> None:
    features = verbs.add_parser(
        "features", help="what both models have inside", description="What both models have inside."
    )
    actions = features.add_subparsers(title="what", metavar="WHAT", required=True)
    extract = _verb(
        actions,
        "extract",
        _extract_features,
        "run both models over recordings or simulated scenes",
    )
    extract.add_argument("directory", type=Path, help="where to write, and to go on after an interruption")
    _add_models(extract)
    extract.add_argument(
        "--recording", type=Path, action="append", default=[], help="with frames; may be given again"
    )
    extract.add_argument(
        "--step", type=_positive, default=0.5, help="seconds from window to window; default: %(default)s"
    )
    extract.add_argument(
        "--scenes", type=_count, default=512, help="simulated ones without a recording; default: %(default)s"
    )
    extract.add_argument(
        "--split", choices=("train", "held_out"), default="train", help="of the scenes; default: %(default)s"
    )
    _add_condition(extract)
    extract.add_argument("--first", type=_whole, default=0, help="scene of the split; default: %(default)s")
    for option, model in (("--layers", "target"), ("--event-layers", "event model")):
        extract.add_argument(
            option,
            type=_layers,
            help=f"of the {model}, as in 2,5; the last is always kept; default: a low one and the middle",
        )
    extract.add_argument(
        "--context", type=_whole, help="rows kept of the prompt, the last ones; default: all, as eagle needs"
    )
    extract.add_argument("--max-new-tokens", type=_count, default=80, help="default: %(default)s")
    extract.add_argument("--shard", type=_count, default=32, help="scenes in a file; default: %(default)s")
    extract.add_argument("--device", default="cpu", help=_DEVICE_HELP)
    analysis = _verb(actions, "analyse", _analyse_features, "compare the two models' features")
    analysis.add_argument("directory", type=Path, help="what `evspec features extract` wrote")
    _add_models(analysis, head="eventgpt_adapter")
    analysis.add_argument("--plot", type=Path, help="a picture to write, .png, .svg or .pdf")
    analysis.add_argument("--device", default="cpu", help=_DEVICE_HELP)


def _add_trainings(verbs: Any) -> None:
    train = verbs.add_parser("train", help="train checkpoints", description="Train checkpoints.")
    trainings = train.add_subparsers(title="what", metavar="WHAT", required=True)
    tiny = _verb(
        trainings, "tiny", _train_tiny, "train the tiny target and event model from simulated scenes"
    )
    tiny.add_argument("--models", type=Path, default=Path("models"), help="default: %(default)s")
    tiny.add_argument("--run", type=Path, default=Path("runs/tiny"), help=_RUN_HELP)
    _add_condition(tiny)
    _add_execution(tiny)
    for kind, what in _HEADS.items():
        head = _verb(trainings, kind, _train_head, f"train {what} for a target and an event model")
        _add_models(head, head=kind)
        head.add_argument("--run", type=Path, default=Path("runs") / kind, help=_RUN_HELP)
        _add_execution(head)
        _add_plan(head)
        head.set_defaults(kind=kind)
        if kind == "eagle3":
            head.add_argument(
                "--vocabulary", type=_count, help="tokens that it can say, the most frequent; default: all"
            )
        if kind in ("eventgpt_adapter", "feature"):
            head.add_argument("--bottleneck", type=_count, help="width of the adapter; default: 256")
        if kind == "feature":
            head.add_argument(
                "--fusion",
                choices=("factorised", "full"),
                help="3 or 34 million weights at 7B; default: factorised",
            )


def _add_condition(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--condition",
        choices=(*CONDITIONS, MIXED),
        default=PLAIN,
        help="what makes simulated scenes hard to see; default: %(default)s",
    )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    """How a training is computed; `accelerate launch` adds processes."""
    parser.add_argument("--device", default="cpu", help=_DEVICE_HELP)
    parser.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), help="mixed; default: bf16 where it is fast, else no"
    )
    parser.add_argument("--accumulate", type=_count, help="batches that make one step; default: 1")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    """What a head learns from, and how; what is left out stays as it is in the plan of its kind."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--features", type=Path, help="learn from what `evspec features extract` wrote; default: new scenes"
    )
    source.add_argument(
        "--online", action="store_true", help="compute features when they are needed, store none"
    )
    _add_condition(parser)
    parser.add_argument("--scenes", type=_count, help="simulated ones to learn from")
    parser.add_argument("--held-out", type=_count, help="simulated ones to test with")
    parser.add_argument("--batch", type=_count, help="scenes in a batch; with --features a shard is one")
    parser.add_argument("--steps", type=_count, help="of the optimiser")
    parser.add_argument("--learning-rate", type=_positive, help="the highest")
    parser.add_argument(
        "--objective", help="a weighted sum such as mse=1,cosine=0.5,contrastive=0.1,cross_entropy=1"
    )
    parser.add_argument(
        "--patience", type=_count, help="end after so many tests in a row, of ten in all, without a gain"
    )
    parser.add_argument("--seed", type=_whole, help="of the head's first weights and the batches' order")


def _add_models(
    parser: argparse.ArgumentParser,
    default: str = "default: the package's models/tiny_{}",
    head: str = "eagle",
) -> None:
    """Options that name the three checkpoint directories."""
    for option, name in (("target", "video_llava"), ("event-model", "eventgpt"), ("draft-head", head)):
        parser.add_argument(f"--{option}", type=Path, help=default.format(name))


class _PrintVersion(argparse.Action):
    """Looks the version up when it is asked for, so that all else works from a source tree, too."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"evspec {metadata.version('evspec_ros')}\n")
        parser.exit()


def _verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str
) -> argparse.ArgumentParser:
    """Add the verb `name`, which `run` carries out; every verb knows --help and --json."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )
    parser.set_defaults(verb=run)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _layers(text: str) -> tuple[int, ...]:
    return tuple(_whole(part) for part in text.split(","))


def _seeds(text: str) -> int:
    value = _count(text)
    if not 2 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 2 to 10")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _print_json(value: dict[str, Any]) -> None:
    json.dump(value, sys.stdout)
    sys.stdout.write("\n")


def _demo(options: argparse.Namespace) -> None:
    from evspec_ros.ros.requirements import require_ros

    require_ros()
    from evspec_ros.ros.demo import run_demo

    run_demo(options.recording, as_json=options.json, seconds=options.seconds, report=options.report)


def _info(options: argparse.Namespace) -> None:
    _show_info(options.recording, as_json=options.json)


def _show_info(recording: Path, *, as_json: bool) -> None:
    from evspec_ros.recordings.report import print_info, read_info

    info = read_info(recording)
    if as_json:
        _print_json(info.as_dict())
    else:
        print_info(recording, info)


def _convert(options: argparse.Namespace) -> None:
    from evspec_ros.recordings.report import convert_visibly

    convert_visibly(options.source, options.destination, options.storage)
    _show_info(options.destination, as_json=options.json)


def _models(options: argparse.Namespace, head: str = "eagle") -> tuple[Path, Path, Path]:
    """The three checkpoint directories, the package's own where none was named."""
    from evspec_ros.ros.files import share_directory

    named = options.target, options.event_model, options.draft_head
    own = ("tiny_video_llava", "tiny_eventgpt", f"tiny_{head}")
    target, event_model, draft_head = (
        path or share_directory() / "models" / name for path, name in zip(named, own, strict=True)
    )
    return target, event_model, draft_head


def _bench_decode(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.decoding import bench_visibly
    from evspec_ros.evaluation.decoding_report import plot_report, print_report
    from evspec_ros.speculative import DraftLimits

    limits = DraftLimits(options.n_max, options.n_max, options.p_min)
    target, event_model, _ = _models(options)
    report = bench_visibly(
        target, event_model, _heads(options), options.scenes, limits, options.drafter, options.streams
    )
    if options.plot:
        plot_report(report, options.plot)
    if options.json:
        _print_json(report.as_dict())
    else:
        print_report(report)


def _bench_lossless(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.lossless import print_proof, prove_visibly

    target, event_model, _ = _models(options)
    report = prove_visibly(target, event_model, _heads(options), options.scenes)
    if options.json:
        _print_json(report.as_dict())
    else:
        print_proof(report)
    if report.different:
        raise EvspecError(f"{len(report.different)} texts differ from plain decoding's.")


def _heads(options: argparse.Namespace) -> list[Path]:
    """The draft head that was named, or all of the package's own."""
    from evspec_ros.ros.files import share_directory

    if options.draft_head:
        return [options.draft_head]
    return [share_directory() / "models" / f"tiny_{kind}" for kind in _HEADS]


def _bench_decoder(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.decoder_speed import DecoderBench, bench_visibly, print_speed
    from evspec_ros.ros.files import share_directory

    if options.shape != "tiny" and options.target is None and not options.random_weights:
        raise EvspecError("The package ships the tiny shape alone; add --target DIR or --random-weights.")
    own = share_directory() / "models" / "tiny_video_llava"
    gpu = options.device != "cpu"
    speed = bench_visibly(
        DecoderBench(
            shape=options.shape,
            target=None if options.random_weights else options.target or own,
            device=options.device,
            dtype=options.dtype or ("float16" if gpu else "float32"),
            backend=options.backend or ("cuda_graphs" if gpu else "auto"),
            threads=options.threads,
            repetitions=options.repetitions,
        )
    )
    if options.json:
        _print_json(speed.as_dict())
    else:
        print_speed(speed)


def _bench_ingest(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.ingest_speed import measure, print_speed

    node = None
    if not options.no_node:
        from evspec_ros.ros.requirements import require_ros

        require_ros()
        from evspec_ros.ros.node_load import measure_node

        with _messages.status("Loading the node with events ..."):
            node = measure_node(max(options.seconds, 5.0))  # it reports once a second
    with _messages.status("Decoding ..."):
        speed = measure(options.seconds, node)
    if options.json:
        _print_json(speed.as_dict())
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
        _print_json({"rows": [row.as_dict() for row in rows]})
    else:
        print_statistics(rows)


def _bench_results(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.study import StudyPlan, run_study_visibly
    from evspec_ros.evaluation.study_report import write_results

    target, event_model, _ = _models(options)
    plan = replace(StudyPlan(), **_given(options, "seeds", *_STUDY_OPTIONS))
    study = run_study_visibly(target, event_model, options.run, plan)
    given = _given(options, "target", "event_model", "seeds", *_STUDY_OPTIONS)
    words = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items()]
    write_results(study, options.write, " ".join(("evspec bench results", *words)))
    if options.json:
        _print_json(study.as_dict())
    else:
        _messages.print(f"Written: {options.write}", markup=False)


def _eval(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.accuracy import evaluate_visibly, print_accuracies

    target, event_model, _ = _models(options)
    rows = evaluate_visibly(
        target, event_model, options.scenes, options.dtype, options.kv_dtype, options.condition
    )
    if options.json:
        _print_json({"rows": [row.as_dict() for row in rows]})
    else:
        print_accuracies(rows)


def _doctor(options: argparse.Namespace) -> None:
    from evspec_ros.doctor import (
        MACHINES,
        THIS,
        judge,
        pair_report,
        print_report,
        read_sizes,
        report_as_dict,
        software,
        this_machine,
    )

    sizes = read_sizes(options.target, options.event_model, options.draft_head)
    names = [options.machine] if options.machine else list(MACHINES)
    machines = [this_machine() if name == THIS else MACHINES[name] for name in names]
    verdicts = [judge(sizes, machine, options.dtype, options.kv_dtype) for machine in machines]
    pair = pair_report(options.target, options.event_model)
    if options.json:
        _print_json(report_as_dict(software(), verdicts, pair))
    else:
        print_report(software(), verdicts, pair)


def _extract_features(options: argparse.Namespace) -> None:
    from evspec_ros.training.feature_run import Wanted, extract_visibly

    target, event_model, _ = _models(options)
    wanted = Wanted(
        tuple(options.recording), options.step, options.scenes, options.split, options.condition,
        options.first, options.layers, options.event_layers, options.context, options.max_new_tokens,
        options.shard,
    )  # fmt: skip
    found = extract_visibly(target, event_model, options.directory, wanted, options.device)
    if options.json and found:
        _print_json(found)


def _analyse_features(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.analysis_report import analyse_visibly, plot_analysis, print_analysis

    target, event_model, adapter = _models(options, "eventgpt_adapter")
    analysis = analyse_visibly(target, event_model, options.directory, adapter, options.device)
    if options.plot:
        plot_analysis(analysis, options.plot)
    if options.json:
        _print_json(analysis.as_dict())
    else:
        print_analysis(analysis)


def _train_tiny(options: argparse.Namespace) -> None:
    from evspec_ros.training.tiny import train_tiny_visibly

    execution = _given(options, "accumulate", "precision")
    made = train_tiny_visibly(options.run, options.models, options.device, execution, options.condition)
    if options.json and made:
        _print_json(made)


def _train_head(options: argparse.Namespace) -> None:
    from evspec_ros.training.draft_heads import TINY_PLANS
    from evspec_ros.training.head_run import train_head_visibly

    plan = TINY_PLANS[options.kind]
    schedule = _given(options, "steps", "learning_rate", "accumulate", "precision")
    data = _given(options, "condition", "scenes", "held_out", "batch")
    learning = _given(options, "objective", "patience", "seed", "bottleneck", "fusion", "vocabulary")
    figures = train_head_visibly(
        *_models(options, options.kind),
        options.run,
        replace(plan, schedule=replace(plan.schedule, **schedule), **data, **learning),
        options.device,
        options.features,
        store=not options.online,
    )
    if options.json and figures:
        _print_json(figures)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    found = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}
