"""Running compiled plans beside torch: `evspec export --backend tensorrt --check`."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from evspec_ros.engines.networks import Network
from evspec_ros.engines.plans import Order, PlanCache, tensorrt_engine
from evspec_ros.engines.protocol import Engine
from evspec_ros.engines.tensorrt_library import gpu, require_library, require_running, shown

_WARM_UPS, _RUNS = 3, 20


@dataclass(frozen=True)
class CheckRow:
    """A network by an engine and by torch: medians of milliseconds, and how far the numbers are apart at the
    most, as a share of the largest magnitude of an output.
    """

    network: str
    engine: str
    precision: str
    difference: float
    ms: float
    torch_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def check_plans(orders: Iterable[Order], cache: PlanCache) -> list[CheckRow]:
    """Run every plan on the first GPU; raises EngineError where TensorRT does not run here."""
    rows = []
    for order in orders:
        network = order.network
        require_running(network.name)
        inputs = {name: tensor.cuda() for name, tensor in network.inputs.items()}
        on_gpu = replace(network, module=network.module.cuda(), inputs=inputs)
        rows.append(compare(on_gpu, tensorrt_engine(on_gpu, cache, int8=order.int8)))
    return rows


@torch.inference_mode()
def compare(network: Network, engine: Engine) -> CheckRow:
    """Run both on the network's example inputs."""
    expected = network.run(network.inputs)
    found = {
        name: torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for name, tensor in expected.items()
    }
    bound = engine.bind(network.inputs, found)
    ms, torch_ms = _median_ms(bound.run), _median_ms(lambda: network.run(network.inputs))
    difference = max(
        float((found[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-6))
        for name, tensor in expected.items()
        if tensor.is_floating_point()
    )
    kind = str(next(network.module.parameters()).dtype).removeprefix("torch.")
    return CheckRow(network.name, engine.describe(), kind, difference, ms, torch_ms)


def machine() -> dict[str, str | None]:
    """What the figures of a report belong to."""
    library, at_hand = require_library(), gpu()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tensorrt": f"{library.__name__} {library.__version__}",
        "gpu": None if at_hand is None else torch.cuda.get_device_name(0),
        "capability": None if at_hand is None else shown(at_hand),
    }


def print_checks(rows: Sequence[CheckRow]) -> None:
    """A table of them, below what they belong to."""
    console = Console(highlight=False)
    console.print(", ".join(f"{name}: {value}" for name, value in machine().items()), soft_wrap=True)
    table = Table(title="plans beside torch", title_justify="left")
    for column in ("network", "precision", "difference", "ms", "torch, ms"):
        table.add_column(column, justify="left" if column in {"network", "precision"} else "right")
    for row in rows:
        figures = f"{row.difference:.2g}", f"{row.ms:.3f}", f"{row.torch_ms:.3f}"
        table.add_row(row.network, row.precision, *figures)
    console.print(table)


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for turn in range(_WARM_UPS + _RUNS):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if turn >= _WARM_UPS:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
