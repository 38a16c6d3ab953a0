"""Every error that evspec_ros raises on purpose: one sentence that says what was wrong, where, what to do.

And what is kept of an exception that was caught: others come from anywhere, and no thread may end by one.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass


class EvspecError(Exception):
    """Base of all errors a user can act on; the CLI prints its message and exits with status 1."""


class EventDecodingError(EvspecError):
    """An event packet cannot be what it says it is (unknown encoding, odd length, impossible size)."""


class FrameError(EvspecError):
    """An image message or array cannot be turned into RGB."""


class RecordingError(EvspecError):
    """A recording cannot be opened, read or written."""


class CheckpointError(EvspecError):
    """A checkpoint directory is missing, incomplete or of another architecture."""


class GenerationError(EvspecError):
    """A request to generate text cannot be met (prompt too long, impossible sampling parameter)."""


class EngineError(EvspecError):
    """A network cannot be executed in the way, on the device or in the size that was asked for."""


class TrainingError(EvspecError):
    """Training or evaluation cannot start or go on (bad settings, foreign run directory)."""


class CancelledError(EvspecError):
    """Nobody wants any more what was being computed."""


class RosError(EvspecError):
    """ROS, a message package or a parameter is missing or unusable."""


@dataclass(frozen=True)
class Failure:
    """An exception that was caught: what it said, in one line, and for one that nobody raised on purpose the
    traceback ("" otherwise). It holds no reference to what was being computed.
    """

    problem: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What is to be told of it."""
        if isinstance(error, EvspecError):
            return cls(_printable(str(error)), "")
        problem, *_ = traceback.format_exception_only(error)
        return cls(
            _printable(" ".join(problem.split())), _printable("".join(traceback.format_exception(error)))
        )


def _printable(text: str) -> str:
    """As ROS can carry it: an error may quote what is no text."""
    return text.encode("utf-8", "backslashreplace").decode()
