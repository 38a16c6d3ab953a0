"""Building plans ahead of time, with what it took: `evspec export --backend tensorrt`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from evspec_ros.engines.plans import Order, PlanCache

MIB = 2**20


@dataclass(frozen=True)
class PlanRow:
    """One plan: for whom, and what building it took; seconds and memory (MiB, beside what the process held
    before) are None for a plan that lay in the cache already, path where the cache cannot be written.
    """

    network: str
    precision: str
    capabilities: tuple[str, ...]
    build_s: float | None
    memory_mb: float | None
    plan_mb: float
    path: str | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def build_visibly(orders: Iterable[Order], cache: PlanCache) -> list[PlanRow]:
    """Every plan, with progress and the time left on stderr."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    rows = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for order in orders:
            task = progress.add_task(f"building {order.network.name}", total=1.0)
            found = cache.get(order, partial(_tell, progress, task))
            progress.update(task, completed=1.0)
            rows.append(
                PlanRow(
                    network=order.network.name,
                    precision=f"{order.precision}, int8" if order.int8 else order.precision,
                    capabilities=found.capabilities,
                    build_s=found.build_s,
                    memory_mb=None if found.build_bytes is None else found.build_bytes / MIB,
                    plan_mb=len(found.plan) / MIB,
                    path=None if found.path is None else str(found.path),
                )
            )
    return rows


def _tell(progress: Progress, task: TaskID, share: float) -> None:
    progress.update(task, completed=share)


def print_plans(rows: Iterable[PlanRow], title: str = "plans") -> None:
    """A table of them."""
    table = Table(title=title, title_justify="left")
    for column in ("network", "precision", "for", "built, s", "memory, MiB", "plan, MiB"):
        table.add_column(column, justify="right" if "," in column else "left")
    for row in rows:
        table.add_row(
            row.network,
            row.precision,
            ", ".join(row.capabilities),
            "there already" if row.build_s is None else f"{row.build_s:.1f}",
            "" if row.memory_mb is None else f"{row.memory_mb:,.0f}",
            f"{row.plan_mb:,.1f}",
        )
    Console(highlight=False).print(table)
