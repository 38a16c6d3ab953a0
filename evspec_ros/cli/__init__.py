"""The command `evspec`: one short function per verb; the work is done in the modules that they import."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evspec_ros.choices import KV_PRECISIONS, PRECISIONS, RECORDINGS
from evspec_ros.cli.benches import add_benches
from evspec_ros.cli.evaluations import add_eval
from evspec_ros.cli.export import add_export
from evspec_ros.cli.options import (
    add_columns,
    add_models,
    add_topics,
    add_verb,
    messages,
    positive,
    print_json,
    wanted,
    whole,
)
from evspec_ros.cli.training import add_features, add_trainings
from evspec_ros.errors import EvspecError
from evspec_ros.files import version

if TYPE_CHECKING:
    from evspec_ros.recordings.recording import RecordingInfo

FAILED, INTERRUPTED = 1, 130  # argparse itself exits with 2 on misuse
_RECORDINGS = f"{RECORDINGS}; recognised by content"
_MACHINES = ("desktop", "orin_agx_64gb", "orin_nx_16gb", "this")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0, 1 (failed, one sentence on stderr), 2 (misused) or 130 (interrupted)."""
    try:
        options = _parser().parse_args(arguments)
        options.verb(options)
    except EvspecError as error:
        messages.print(f"evspec: {error}", markup=False, soft_wrap=True)
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

    demo = add_verb(verbs, "demo", _demo, "run the node on a recording and show what it says")
    demo.add_argument(
        "--recording", type=Path, help="what `evspec info` can read; default: a simulated scene"
    )
    demo.add_argument("--seconds", type=positive, help="how long to play; default: to the end, at least 10 s")
    demo.add_argument("--report", type=Path, help="where to write; default: runs/demo/report.html")
    add_topics(demo)

    watch = add_verb(verbs, "watch", _watch, "serve a page that shows a running node live")
    watch.add_argument("--node", default="/evspec", help="its full name; default: %(default)s")
    watch.add_argument("--host", default="127.0.0.1", help="address to serve on; default: %(default)s")
    watch.add_argument("--port", type=whole, default=8080, help="0 for any free one; default: %(default)s")

    info = add_verb(verbs, "info", _info, "print what is in a recording")
    info.add_argument("recording", type=Path, help=_RECORDINGS)
    add_topics(info)
    add_columns(info)

    convert = add_verb(verbs, "convert", _convert, "write a recording as rosbag2 (EventPacket and Image)")
    convert.add_argument("source", type=Path, help=_RECORDINGS)
    convert.add_argument("destination", type=Path, help="the rosbag2 folder to create")
    convert.add_argument(
        "--storage", choices=("mcap", "sqlite3"), default="mcap", help="default: %(default)s"
    )
    add_topics(convert)
    add_columns(convert)

    add_eval(verbs)
    add_benches(verbs)
    add_export(verbs)

    doctor = add_verb(
        verbs, "doctor", _doctor, "print what this machine has, and which checkpoints fit where"
    )
    add_models(doctor, "a directory; without any, the published 7B sizes")
    doctor.add_argument("--machine", choices=_MACHINES, help="default: all of them but this one")
    doctor.add_argument("--dtype", choices=PRECISIONS, help="default: float16, on a processor float32")
    doctor.add_argument("--kv-dtype", choices=KV_PRECISIONS, help="default: float16")

    soak = add_verb(verbs, "soak", _soak, "play a scene to the node, with a fault every few seconds")
    soak.add_argument("--minutes", type=positive, default=5.0, help="default: %(default)s")
    soak.add_argument("--seed", type=whole, default=0, help="of the faults' order; default: %(default)s")

    add_features(verbs)
    add_trainings(verbs)
    return parser


class _PrintVersion(argparse.Action):
    """Looks the version up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(f"evspec {version()}\n")
        parser.exit()


def _watch(options: argparse.Namespace) -> None:
    from evspec_ros.ros.requirements import require_package, require_ros

    require_ros()
    require_package("aiohttp", "serves the page")
    from evspec_ros.ros.trials.watch import watch

    watch(options.node, options.host, options.port, lambda address: print(f"Open {address}", flush=True))


def _demo(options: argparse.Namespace) -> None:
    from evspec_ros.ros.requirements import require_ros

    require_ros()
    from evspec_ros.ros.trials.demo import run_demo

    run_demo(
        options.recording,
        as_json=options.json,
        seconds=options.seconds,
        report=options.report,
        wanted=wanted(options),
    )


def _soak(options: argparse.Namespace) -> None:
    from evspec_ros.ros.requirements import require_ros

    require_ros()
    from evspec_ros.ros.trials.soak import require_well, soak

    began = time.monotonic()

    def told(what: str) -> None:
        messages.print(f"{time.monotonic() - began:7.1f} s  {what}", markup=False, soft_wrap=True)

    report = soak(options.minutes, options.seed, told=told)
    print_json(report.as_dict())
    require_well(report)


def _info(options: argparse.Namespace) -> None:
    from evspec_ros.recordings.report import read_info

    _show_info(options, options.recording, read_info(options.recording, wanted(options)))


def _show_info(options: argparse.Namespace, recording: Path, info: RecordingInfo) -> None:
    from evspec_ros.recordings.report import print_info

    if options.json:
        print_json(info.as_dict())
    else:
        print_info(recording, info)


def _convert(options: argparse.Namespace) -> None:
    from evspec_ros.recordings.report import convert_visibly, read_info

    convert_visibly(options.source, options.destination, options.storage, wanted(options))
    _show_info(options, options.destination, read_info(options.destination))


def _doctor(options: argparse.Namespace) -> None:
    from evspec_ros.doctor import (
        MACHINES,
        THIS,
        cached_plans,
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
        print_json(report_as_dict(software(), verdicts, pair, cached_plans()))
    else:
        print_report(software(), verdicts, pair, cached_plans())
