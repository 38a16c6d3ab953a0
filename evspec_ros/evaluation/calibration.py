"""What the drafter's networks are given while a recording is described: int8 graphs are scaled by it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from evspec_ros.engines.drafter import DrafterEngines
from evspec_ros.engines.int8 import RecordingEngine, Sample
from evspec_ros.engines.networks import Network
from evspec_ros.engines.protocol import Engine
from evspec_ros.engines.torch_engine import TorchEngine
from evspec_ros.errors import TrainingError
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.loading import load_describer
from evspec_ros.networks.checkpoints import load_preprocessor_config
from evspec_ros.training.recorded_windows import RecordedWindows

STEP_S = 0.5  # between windows, so that they differ
WINDOWS = 16
SAMPLES = 64  # of a network: several to a window


class _Observed(DrafterEngines):
    """All networks on torch's own modules, what they are given being kept by their names."""

    def __init__(self, samples: dict[str, list[Sample]]) -> None:
        super().__init__(
            "tensorrt", "asked for"
        )  # whose way it is to run every network as a graph of tensors
        self._samples = samples

    def _compiled(self, network: Network) -> Engine:
        kept = self._samples.setdefault(network.name, [])
        return RecordingEngine(TorchEngine(network), kept, SAMPLES)


def recorded_samples(
    recording: Path, target: Path, event_model: Path, heads: Sequence[Path], precision: str
) -> dict[str, list[Sample]]:
    """Inputs of the networks of `drafter_networks`, by their names, from the first windows of a recording
    that is described with each of the heads, on the CPU.

    Raises RecordingError, CheckpointError, and TrainingError for a recording without windows.
    """
    preprocessor = ClipPreprocessor.from_config(load_preprocessor_config(target))
    windows = list(
        islice(RecordedWindows([recording], STEP_S, preprocessor, preprocessor).windows(), WINDOWS)
    )
    if not windows:
        raise TrainingError(f"{recording} has no window to calibrate on; give a longer recording.")
    found: dict[str, list[Sample]] = {}
    for head in heads:
        samples: dict[str, list[Sample]] = {}
        describer = load_describer(
            target, event_model, head, drafter="combined", dtype=precision, backend="torch", overlap="on",
            drafter_backend=_Observed(samples),
        )  # fmt: skip
        describer.warm_up()
        for kept in samples.values():
            kept.clear()  # of windows that showed nothing
        for window in windows:
            describer.describe(window.events, window.frames, stamp_ns=window.stop_ns)
        found |= {name: kept for name, kept in samples.items() if kept}
    return found
