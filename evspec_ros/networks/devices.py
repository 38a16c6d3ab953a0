"""Where networks compute."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from evspec_ros.errors import CheckpointError


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


BANDWIDTHS = {  # of the memory, bytes a second, as the makers tell
    "desktop": 936e9,
    "orin_agx_64gb": 204.8e9,
    "orin_nx_16gb": 102.4e9,
}


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
