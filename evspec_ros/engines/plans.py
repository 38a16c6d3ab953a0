"""The engine cache: plans that TensorRT compiled, kept for the next start and for other machines.

A plan lies beside a page of JSON that says what it was compiled from, by what and for whom, and its checksum.
It is run only where all of that is so; a stale, foreign or damaged one is compiled anew. Both are written
under another name first, and who compiles holds a lock, for which others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from evspec_ros.engines.int8 import Sample, quantise
from evspec_ros.engines.networks import EXPORT_DTYPES, Network
from evspec_ros.engines.tensorrt_library import (
    RTX,
    Capability,
    find_library,
    gpu,
    require_running,
    shown,
)
from evspec_ros.errors import EngineError

if TYPE_CHECKING:
    from evspec_ros.engines.tensorrt import Plan, Recipe, TensorRtEngine

logger = logging.getLogger(__name__)

_ROOMS = ("engines", "networks")  # whose code decides what a graph is
_ENTRIES = {
    *("network", "digest", "precision", "int8", "profiles", "refittable", "workspace", "library", "gpu"),
    *("capabilities", "sha256", "size"),
}


@dataclass(frozen=True, eq=False)
class Order:
    """A plan that is wanted: see `tensorrt.Recipe`. A refittable one may hold other weights than the
    network's: whoever takes it from the cache exchanges them (`refit`).

    int8: whether its products are computed so; calibration: what scales them, needed to compile it alone.
    """

    network: Network
    precision: str = "float16"
    capabilities: tuple[Capability, ...] = ()
    refittable: bool = False
    workspace: int | None = None
    int8: bool = False
    calibration: Sequence[Sample] = ()


@dataclass(frozen=True, eq=False)
class Delivered:
    """A plan, the GPUs that it is for, where it lies (None where the cache cannot be written), and what
    compiling it took: seconds and bytes of memory at the most, both None where it lay there already.
    """

    plan: Plan
    capabilities: tuple[str, ...]
    path: Path | None
    build_s: float | None
    build_bytes: int | None


@dataclass(frozen=True)
class CachedPlan:
    """One plan of the cache; library: which compiled it; gpu: the only one it is for, empty for all of its
    capabilities; digest: of graph and weights; whole: whether it is as long as it was written.
    """

    path: Path
    network: str
    precision: str
    int8: bool
    library: str
    gpu: str
    capabilities: tuple[str, ...]
    refittable: bool
    size: int
    digest: str
    whole: bool

    def obstacle(self) -> str | None:
        """Why it is of no use on this machine, in a few words."""
        library, at_hand = find_library(), gpu()
        if not self.whole:
            return "damaged; it will be built again"
        if library is None or self.library != f"{library.__name__} {library.__version__}":
            return "for another TensorRT"
        if at_hand is None:
            return "there is no GPU"
        if shown(at_hand) not in self.capabilities or self.gpu not in {"", torch.cuda.get_device_name(0)}:
            return "for another GPU"
        return None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "path": str(self.path), "obstacle": self.obstacle()}


def plan_directory() -> Path:
    """Where plans are kept unless another place is named: below $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evspec_ros" / "plans"


class PlanCache:
    """The plans in one directory."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or plan_directory()

    def entries(self) -> list[CachedPlan]:
        """Every plan that a page tells of."""
        found = []
        for page in sorted(self.directory.glob("*.json")) if self.directory.is_dir() else ():
            about, plan = _read(page), page.with_suffix(".plan")
            if about is not None and plan.is_file():
                names = ("network", "precision", "int8", "library", "gpu", "refittable", "size", "digest")
                known = {name: about[name] for name in names}
                whole = plan.stat().st_size == about["size"]
                found.append(
                    CachedPlan(plan, capabilities=tuple(about["capabilities"]), whole=whole, **known)
                )
        return found

    def get(self, order: Order, report: Callable[[float], None] = lambda _: None) -> Delivered:
        """The plan, from the cache or compiled now; report: told which share of the work is done.

        A cache that cannot be written is done without, with a warning. Raises EngineError where TensorRT is
        missing, where it cannot compile the network, and for int8 that was neither compiled nor calibrated.
        """
        from evspec_ros.engines.tensorrt import WORKSPACE, Recipe, library, required_capabilities

        workspace = order.workspace or WORKSPACE
        recipe = Recipe(Path(), order.network.profiles, order.capabilities, order.refittable, workspace)
        capabilities = required_capabilities(recipe)
        recipe = replace(recipe, capabilities=capabilities)
        about: dict[str, Any] = {
            "network": order.network.name,
            "digest": digest(order.network, order.precision, weights=not order.refittable),
            "precision": order.precision,
            "int8": order.int8,
            "profiles": json.loads(json.dumps(order.network.profiles)),
            "refittable": order.refittable,
            "workspace": workspace,
            "library": library(),
            "gpu": "" if library().startswith(RTX) else torch.cuda.get_device_name(0),
        }
        place = self.directory / f"{order.network.name}-{_hash(about, capabilities)[:16]}.plan"
        if (found := self._find(about, capabilities)) is not None:
            return found
        if order.int8 and not order.calibration:
            raise EngineError(
                f"There is no int8 plan of {order.network.name} for these weights and this GPU in "
                f"{self.directory}: compile it (evspec export --backend tensorrt --precision "
                f"{order.precision} --int8 RECORDING), or choose drafter_backend tensorrt."
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = place.with_suffix(".lock").open("w")
        except OSError as error:
            self._warn(error, order.network)
            return _compiled(order, recipe, None, report)
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, by a killed process, too
            if (
                found := self._find(about, capabilities)
            ) is not None:  # another process compiled it meanwhile
                return found
            built = _compiled(order, recipe, self.directory, report)
            try:
                _store(place, {**about, "capabilities": list(map(shown, capabilities))}, built.plan)
            except OSError as error:
                self._warn(error, order.network)
                return built
            return replace(built, path=place)

    def _find(self, about: Mapping[str, Any], capabilities: Sequence[Capability]) -> Delivered | None:
        """A plan that is for these capabilities among others, once it is known to be what was written."""
        for page in sorted(self.directory.glob(f"{about['network']}-*.json")):
            told, path = _read(page), page.with_suffix(".plan")
            if told is None or any(told[name] != value for name, value in about.items()):
                continue
            if not {*map(shown, capabilities)} <= {*told["capabilities"]}:
                continue
            try:
                plan = path.read_bytes()
            except OSError:
                continue
            if hashlib.sha256(plan).hexdigest() == told["sha256"]:
                return Delivered(plan, tuple(told["capabilities"]), path, None, None)
            logger.warning("%s is not what was written there; it is built again.", path)
        return None

    def _warn(self, error: OSError, network: Network) -> None:
        logger.warning(
            "The engine cache %s cannot be written (%s), so %s is built again at the next start; give "
            "another directory or make room.",
            self.directory,
            error.strerror or error,
            network.name,
        )


def tensorrt_engine(
    network: Network,
    cache: PlanCache | None = None,
    report: Callable[[float], None] = lambda _: None,
    *,
    refittable: bool = False,
    int8: bool = False,
) -> TensorRtEngine:
    """A network on the GPU at hand, in the precision of its weights; compiled now where no plan is kept.

    refittable: whether its weights will change (`refit`); int8: as in Order. Raises EngineError where
    TensorRT is missing or cannot run it here.
    """
    require_running(network.name)
    from evspec_ros.engines.tensorrt import TensorRtEngine

    order = Order(network, precision_of(network), refittable=refittable, int8=int8)
    found = (cache or PlanCache()).get(order, report)
    engine = TensorRtEngine(found.plan, network.name)
    if refittable and found.build_s is None:
        refit(engine, network)
    return engine


def refit(engine: TensorRtEngine, network: Network) -> None:
    """Put a network's weights into an engine that was compiled of the same network with others; whatever was
    bound before has to be bound anew. Raises EngineError where the engine does not take them.
    """
    from evspec_ros.engines.export import export  # which imports onnx

    with TemporaryDirectory() as folder:
        graph = Path(folder) / f"{network.name}.onnx"
        export(network, graph, precision_of(network))
        engine.refit(graph)


def precision_of(network: Network) -> str:
    """That of its weights, by its name."""
    dtype = next(network.module.parameters()).dtype
    return next(name for name, known in EXPORT_DTYPES.items() if known == dtype)


def digest(network: Network, precision: str, *, weights: bool = True) -> str:
    """Of what a graph is made of: the code that writes it, the shapes it is written for, and, unless they
    will be exchanged, the weights in the precision that it is written in.
    """
    found = hashlib.sha256(_code())
    shapes = {
        name: (str(tensor.shape), tensor.is_floating_point()) for name, tensor in network.inputs.items()
    }
    found.update(json.dumps([network.name, network.outputs, shapes, _keys(network.dynamic)]).encode())
    for name, tensor in (*network.module.named_parameters(), *network.module.named_buffers()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        if weights:
            typed = tensor.to(EXPORT_DTYPES[precision]) if tensor.is_floating_point() else tensor
            found.update(typed.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@cache
def _code() -> bytes:
    """Of the rooms that decide what a graph is, and of torch, whose exporter writes it."""
    found = hashlib.sha256(torch.__version__.encode())
    package = Path(__file__).parents[1]
    for file in sorted(file for room in _ROOMS for file in (package / room).glob("*.py")):
        found.update(file.read_bytes())
    return found.digest()


def _keys(dynamic: Mapping[str, Mapping[int, str]]) -> dict[str, list[tuple[int, str]]]:
    return {name: sorted(axes.items()) for name, axes in dynamic.items()}


def _hash(about: Mapping[str, Any], capabilities: Sequence[Capability]) -> str:
    return hashlib.sha256(json.dumps([about, capabilities], sort_keys=True).encode()).hexdigest()


def _compiled(
    order: Order, recipe: Recipe, directory: Path | None, report: Callable[[float], None]
) -> Delivered:
    """The graph is written below the directory, which has room for large ones, and removed again."""
    from evspec_ros.engines.export import export  # which imports onnx
    from evspec_ros.engines.tensorrt import build

    with TemporaryDirectory(dir=directory, prefix=".graph") as folder:
        graph = Path(folder) / f"{order.network.name}.onnx"
        export(order.network, graph, order.precision)
        if order.int8:
            quantise(graph, order.calibration)
        before, start = _begin_peak(), time.perf_counter()
        plan = build(replace(recipe, graph=graph), report)
        seconds = time.perf_counter() - start
    peak = _resident("VmHWM")
    taken = None if before is None or peak is None else peak - before
    return Delivered(plan, tuple(map(shown, recipe.capabilities)), None, seconds, taken)


def _store(place: Path, about: Mapping[str, Any], plan: Plan) -> None:
    """The plan first, its page last: one without the other is no plan."""
    page = {**about, "sha256": hashlib.sha256(plan).hexdigest(), "size": len(plan)}
    for path, content in (
        (place, plan),
        (place.with_suffix(".json"), (json.dumps(page, indent=1) + "\n").encode()),
    ):
        unfinished = path.with_name(f"{path.name}.part")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _read(page: Path) -> dict[str, Any] | None:
    """A page with all its entries; None for another file."""
    try:
        told = json.loads(page.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and told.keys() >= _ENTRIES else None


def _begin_peak() -> int | None:
    """Have the system measure the process's largest memory from now on; bytes that it takes now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]
    return 1024 * kibibytes[0] if kibibytes else None
