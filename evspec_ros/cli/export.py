"""`evspec export`: the drafter's networks as files for engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evspec_ros.choices import EXPORT_PRECISIONS
from evspec_ros.cli.options import add_pair, add_verb, messages, models, own_checkpoint, print_json

if TYPE_CHECKING:
    from evspec_ros.engines.networks import Network

_OWN_HEADS = ("tiny_eagle3", "tiny_block")  # those that `combined` drafts with


def add_export(verbs: Any) -> None:
    """Add `export`."""
    export = add_verb(verbs, "export", _export, "write the drafter's networks as ONNX files and check them")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files lie")
    export.add_argument(
        "--check", action="store_true", help="write nothing, compare the files in DIR with the models"
    )
    export.add_argument(
        "--precision",
        choices=EXPORT_PRECISIONS,
        default=EXPORT_PRECISIONS[0],
        help="of weights and numbers in the graphs; default: %(default)s",
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


def networks_of(options: argparse.Namespace, precision: str, device: str = "cpu") -> list[Network]:
    """The networks of the checkpoints that `add_networks` names."""
    from evspec_ros.engines.export import EXPORT_DTYPES
    from evspec_ros.engines.networks import drafter_networks
    from evspec_ros.networks.checkpoints import load_draft_head, load_eventgpt, load_video_llava
    from evspec_ros.networks.devices import compute_device

    dtype, place = EXPORT_DTYPES[precision], compute_device(device)
    target, event_model, _ = models(options)
    heads = options.heads or [own_checkpoint(name) for name in _OWN_HEADS]
    with messages.status("Loading the checkpoints ..."):
        return drafter_networks(
            load_eventgpt(event_model, dtype, place),
            [load_draft_head(head, dtype, place) for head in heads],
            load_video_llava(target, dtype, place),
        )


def _export(options: argparse.Namespace) -> None:
    from evspec_ros.engines.export import check, export, print_exported

    rows = []
    for network in networks_of(options, options.precision):
        path = options.out / f"{network.name}.onnx"
        if not options.check:
            with messages.status(f"Exporting {network.name} ..."):
                export(network, path, options.precision)
        with messages.status(f"Checking {path} ..."):
            rows.append(check(path, network))
    if options.json:
        print_json({"rows": [row.as_dict() for row in rows]})
    else:
        print_exported(rows)
