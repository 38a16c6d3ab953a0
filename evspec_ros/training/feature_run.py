"""`evspec features extract`: features of two checkpoints from recordings or simulated scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from evspec_ros.choices import PLAIN
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.networks.checkpoints import load_preprocessor_config
from evspec_ros.networks.devices import compute_device
from evspec_ros.networks.draft_head import spread_layers
from evspec_ros.training.features import FeaturePlan, ModelPair, Scenes, extract
from evspec_ros.training.head_run import load_pair, simulated
from evspec_ros.training.processes import own_device, process
from evspec_ros.training.progress import training_progress
from evspec_ros.training.recorded_windows import RecordedWindows


@dataclass(frozen=True)
class ExtractionRequest:
    """What to run the models over and what to keep: windows of recordings `step_s` apart, or without
    recordings `scenes` simulated scenes of a split and condition from `first` on; layers, event_layers,
    context, max_new_tokens and shard as `FeaturePlan`, its defaults where they are None.
    """

    recordings: tuple[Path, ...] = ()
    step_s: float = 0.5
    scenes: int = 0
    split: str = "train"
    condition: str = PLAIN
    first: int = 0
    layers: tuple[int, ...] | None = None
    event_layers: tuple[int, ...] | None = None
    context: int | None = None
    max_new_tokens: int = 80
    shard: int = 32


def extract_visibly(
    target: Path, event_model: Path, directory: Path, wanted: ExtractionRequest, device: str = "cpu"
) -> dict[str, Any]:
    """Extract features, with what they will take on disk and progress on stderr; what is there now, to the
    first of several processes.

    Interrupted, it goes on when called again. Raises CheckpointError, RecordingError and TrainingError.
    """
    place = own_device(compute_device(device))
    pair = load_pair(target, event_model, str(place))
    scenes, count, source = _source(pair, target, event_model, wanted)
    layers, event_layers = (
        spread_layers(model.config.text.num_layers) if chosen is None else chosen
        for model, chosen in ((pair.target, wanted.layers), (pair.event_model, wanted.event_layers))
    )
    plan = FeaturePlan.for_pair(
        pair,
        layers,
        event_layers,
        wanted.context,
        wanted.max_new_tokens,
        wanted.shard,
    )
    predicted = count * plan.scene_bytes(pair)
    first = process(place).is_main_process
    if first:
        Console(stderr=True, highlight=False).print(
            f"{count} scenes take up to {predicted / 1e6:,.1f} MB in {directory}.", markup=False
        )
    with training_progress(visible=first) as report:
        shards = extract(pair, scenes, directory, plan, count, source, report)
    if not first:
        return {}
    return {
        "directory": str(directory),
        "scenes": shards.scenes,
        "shards": len(shards),
        "layers": list(plan.layers),
        "event_layers": list(plan.event_layers),
        "predicted_bytes": predicted,
        "bytes": sum(path.stat().st_size for path in shards.paths),
    }


def _source(
    pair: ModelPair, target: Path, event_model: Path, wanted: ExtractionRequest
) -> tuple[Scenes, int, Any]:
    """What to read, how much of it there is, and what the manifest says of it."""
    if not wanted.recordings:
        scenes = simulated(wanted.split, wanted.first, str(pair.device), wanted.condition)
        source = {"scenes": wanted.split, "first": wanted.first, "condition": wanted.condition}
        return scenes, wanted.scenes, source
    of_frames, of_events = (
        ClipPreprocessor.from_config(load_preprocessor_config(path)) for path in (target, event_model)
    )
    windows = RecordedWindows(wanted.recordings, wanted.step_s, of_frames, of_events, pair.device)
    return windows, len(windows), windows.source
