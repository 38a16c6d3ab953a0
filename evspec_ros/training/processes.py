"""The processes of one training, as Hugging Face accelerate knows them: one where nothing launched
several; and the workers that make scenes for each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import parent_process
from threading import Thread
from typing import TYPE_CHECKING

import torch

from evspec_ros.errors import TrainingError

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


def end_with_parent() -> None:
    """What a pool's worker begins with: it would wait for work forever where the one that gave it was killed,
    or go on writing a file that the next one has begun.
    """
    Thread(target=_wait_for_the_end, name="parent", daemon=True).start()


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Raises TrainingError where a pool's worker was ended from outside."""
    try:
        yield
    except BrokenProcessPool as error:
        raise TrainingError(
            "A process that makes scenes was ended from outside, perhaps for lack of memory; free some, then "
            "go on with the same command."
        ) from error


def _wait_for_the_end() -> None:
    parent = parent_process()
    assert parent is not None, "no worker"
    parent.join()
    os._exit(1)
