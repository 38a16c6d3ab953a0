"""The node of `evspec soak`: the package's own, with faults in its process as they are asked for."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rclpy.parameter import Parameter
from std_msgs.msg import String

from evspec_ros.cancellation import check
from evspec_ros.errors import Failure
from evspec_ros.ros import machine, main, node
from evspec_ros.ros.trials.soak_faults import FAULT_TOPIC, FAULTS

LOOK_S = 0.01
SHORTAGES = 2  # allocations that fail in a row: smaller limits, then no drafts


class FaultyNode(node.EvspecNode):
    """The node, and what goes wrong in it."""

    def __init__(self, **node_options: Any) -> None:
        super().__init__(**node_options)
        self._undo: list[Callable[[], object]] = []
        self.create_subscription(String, FAULT_TOPIC, self._on_fault, 10)

    def _on_fault(self, message: String) -> None:
        while self._undo:
            self._undo.pop()()
        if fault := FAULTS.get(message.data):
            before = [self.get_parameter(name) for name in fault.parameters]
            self.set_parameters([Parameter(name, value=value) for name, value in fault.parameters.items()])
            self._undo.append(lambda: self.set_parameters(before))
            if inject := getattr(self, f"_{message.data}", None):
                inject()

    def _out_of_memory(self) -> None:
        assert self._describer is not None
        target, left = self._describer._target, [None] * SHORTAGES  # noqa: SLF001 - where it happens
        prefill = target.prefill

        def short(*arguments: Any) -> Any:
            if left:
                left.pop()
                raise torch.OutOfMemoryError("CUDA out of memory (emulated).")
            return prefill(*arguments)

        self._replace(target, "prefill", short)

    def _drafter_crashes(self) -> None:
        def crash(*_: object) -> None:
            raise RuntimeError("emulated crash of the drafter")

        self._replace(self._drafter, "propose", crash)

    def _drafter_stalls(self) -> None:
        drafter = self._drafter
        propose = drafter.propose
        stalled: list[bool] = []

        def stall(*arguments: Any) -> Any:
            if not stalled:
                stalled.append(True)
                while True:  # as a network would, which looks between its layers
                    check()
                    time.sleep(LOOK_S)
            return propose(*arguments)

        self._replace(drafter, "propose", stall)

    def _disk_full(self) -> None:
        """No file of this process can grow any more, its logs among them."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        self._undo.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
        self._replace(machine, "free_mb", lambda _: 0.0)

    @property
    def _drafter(self) -> Any:
        assert self._describer is not None
        return self._describer._drafters.get(1)[0]  # noqa: SLF001 - likewise

    def _replace(self, owner: Any, name: str, other: Callable[..., Any]) -> None:
        well = getattr(owner, name)
        setattr(owner, name, other)
        self._undo.append(lambda: setattr(owner, name, well))


def run() -> int:
    """Spin as the node's executable does."""
    node.EvspecNode = FaultyNode  # type: ignore[misc]  # what the executable makes
    return main.main()


if __name__ == "__main__":
    try:
        sys.exit(run())
    except Exception as error:  # noqa: BLE001 - the end of the process is what the soak counts
        sys.exit(Failure.of(error).problem)
