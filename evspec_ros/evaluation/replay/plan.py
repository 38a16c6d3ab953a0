"""How recordings are described: what the node's parameters of the same names say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evspec_ros.choices import AUTO_DRAFTER, WAIT
from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Limits
from evspec_ros.events.window import WindowSize
from evspec_ros.loading import load_describer
from evspec_ros.prompts import DEFAULT_PROMPT
from evspec_ros.sizes import FRAMES_SECONDS, MAX_NEW_TOKENS, WINDOW_MS


@dataclass(frozen=True)
class ReplayPlan:
    """Checkpoint directories ("" where none is read), how is drafted, asked and cut, and on how many threads
    (0: torch's own choice). without_frames: DESCRIBE or WAIT.
    """

    target: str
    event_model: str
    draft_head: str
    drafter: str = AUTO_DRAFTER
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 0
    prompt: str = DEFAULT_PROMPT
    max_new_tokens: int = MAX_NEW_TOKENS
    window_ms: float = WINDOW_MS
    frames_seconds: float = FRAMES_SECONDS
    without_frames: str = WAIT

    @property
    def size(self) -> WindowSize:
        """How much one description looks at."""
        return WindowSize(round(self.window_ms * 1e6))

    @property
    def limits(self) -> Limits:
        """How long a description may be."""
        return Limits(max_new_tokens=self.max_new_tokens)

    def as_dict(self) -> dict[str, Any]:
        """The node's parameters of these names; ready for JSON."""
        return asdict(self)

    def load(self) -> SceneDescriber:
        """A describer, warmed up; raises what `load_describer` does."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        describer = load_describer(
            Path(self.target),
            Path(self.event_model) if self.event_model else None,
            Path(self.draft_head) if self.draft_head else None,
            drafter=self.drafter,
            device=self.device,
            dtype=self.dtype,
        )
        describer.require_room([self.prompt], self.limits)
        describer.warm_up()
        return describer
