"""What the package itself logs, in the node's own log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PACKAGE = logging.getLogger("evspec_ros")


@contextmanager
def forwarded(log: Any) -> Iterator[None]:
    """While it lasts, what this thread logs goes to `log`, a node's logger: progress of long work, and what
    was done in another way than asked for. Other nodes of the process have threads of their own.
    """
    handler = _NodeHandler(log, threading.get_ident())
    _PACKAGE.setLevel(logging.INFO)  # for good: another node may be at it, and nobody else prints those
    _PACKAGE.addHandler(handler)
    try:
        yield
    finally:
        _PACKAGE.removeHandler(handler)


class _NodeHandler(logging.Handler):
    def __init__(self, log: Any, thread: int) -> None:
        super().__init__(logging.INFO)
        self._log, self._thread = log, thread

    def emit(self, record: logging.LogRecord) -> None:
        """As a message of the node's, of the nearest severity."""
        if record.thread != self._thread:
            return
        if record.levelno >= logging.ERROR:
            self._log.error(record.getMessage())
        elif record.levelno >= logging.WARNING:
            self._log.warning(record.getMessage())
        else:
            self._log.info(record.getMessage())
