"""The processes of one training, as Hugging Face accelerate knows them: one where nothing launched
several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState


def process(device: torch.device | str) -> PartialState:
    """This process among those of `accelerate launch`: its number, how many there are, and waiting for
    all.
    """
    from accelerate import PartialState

    return PartialState(cpu=torch.device(device).type == "cpu")


def own_device(device: torch.device) -> torch.device:
    """Where this process computes: of several GPUs each process has its own."""
    state = process(device)
    return device if state.num_processes == 1 else torch.device(state.device)
