"""Where networks compute."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evspec_ros.errors import CheckpointError

BANDWIDTHS = {  # of the memory, bytes a second, as the makers tell
    "desktop": 936e9,
    "orin_agx_64gb": 204.8e9,
    "orin_nx_16gb": 102.4e9,
}


def compute_device(name: str) -> torch.device:
    """cpu, cuda or cuda:N, where there is such a thing; raises CheckpointError for all else."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise CheckpointError(f"There is no device {name!r} for the networks; choose cpu, cuda or cuda:N.")
    if name == "cpu":
        return torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise CheckpointError(
            f"The device {name} was asked for and torch sees no GPU; choose cpu or install torch for CUDA."
        )
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        raise CheckpointError(
            f"The device {name} was asked for and torch sees GPUs up to cuda:{count - 1}; choose one of them."
        )
    return torch.device(name)


def uploaded(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting for it; themselves where it is the host."""
    if device.type == "cuda" and not values.is_cuda:
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def fetched(*tensors: Tensor) -> list[NDArray[Any]]:
    """Tensors of one device on the host, however many they are after one wait for all."""
    if not any(tensor.is_cuda for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    packed = torch.cat([tensor.flatten().contiguous().view(torch.uint8) for tensor in tensors])
    together = packed.cpu().numpy()
    ends = np.cumsum([tensor.nbytes for tensor in tensors])
    parts = np.split(together, ends[:-1])
    kinds = [torch.empty(0, dtype=tensor.dtype).numpy().dtype for tensor in tensors]
    return [
        part.copy().view(kind).reshape(tuple(tensor.shape))
        for part, kind, tensor in zip(parts, kinds, tensors, strict=True)
    ]


def machine(device: torch.device) -> str:
    """What computes there, for reports: the GPU, or the processor with how many threads torch has."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, threads: {torch.get_num_threads()}"


def processor() -> str:
    """Its name where Linux tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
