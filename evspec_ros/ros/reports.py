"""What the node says of itself on /diagnostics, once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node

from evspec_ros.describer import SceneDescriber
from evspec_ros.engines.plans import plan_directory
from evspec_ros.files import state_directory
from evspec_ros.networks.devices import compute_device
from evspec_ros.networks.quantisation import compute_dtype
from evspec_ros.ros.degrading import last_arrivals
from evspec_ros.ros.diagnostics import ACTIVE, INACTIVE, UNCONFIGURED, DescriptionCounts, Health
from evspec_ros.ros.inputs import Inputs
from evspec_ros.ros.live_settings import LiveSettings
from evspec_ros.ros.machine import log_folder, machine_health
from evspec_ros.ros.worker import Worker

LONG_S = 1.0  # a description that takes longer is told as the reason for a pause


class Reports:
    """Judges descriptions and cameras, and publishes the judgement."""

    def __init__(
        self,
        node: Node,
        settings: LiveSettings,
        inputs: Inputs,
        worker: Worker,
        counts: DescriptionCounts,
        describer: Callable[[], SceneDescriber | None],
    ) -> None:
        """describer: what is loaded."""
        self._node = node
        self._settings = settings
        self._inputs = inputs
        self._worker = worker
        self._counts = counts
        self._describer = describer
        self.problem = ""  # why the last transition failed
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def publish(self) -> None:
        """One report."""
        healths = [self.descriptions(), self._machine()]
        if (describer := self._describer()) is not None:
            healths += [self._stages(), self._decoding(describer)]
        if self._worker.running:
            healths += self._inputs.health()
        name = self._node.get_fully_qualified_name()
        message = DiagnosticArray(status=[health.as_message(name) for health in healths])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _machine(self) -> Health:
        settings = self._settings.current
        heads = Path(settings.draft_head_dir) if settings.draft_head_dir else state_directory()
        return machine_health(settings.device, (log_folder(), heads, plan_directory()))

    def _stages(self) -> Health:
        """How long the stages of the last descriptions took."""
        values = self._counts.recent_stages()
        return Health("stages", DiagnosticStatus.OK, "percentiles of the last descriptions", values)

    def _decoding(self, describer: SceneDescriber) -> Health:
        """What target and drafter run on, and what drafting brings."""
        settings = self._settings.current
        computed = compute_dtype(settings.dtype, compute_device(settings.device))
        values = {
            "target_runs_on": describer.execution,
            "target_precision": settings.dtype,
            "cache_precision": describer.cache_precision,
            "drafter": describer.drafter,
            "drafter_runs_on": describer.drafting,
            "event_model_precision": settings.dtype,
            "head_precision": str(computed).removeprefix("torch."),
        } | self._counts.recent_decoding(describer.plain_step_ms)
        return Health("decoding", DiagnosticStatus.OK, "sums over the last descriptions", values)

    def descriptions(self) -> Health:
        """How describing goes."""
        describer = self._describer()
        state = ACTIVE if self._worker.running else INACTIVE if describer else UNCONFIGURED
        values = {"state": state} | self._counts.values() | {
            "replaced_windows": self._worker.mailbox.replaced,
            "drafter": describer.drafter if describer else self._settings.current.drafter,
            "drafter_reason": describer.chosen if describer else "",
            "left_out": describer.left_out if describer else "",
            "relief": self._worker.relief.told,
            "last_error": self.problem or self._counts.last_problem,
        }  # fmt: skip
        return Health("descriptions", *self._judge(state), values)

    def _judge(self, state: str) -> tuple[bytes, str]:
        error, warning = self._counts.tell()
        if self.problem or error:
            return DiagnosticStatus.ERROR, self.problem or error
        if not self._worker.running:
            return DiagnosticStatus.OK, state
        if self._worker.died:
            return DiagnosticStatus.ERROR, "The describing thread died, see the log; restart the node."
        if self._counts.problem:
            return DiagnosticStatus.ERROR, self._counts.problem
        return self._judge_pace(warning)

    def _judge_pace(self, warning: str) -> tuple[bytes, str]:
        """Whether descriptions come and are news; warning: what went wrong beside them."""
        settings = self._settings.current
        level, told = self._counts.judge_pause(settings.thresholds, settings.longest_pause_s)
        if level != DiagnosticStatus.OK:
            told = f"{told}: {self._why_idle()}."
        elif relief := self._worker.relief.told:
            level, told = DiagnosticStatus.WARN, f"{told} with {relief}: the device ran out of memory."
        if warning and level != DiagnosticStatus.ERROR:
            return DiagnosticStatus.WARN, warning
        older, old = self._counts.judge_age(settings.thresholds)
        both = f"{told} {old}" if level != DiagnosticStatus.OK else old
        return (level, told) if older == DiagnosticStatus.OK else (max(level, older), both)

    def _why_idle(self) -> str:
        """Why nothing new is described, as far as it is known."""
        begun_at = self._worker.begun_at
        if begun_at is not None and time.monotonic() - begun_at > LONG_S:
            return f"one description has been under way for {time.monotonic() - begun_at:.1f} s"
        return last_arrivals(self._inputs.images, self._inputs.events)
