"""What `evspec bench learning` replays; importable without torch, for --help."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LearningPlan:
    """How many windows of how many scenes are described, and by how many starts of the describer."""

    scenes: int = 300
    windows: int = 2
    starts: int = 2
