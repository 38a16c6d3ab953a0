"""`evspec bench gpu`: the work is done in `evaluation.gpu_speed`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evspec_ros.cli.options import (
    DEVICE_HELP,
    add_verb,
    count,
    messages,
    own_checkpoint,
    positive,
    print_json,
)


def add_gpu_bench(benches: Any) -> None:
    """Add `gpu` to what is measured."""
    gpu = add_verb(
        benches,
        "gpu",
        _bench_gpu,
        "measure all that a GPU's speed is judged by, row by row, beside the goals",
    )
    gpu.add_argument("--device", default="cuda", help=DEVICE_HELP)
    gpu.add_argument(
        "--shape", choices=("7b", "tiny"), default="7b", help="of the random weights; default: %(default)s"
    )
    gpu.add_argument(
        "--minutes",
        type=positive,
        default=5.0,
        help="a row that may take longer is left out; default: %(default)s",
    )
    gpu.add_argument(
        "--write",
        type=Path,
        default=Path("runs/gpu.jsonl"),
        help="a line for each row that was measured; a later call measures the others; default: %(default)s",
    )
    gpu.add_argument(
        "--windows", type=count, default=20, help="texts compared with the CPU's; default: %(default)s"
    )
    gpu.add_argument("--repetitions", type=count, default=20, help="default: %(default)s")


def _bench_gpu(options: argparse.Namespace) -> None:
    from evspec_ros.evaluation.gpu_figures import print_figures
    from evspec_ros.evaluation.gpu_speed import GpuBench, bench_gpu

    bench = GpuBench(
        own_checkpoint("tiny_video_llava").parent,
        options.device,
        options.shape,
        options.windows,
        options.repetitions,
    )
    report = bench_gpu(bench, options.write, options.minutes, lambda row: messages.print(f"{row} ..."))
    if options.json:
        print_json(report.as_dict())
    else:
        print_figures(report)
