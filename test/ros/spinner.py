"""Waiting for conditions instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 120.0  # generous: the machine may be busy


class Spinner:
    """Spins a few nodes in this thread until something is true."""

    def __init__(self) -> None:
        from rclpy.executors import SingleThreadedExecutor

        self.executor = SingleThreadedExecutor()

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """What condition returned when it was first true; fails, naming `what`, if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
            self.executor.spin_once(timeout_sec=0.05)
        return value

    def close(self) -> None:
        """Destroy the nodes."""
        nodes = self.executor.get_nodes()
        self.executor.shutdown()
        for node in nodes:
            node.destroy_node()
