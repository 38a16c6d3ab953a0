"""The node outlives what nobody thought of: it is logged with its traceback and told in /diagnostics, and the
next message, window or call is served.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

from rclpy.context import Context

from evspec_ros.errors import Failure
from evspec_ros.ros.diagnostics import DescriptionCounts

LOG_PERIOD_S = 5.0  # a problem that repeats is logged this often; the counts in /diagnostics miss none

Instead = Callable[..., Any]  # the failure and the callback's arguments -> what the callback returns


def _nothing(*_: object) -> None:
    """What most callbacks return."""


class Guard:
    """Callbacks of a node, none of which raises anything while the node's context lives."""

    def __init__(self, logger: Any, context: Context, counts: DescriptionCounts) -> None:
        self._logger = logger
        self._context = context
        self._counts = counts
        self._logged: dict[tuple[str, str], float] = {}  # monotonic seconds of the last one

    def __call__(self, what: str, callback: Callable[..., Any], instead: Instead = _nothing) -> Any:
        """The callback, guarded. what: a sentence of what could not be done where it fails."""

        def failed(error: Exception, *arguments: Any) -> Any:
            if not self._context.ok():  # a signal came: what fails then is expected to
                raise error
            failure = Failure.of(error)
            self._counts.note(self.log(what, failure))
            return instead(failure, *arguments)

        @functools.wraps(callback)
        def call(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as error:  # noqa: BLE001 - it is logged and told, and would end the executor
                return failed(error, *arguments)

        @functools.wraps(callback)
        async def call_later(*arguments: Any) -> Any:
            try:
                return await callback(*arguments)
            except Exception as error:  # noqa: BLE001 - likewise
                return failed(error, *arguments)

        return call_later if inspect.iscoroutinefunction(callback) else call

    def log(self, what: str, failure: Failure) -> str:
        """Log a failure, a repeated one once in LOG_PERIOD_S; the sentence of it."""
        sentence = f"{what}: {failure.problem}"
        now, kind = time.monotonic(), (what, failure.problem.partition(":")[0])
        if now - self._logged.get(kind, -LOG_PERIOD_S) >= LOG_PERIOD_S:
            self._logged[kind] = now
            self._logger.error(f"{sentence}\n{failure.traceback}".rstrip())
        return sentence
