"""`evspec export`: the drafter's networks as ONNX files, or as plans that TensorRT compiled."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evspec_ros.choices import EXPORT_PRECISIONS
from evspec_ros.cli.options import (
    add_pair,
    add_verb,
    capability,
    messages,
    models,
    own_checkpoint,
    positive,
    print_json,
)
from evspec_ros.errors import EvspecError

if TYPE_CHECKING:
    from evspec_ros.engines.int8 import Sample
    from evspec_ros.engines.networks import Network

_OWN_HEADS = ("tiny_eagle3", "tiny_block")  # those that `combined` drafts with


def add_export(verbs: Any) -> None:
    """Add `export`."""
    export = add_verb(
        verbs,
        "export",
        _export,
        "write the drafter's networks as ONNX files and check them, or compile them with TensorRT",
    )
    export.add_argument(
        "--backend",
        choices=("onnx", "tensorrt"),
        default="onnx",
        help="tensorrt: compile them ahead of time, for this machine or others; default: %(default)s",
    )
    export.add_argument(
        "--out", type=Path, metavar="DIR", help="where the files lie; default, of tensorrt: the engine cache"
    )
    export.add_argument(
        "--check",
        action="store_true",
        help="write no ONNX files, compare those in DIR with the models; of tensorrt: run the plans and "
        "compare them with torch",
    )
    export.add_argument(
        "--precision",
        choices=EXPORT_PRECISIONS,
        default=EXPORT_PRECISIONS[0],
        help="of weights and numbers in the graphs; default: %(default)s",
    )
    export.add_argument(
        "--int8",
        type=Path,
        metavar="RECORDING",
        help="compute products in int8, scaled by what this recording's first windows give",
    )
    export.add_argument(
        "--compute-capability",
        type=capability,
        action="append",
        default=[],
        dest="capabilities",
        help="such as 8.6, of a GPU that shall run the plans; may be given again; default: the GPU at hand",
    )
    export.add_argument(
        "--memory-limit",
        type=positive,
        metavar="GIB",
        help="of the GPU, that a layer may take while it runs; default: 1",
    )
    add_networks(export)


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Options that name the checkpoints of a drafter; of heads several."""
    add_pair(parser)
    parser.add_argument(
        "--draft-head",
        type=Path,
        action="append",
        default=[],
        dest="heads",
        help=f"may be given again; default: the package's {' and '.join(_OWN_HEADS)}",
    )


def _heads(options: argparse.Namespace) -> list[Path]:
    return options.heads or [own_checkpoint(name) for name in _OWN_HEADS]


def networks_of(options: argparse.Namespace, precision: str, device: str = "cpu") -> list[Network]:
    """The networks of the checkpoints that `add_networks` names."""
    from evspec_ros.engines.networks import EXPORT_DTYPES, drafter_networks
    from evspec_ros.networks.checkpoints import load_draft_head, load_eventgpt, load_video_llava
    from evspec_ros.networks.devices import compute_device

    dtype, place = EXPORT_DTYPES[precision], compute_device(device)
    target, event_model, _ = models(options)
    with messages.status("Loading the checkpoints ..."):
        return drafter_networks(
            load_eventgpt(event_model, dtype, place),
            [load_draft_head(head, dtype, place) for head in _heads(options)],
            load_video_llava(target, dtype, place),
        )


def _export(options: argparse.Namespace) -> None:
    if options.backend == "tensorrt":
        _build(options)
    elif options.out is None:
        raise EvspecError("Where shall the ONNX files lie? Name a directory by --out.")
    else:
        _write(options)


def _samples(options: argparse.Namespace) -> Mapping[str, Sequence[Sample]]:
    """What the networks are calibrated on, by their names; of float32 and float16 alone."""
    if options.int8 is None:
        return {}
    from evspec_ros.evaluation.calibration import recorded_samples

    if options.precision == "bfloat16":
        raise EvspecError("ONNX Runtime calibrates no bfloat16 graph: give --precision float32 or float16.")
    target, event_model, _ = models(options)
    with messages.status(f"Describing windows of {options.int8} ..."):
        return recorded_samples(options.int8, target, event_model, _heads(options), options.precision)


def _write(options: argparse.Namespace) -> None:
    from evspec_ros.engines.export import check, export, print_exported
    from evspec_ros.engines.int8 import quantise

    samples = _samples(options)
    rows = []
    for network in networks_of(options, options.precision):
        path = options.out / f"{network.name}.onnx"
        if not options.check:
            with messages.status(f"Exporting {network.name} ..."):
                export(network, path, options.precision)
                if samples:
                    quantise(path, samples[network.name])
        with messages.status(f"Checking {path} ..."):
            rows.append(check(path, network, samples[network.name][-1] if samples else None))
    if options.json:
        print_json({"rows": [row.as_dict() for row in rows]})
    else:
        print_exported(rows)


def _build(options: argparse.Namespace) -> None:
    from evspec_ros.engines.building import build_visibly, print_plans
    from evspec_ros.engines.plans import Order, PlanCache
    from evspec_ros.engines.tensorrt_library import require_library
    from evspec_ros.evaluation.engine_check import check_plans, machine, print_checks
    from evspec_ros.networks.memory import GIB

    require_library()  # before anything is loaded
    limit = None if options.memory_limit is None else int(options.memory_limit * GIB)
    samples = _samples(options)
    orders = [
        Order(
            network, options.precision, tuple(options.capabilities), workspace=limit, int8=bool(samples),
            calibration=samples.get(network.name, ()),
        )
        for network in networks_of(options, options.precision)
    ]  # fmt: skip
    cache = PlanCache(options.out)
    rows = build_visibly(orders, cache)
    report: dict[str, Any] = {"rows": [row.as_dict() for row in rows]}
    checks = check_plans(orders, cache) if options.check else []
    if options.check:
        report |= {"machine": machine(), "checks": [row.as_dict() for row in checks]}
    if options.json:
        print_json(report)
        return
    print_plans(rows)
    if options.check:
        print_checks(checks)
