"""The faults of `evspec soak`, and the topic on which they begin and end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

FAULT_TOPIC = "/soak/fault"  # std_msgs/String: the fault's name while it lasts, then ""


@dataclass(frozen=True)
class Fault:
    """seconds: how long it lasts; told: what /diagnostics says then, as a pattern; parameters: of the node
    meanwhile; process: which one is ended, the fault being its end; degraded: what a result says meanwhile.
    """

    seconds: float
    told: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    process: str = ""
    degraded: str = ""

    def is_told(self, status: str) -> bool:
        """Whether a status of /diagnostics, its name and its message, tells of the fault."""
        return re.search(self.told, status) is not None


_SILENT = "Nothing (new was described|was received)"

FAULTS: dict[str, Fault] = {
    "no_events": Fault(3.0, _SILENT, {"without_events": "wait"}),
    "no_frames": Fault(3.0, _SILENT, {"without_frames": "wait"}),
    "frames_only": Fault(4.0, _SILENT, {"without_events": "describe"}, degraded="no events"),
    "events_only": Fault(4.0, _SILENT, {"without_frames": "describe"}, degraded="no frames"),
    "malformed_packets": Fault(2.0, "^(events|frames): (?!Nothing|receiving)"),
    "resolution_changes": Fault(2.0, "in the middle of a stream|began anew"),
    "time_jumps": Fault(2.0, "in the middle of a stream|began anew|stamped|old when it was described"),
    "out_of_memory": Fault(1.0, "out of memory"),
    "drafter_crashes": Fault(1.0, "without its drafter .*emulated"),
    "drafter_stalls": Fault(3.0, "without its drafter .*stalled"),
    "disk_full": Fault(2.0, "The disk of .* is full"),
    "dds_restart": Fault(2.5, _SILENT + "|began anew", process="camera"),
    "sigterm": Fault(0.0, "the first window|unconfigured", process="node"),
}
