"""Where networks compute."""

from __future__ import annotations

import re

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
