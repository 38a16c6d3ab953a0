"""`evspec bench node`: the work is done in `ros.node_speed`."""

from __future__ import annotations

import argparse
from typing import Any

from evspec_ros.cli.options import add_verb, messages, positive, print_json


def add_node_bench(benches: Any) -> None:
    """Add `node` to what is measured."""
    bench = add_verb(
        benches, "node", _bench_node, "measure what the node costs besides its networks, beside the goals"
    )
    bench.add_argument(
        "--seconds",
        type=positive,
        default=20.0,
        help="of a moving scene, of a still one, and of that with trigger activity; default: %(default)s",
    )


def _bench_node(options: argparse.Namespace) -> None:
    from evspec_ros.ros.requirements import require_ros

    require_ros()
    from evspec_ros.ros.trials.node_speed import measure_speed, print_speed

    with messages.status("Playing scenes to the node ..."):
        speed = measure_speed(options.seconds)
    if options.json:
        print_json(speed.as_dict())
    else:
        print_speed(speed)
