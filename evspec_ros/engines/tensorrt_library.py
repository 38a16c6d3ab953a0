"""Which TensorRT this machine has, for which GPUs it compiles, and what keeps it from running here.

TensorRT for RTX (module `tensorrt_rtx`) is that of desktop GPUs. It compiles for named compute capabilities
and needs no GPU for it. TensorRT itself (module `tensorrt`, JetPack's and that of data centres) compiles for
the GPU at hand alone.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import torch

from evspec_ros.errors import EngineError

RTX, NATIVE = "tensorrt_rtx", "tensorrt"

Capability = tuple[int, int]  # of a GPU: major, minor

RTX_CAPABILITIES: tuple[Capability, ...] = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
OLDEST = (10, 3)  # of the module `tensorrt`; strongly typed networks of half precision need about that
_MISSING = "install it (pip install 'evspec_ros[tensorrt]'; on a Jetson JetPack brings it)"


def parse_capability(text: str) -> Capability:
    """ "8.6" as (8, 6); raises ValueError for what is no compute capability."""
    found = re.fullmatch(r"(\d{1,2})\.(\d)", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no compute capability such as 8.6")
    return int(found[1]), int(found[2])


def shown(*capabilities: Capability) -> str:
    """As people write them: 8.6, 8.9."""
    return ", ".join(f"{major}.{minor}" for major, minor in capabilities)


def gpu() -> Capability | None:
    """Of the first GPU that torch sees."""
    return torch.cuda.get_device_capability(0) if torch.cuda.is_available() else None


def find_library() -> ModuleType | None:
    """The library that suits the GPU at hand, else the other one, else None."""
    at_hand = gpu()
    names = (RTX, NATIVE) if at_hand is None or at_hand in RTX_CAPABILITIES else (NATIVE, RTX)
    for name in names:
        try:
            library = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):  # a package without its native library has its own ways
            continue
        if hasattr(library, "Builder"):
            return library
    return None


def require_library() -> ModuleType:
    """The library; raises EngineError where there is none, or one that is too old."""
    library = find_library()
    if library is None:
        raise EngineError(f"TensorRT is not installed: {_MISSING}, or set another backend.")
    version = tuple(int(part) for part in library.__version__.split(".")[:2])
    if library.__name__ == NATIVE and version < OLDEST:
        raise EngineError(
            f"TensorRT {library.__version__} is too old: engines need {OLDEST[0]}.{OLDEST[1]} (JetPack 6) or "
            "later; set another backend, or update it."
        )
    return library


def obstacle() -> str | None:
    """Why TensorRT cannot run a network on this machine, in a few words; None where it can."""
    try:
        library = require_library()
    except EngineError as error:
        return str(error).rstrip(".")
    at_hand = gpu()
    if at_hand is None:
        return "torch sees no GPU"
    if library.__name__ == RTX and at_hand not in RTX_CAPABILITIES:
        return (
            f"TensorRT for RTX does not run on {torch.cuda.get_device_name(0)} (compute capability "
            f"{shown(at_hand)}), only on {shown(*RTX_CAPABILITIES)}"
        )
    return None


def require_running(network: str) -> None:
    """Raise EngineError where TensorRT cannot run a network on this machine."""
    if (problem := obstacle()) is not None:
        raise EngineError(f"TensorRT cannot run {network} here: {problem}; set another backend.")
