"""Every error that evspec_ros raises on purpose: one sentence that says what was wrong, where, what to do."""


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


class RosError(EvspecError):
    """ROS, a message package or a parameter is missing or unusable."""
