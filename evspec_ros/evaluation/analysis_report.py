"""What `evspec features analyse` found, as tables and as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.analysis import BIN_RANGE, PLAIN, SHUFFLED, Analysis, analyse
from evspec_ros.networks.checkpoints import load_draft_head
from evspec_ros.networks.devices import compute_device
from evspec_ros.training.features import FeatureShards
from evspec_ros.training.head_run import load_pair


def analyse_visibly(
    target: Path, event_model: Path, features: Path, adapter: Path | None, device: str = "cpu"
) -> Analysis:
    """Analyse a directory of features, with progress on stderr. Raises CheckpointError and TrainingError."""
    place = compute_device(device)
    shards = FeatureShards.open(features, load_pair(target, event_model, str(place)))
    head = None if adapter is None else load_draft_head(adapter, device=place)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("shards", total=len(shards))
        return analyse(shards, head, lambda done: progress.update(task, completed=done))


def print_analysis(analysis: Analysis) -> None:
    """One table of layers, one of pairs of layers, one of the last layers' nearness."""
    console = Console(highlight=False)
    layers = Table("space", "layer", "rms", "kurtosis", "row norm", "dimensions", box=SIMPLE)
    for row in analysis.distributions:
        figures = (row.rms, row.kurtosis, row.row_norm, row.dimensions)
        layers.add_row(row.space, str(row.layer), *(f"{value:.2f}" for value in figures))
    pairs = Table("target's layer", "event model's", "beside", "CKA", "linear probe", box=SIMPLE)
    for pair in analysis.alignments:
        pairs.add_row(
            str(pair.layer), str(pair.event_layer), pair.partner, f"{pair.cka:.3f}", f"{pair.probe:.3f}"
        )
    near = Table("adapter", "beside", "cosine", "distance", box=SIMPLE)
    for line in analysis.nearness:
        near.add_row(line.name, line.partner, *(f"{np.mean(v):.3f}" for v in (line.cosine, line.distance)))
    for table in (layers, pairs, near):
        console.print(table)
    padded = "; before the adapter the narrower space is filled up with zeros" if analysis.padded else ""
    console.print(f"{analysis.rows} rows of {analysis.scenes} scenes{padded}.")


def plot_analysis(analysis: Analysis, path: Path) -> None:
    """CKA, probe, distributions and nearness by token position as a picture; EvspecError where it cannot be
    written.
    """
    figure = Figure(figsize=(15, 9), layout="constrained")
    (cka, probe, densities), (cosine, distance, shuffled) = figure.subplots(2, 3)
    _map(cka, analysis, "cka", PLAIN, "linear CKA")
    _map(probe, analysis, "probe", PLAIN, "linear probe, share of variance on other scenes")
    _map(shuffled, analysis, "probe", SHUFFLED, "linear probe, answers shuffled across scenes")
    for row in analysis.distributions:
        centres = np.linspace(-BIN_RANGE, BIN_RANGE, 2 * len(row.density) + 1)[1::2]
        densities.semilogy(centres, np.maximum(row.density, 1e-6), label=f"{row.space} {row.layer}")
    densities.set(title="distributions", xlabel="value over rms", ylabel="density")
    densities.legend()
    for line in analysis.nearness:
        for axes, values in ((cosine, line.cosine), (distance, line.distance)):
            axes.plot(values, "-" if line.partner == PLAIN else ":", label=f"{line.name}, {line.partner}")
    cosine.set(title="last layers: cosine", xlabel="token position")
    distance.set(title="last layers: distance over the target's length", xlabel="token position")
    cosine.legend()
    distance.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise EvspecError(f"The plot cannot be written to {path}: {error}.") from error


def _map(axes: Axes, analysis: Analysis, figure: str, partner: str, title: str) -> None:
    """A figure for each pair of layers."""
    found = [pair for pair in analysis.alignments if pair.partner == partner]
    ours, theirs = (sorted({getattr(pair, name) for pair in found}) for name in ("layer", "event_layer"))
    table = np.array([getattr(pair, figure) for pair in found]).reshape(len(ours), len(theirs))
    axes.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black"
        )
    axes.set(title=title, xlabel="event model's layer", ylabel="target's layer")
    axes.set_xticks(range(len(theirs)), [str(layer) for layer in theirs])
    axes.set_yticks(range(len(ours)), [str(layer) for layer in ours])
