"""The node of `evspec bench node`: the package's own, with watches around what it does besides the networks.

After each description it prints one JSON object, whose keys are those of `node_speed.Told`.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from evspec_ros.description import EVENT_PREPROCESS, PREPROCESS, RENDER
from evspec_ros.ros import main, node


class Watch:
    """Keeps what calls take, milliseconds, those alone that begin while `counts` says so."""

    def __init__(self, counts: Callable[[], bool] = lambda: True) -> None:
        self._counts = counts
        self._taken_ms: list[float] = []

    def put_around(self, owner: Any, name: str) -> None:
        """Measure every later call of this method of the object."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def measured(*arguments: Any, **options: Any) -> Any:
            if not self._counts():
                return method(*arguments, **options)
            began = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self._taken_ms.append(1000 * (time.perf_counter() - began))

        setattr(owner, name, measured)

    def read(self) -> list[float]:
        """What was measured since the last time."""
        taken, self._taken_ms = self._taken_ms, []
        return taken


class MeasuredNode(node.EvspecNode):
    """The node, measured."""

    def __init__(self, **node_options: Any) -> None:
        super().__init__(**node_options)
        self._describing, self._networks, self._partials, self._publishing = (Watch() for _ in range(4))
        self._event_calls = Watch(lambda: self._worker.begun_at is not None)
        self._event_calls.put_around(self._inputs, "_on_events")
        self._partials.put_around(self._worker, "_on_text")
        self._publishing.put_around(self._worker, "_publish")
        self._describing.put_around(self._worker, "try_to_describe")
        self._describe = self._worker.try_to_describe
        setattr(self._worker, "try_to_describe", self._describe_and_tell)  # noqa: B010 - as a Watch does

    def _configure(self) -> None:
        super()._configure()
        self._networks.put_around(self._describer, "describe_all")

    def _describe_and_tell(self) -> tuple[str, bool]:
        said, well = self._describe()
        watches = self._describing, self._networks, self._partials, self._publishing
        whole_ms, networks_ms, partials_ms, publish_ms = (sum(watch.read()) for watch in watches)
        if well and (description := self._counts.last) is not None:
            stages = description.latency_ms
            told = {
                "at_s": time.monotonic(),
                "overhead_ms": whole_ms - networks_ms + partials_ms,
                "publish_ms": publish_ms,
                "pictures_ms": sum(stages[name] for name in (PREPROCESS, RENDER, EVENT_PREPROCESS)),
                "callbacks_ms": self._event_calls.read(),
            }
            print(json.dumps(told), flush=True)
        return said, well


def run() -> int:
    """Spin as the node's executable does."""
    node.EvspecNode = MeasuredNode  # type: ignore[misc]  # what the executable makes
    return main.main()


if __name__ == "__main__":
    sys.exit(run())
