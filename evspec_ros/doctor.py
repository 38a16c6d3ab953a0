"""What this machine has, and which precision of which checkpoints fits where: `evspec doctor`."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from evspec_ros.engines.plans import CachedPlan, PlanCache
from evspec_ros.engines.tensorrt_library import RTX, find_library, obstacle
from evspec_ros.errors import CheckpointError
from evspec_ros.networks.checkpoints import (
    read_draft_head_config,
    read_eventgpt_config,
    read_video_llava_config,
)
from evspec_ros.networks.devices import BANDWIDTHS
from evspec_ros.networks.memory import (
    GIB,
    Checkpoints,
    MemoryMap,
    memory_map,
    published,
)
from evspec_ros.networks.tokenizer import compatibility, load_tokenizer
from evspec_ros.networks.weights import free_bytes
from evspec_ros.ros import shared_memory
from evspec_ros.ros.requirements import CLIENT_LIBRARY

THIS = "this"
_GPU = torch.device("cuda")


@dataclass(frozen=True)
class Machine:
    """Where the networks may run.

    memory, reserve: bytes, the latter for the system, the CUDA context, ROS and cameras; bandwidth: of the
    memory, bytes a second, None where it is not known.
    """

    name: str
    what: str
    device: torch.device
    memory: int
    reserve: int
    bandwidth: float | None

    @property
    def available(self) -> int:
        """Bytes that are left for the networks."""
        return self.memory - self.reserve

    @property
    def precisions(self) -> tuple[str, ...]:
        """From the most exact to the smallest that brings something there."""
        return ("float32", "bfloat16", "int8") if self.device.type == "cpu" else ("float16", "int8", "int4")


MACHINES = {
    name: Machine(name, what, _GPU, memory * GIB, reserve * GIB, BANDWIDTHS[name])
    for name, what, memory, reserve in (
        ("desktop", "a GPU with 24 GB of its own", 24, 2),
        ("orin_agx_64gb", "Jetson AGX Orin, 64 GB shared", 64, 8),
        ("orin_nx_16gb", "Jetson Orin NX, 16 GB shared", 16, 4),
    )
}


@dataclass(frozen=True)
class Found:
    """One piece of software; version: None where it is missing; advice: empty where nothing is to be done."""

    name: str
    version: str | None
    detail: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Fit:
    """A pair of checkpoints on a machine.

    asked: what was asked for; recommended: the most exact that fits, None where none does.
    tokens_per_second: the limit of plain decoding in the recommended precision, where every token reads the
    target's weights and cache once; None where nothing fits or the bandwidth is not known.
    """

    machine: Machine
    asked: MemoryMap
    recommended: MemoryMap | None

    @property
    def fits(self) -> bool:
        """Whether what was asked for fits."""
        return self.asked.total <= self.machine.available

    @property
    def tokens_per_second(self) -> float | None:
        """See the class."""
        if self.recommended is None or self.machine.bandwidth is None:
            return None
        return self.machine.bandwidth / self.recommended.step

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, in bytes."""
        return {
            "machine": self.machine.name,
            "available": self.machine.available,
            "asked": _map_as_dict(self.asked),
            "fits": self.fits,
            "recommended": self.recommended and _map_as_dict(self.recommended),
            "tokens_per_second": self.tokens_per_second,
        }


def software() -> tuple[Found, ...]:
    """What is installed of what the package can use, nothing of it started."""
    return (
        Found("python", platform.python_version(), sys.executable),
        _ros(),
        _dds(),
        _shared_memory(),
        _torch(),
        _tensorrt(),
        _found(
            "onnxruntime",
            "`pip install onnxruntime` for quicker decoding on a CPU",
            lambda module: ", ".join(module.get_available_providers()),
        ),
        _listed("torchao", "`pip install torchao` for the precisions int8 and int4"),
        _listed("transformers", "`pip install transformers`"),
        _found("cv2", "`pip install opencv-python-headless`"),
        _listed("numba", "`pip install numba`"),
    )


def this_machine() -> Machine:
    """This one, with the memory that is free now: its first GPU's, or its own where torch sees no GPU."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "this computer's processor"
    return Machine(THIS, f"{what}, what is free now", device, free_bytes(device) or 0, 0, None)


def read_sizes(target: Path | None, event_model: Path | None, draft_head: Path | None) -> Checkpoints:
    """The configs of checkpoint directories; the published 7B sizes where none is given.

    Raises CheckpointError for a directory that holds no such checkpoint and for others without a target.
    """
    if target is None:
        if event_model or draft_head:
            raise CheckpointError(
                "An event model or a draft head was given without a target; name its directory, too."
            )
        return published()
    return Checkpoints(
        read_video_llava_config(target),
        None if event_model is None else read_eventgpt_config(event_model),
        None if draft_head is None else read_draft_head_config(draft_head),
    )


def judge(checkpoints: Checkpoints, machine: Machine, dtype: str | None, kv: str | None) -> Fit:
    """What was asked for (by default the machine's most exact precision) and what is recommended there."""
    asked = memory_map(checkpoints, dtype or machine.precisions[0], kv or "float16", machine.device)
    candidates = (
        memory_map(checkpoints, precision, cache, machine.device)
        for precision in machine.precisions
        for cache in ("float16", "int8")
    )
    fitting = (found for found in candidates if found.total <= machine.available)
    return Fit(machine, asked, next(fitting, None))


def pair_report(target: Path | None, event_model: Path | None) -> str | None:
    """Whether the tokens of two checkpoints mean the same, in one sentence; None where one is not given."""
    if target is None or event_model is None:
        return None
    return compatibility(load_tokenizer(target), load_tokenizer(event_model)).report


def cached_plans() -> list[CachedPlan]:
    """What is in the engine cache."""
    return PlanCache().entries()


def print_report(
    found: Sequence[Found], verdicts: Sequence[Fit], pair: str | None, plans: Sequence[CachedPlan] = ()
) -> None:
    """Tables of the software, of the memory that was asked for, of what is recommended where and of compiled
    plans; what was found out about a pair.
    """
    console = Console(highlight=False)
    console.print(_software_table(found))
    console.print(_memory_table(verdicts))
    console.print(_machine_table(verdicts))
    if plans:
        console.print(_plan_table(plans))
    if pair is not None:
        console.print(pair)


def report_as_dict(
    found: Sequence[Found], verdicts: Sequence[Fit], pair: str | None, plans: Sequence[CachedPlan] = ()
) -> dict[str, Any]:
    """The same, ready for JSON; memory in bytes."""
    return {
        "pair": pair,
        "software": [asdict(item) for item in found],
        "machines": [verdict.as_dict() for verdict in verdicts],
        "plans": [plan.as_dict() for plan in plans],
    }


def _software_table(found: Sequence[Found]) -> Table:
    table = Table("software", "version", "what there is, what to do", title_justify="left")
    for item in found:
        table.add_row(item.name, item.version or "missing", item.advice or item.detail)
    return table


def _memory_table(verdicts: Sequence[Fit]) -> Table:
    """Parts by machine: what was asked for."""
    table = Table(title="memory, GiB", title_justify="left")
    table.add_column("part")
    for verdict in verdicts:
        asked = verdict.asked
        table.add_column(
            f"{verdict.machine.name}\n{asked.dtype}, KV {asked.kv_dtype}", justify="right", no_wrap=True
        )
    for part in verdicts[0].asked.parts:
        table.add_row(part, *(_gib(verdict.asked.parts[part]) for verdict in verdicts))
    table.add_row("in all", *(_gib(verdict.asked.total) for verdict in verdicts))
    table.add_row("there is", *(_gib(verdict.machine.available) for verdict in verdicts))
    table.add_row("fits", *("yes" if verdict.fits else "no" for verdict in verdicts))
    return table


def _machine_table(verdicts: Sequence[Fit]) -> Table:
    table = Table(title="recommended", title_justify="left")
    for column in ("machine", "memory", "left, GiB", "dtype", "kv_dtype", "needs, GiB", "limit, tokens/s"):
        table.add_column(column, justify="right" if "," in column else "left")
    for verdict in verdicts:
        machine, best, limit = verdict.machine, verdict.recommended, verdict.tokens_per_second
        table.add_row(
            machine.name,
            machine.what,
            _gib(machine.available),
            *(("nothing fits", "", "") if best is None else (best.dtype, best.kv_dtype, _gib(best.total))),
            "" if limit is None else f"{limit:,.0f}",
        )
    return table


def _plan_table(plans: Sequence[CachedPlan]) -> Table:
    table = Table(title=f"compiled plans in {plans[0].path.parent}", title_justify="left")
    for column in ("network", "precision", "by", "for", "MiB", "here"):
        table.add_column(column, justify="right" if column == "MiB" else "left")
    for plan in plans:
        whom = ", ".join(plan.capabilities) + (f" ({plan.gpu})" if plan.gpu else "")
        size, use = f"{plan.size / 2**20:.1f}", plan.obstacle() or "ready"
        table.add_row(plan.network, plan.precision, plan.library, whom, size, use)
    return table


def _map_as_dict(found: MemoryMap) -> dict[str, Any]:
    return {"dtype": found.dtype, "kv_dtype": found.kv_dtype, "parts": found.parts, "total": found.total}


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"


def _ros() -> Found:
    if find_spec("rclpy") is None:
        return Found("rclpy", None, advice=f"for the node: {CLIENT_LIBRARY}")
    version = _distribution("ros-rclpy") or _distribution("rclpy") or "unknown"
    return Found("rclpy", version, f"ROS {os.environ.get('ROS_DISTRO', 'from wheels')}")


def _dds() -> Found:
    """The implementations that the ament index lists, and which one is chosen."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    index = "share/ament_index/resource_index/rmw_typesupport"
    folders = (Path(prefix) / index for prefix in prefixes if prefix)
    listed = {file.name for folder in folders if folder.is_dir() for file in folder.iterdir()}
    there = sorted(listed - {"rmw_implementation"})  # what finds an implementation is none itself
    chosen = os.environ.get("RMW_IMPLEMENTATION", "")
    detail = f"{', '.join(there)}; RMW_IMPLEMENTATION is {chosen or 'not set'}"
    if not there:
        return Found("DDS", None, advice=f"for the node: {CLIENT_LIBRARY}")
    if chosen and chosen not in there:
        return Found("DDS", chosen, detail, f"unset RMW_IMPLEMENTATION or install {chosen}")
    return Found("DDS", chosen or there[0], detail)


def _shared_memory() -> Found:
    """What Fast DDS left behind in it."""
    segments = shared_memory.stale_segments()
    return Found("shared memory", f"{len(segments)} stale", advice=shared_memory.report(segments))


def _torch() -> Found:
    if not torch.cuda.is_available():
        advice = (
            "runs on the CPU: where there is an NVIDIA GPU, install its driver and torch for CUDA "
            "(on a Jetson, JetPack's)"
        )
        return Found("torch", torch.__version__, f"CUDA {torch.version.cuda or 'not built in'}", advice)
    devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    names = ", ".join(f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices)
    return Found("torch", torch.__version__, f"CUDA {torch.version.cuda}: {names}")


def _tensorrt() -> Found:
    """Either library, under one name; whether it can run networks on this machine's GPU, and if not, why."""
    library = find_library()
    if library is None:
        advice = "only needed to compile the drafter for an NVIDIA GPU: `pip install 'evspec_ros[tensorrt]'`"
        return Found("tensorrt", None, advice=f"{advice}; JetPack brings it")
    what = "TensorRT for RTX" if library.__name__ == RTX else "TensorRT"
    why = obstacle()
    running = "runs the drafter on this GPU" if why is None else f"compiles for other machines alone: {why}"
    return Found("tensorrt", str(library.__version__), f"{what}, {running}")


def _found(name: str, advice: str, detail: Callable[[Any], str] = lambda _: "") -> Found:
    """A module that has to be imported to tell its version."""
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError):  # OSError: a library that it needs is missing
        return Found(name, None, advice=advice)
    return Found(name, str(getattr(module, "__version__", "unknown")), detail(module))


def _listed(name: str, advice: str) -> Found:
    """A package whose metadata tell its version, so that it need not be imported."""
    version = _distribution(name)
    return Found(name, version, advice="" if version else advice)


def _distribution(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
