"""The written report of a run: one HTML file with pictures, texts and a plot of the latencies."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import jinja2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evspec_ros.errors import EvspecError

STAGES = (
    "preprocess",
    "encode_frames",
    "prefill",
    "event_wait",
    "decode",
)  # add up to the total
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True, eq=False)
class Moment:
    """One description with what it was made from.

    at_s: seconds since the run began; frame: RGB uint8 [H, W, 3]; event_images: RGB uint8 [5, H, W, 3], None
    where the window held no events; figures: name and value as they are to be read.
    """

    at_s: float
    text: str
    frame: NDArray[np.uint8]
    event_images: NDArray[np.uint8] | None
    figures: Mapping[str, str]


@dataclass(frozen=True)
class Timing:
    """When one description's window ended, seconds since the run began, how old it was when it was published
    (None: not known), and the milliseconds of its stages.
    """

    at_s: float
    age_ms: float | None
    stages_ms: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """What is written: title, the run's figures, some moments, every description's timing, remarks."""

    title: str
    figures: Mapping[str, str]
    moments: Sequence[Moment]
    timings: Sequence[Timing]
    remarks: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the report as one HTML file, making its folder; EvspecError where it cannot be written."""
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(report=report, plot=latency_plot(report.timings))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise EvspecError(f"The report cannot be written to {path} ({error.strerror}).") from error


def environment(*, autoescape: bool = True) -> jinja2.Environment:
    """What fills a report's template: pictures become a part of the page."""
    made = jinja2.Environment(autoescape=autoescape, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made.filters |= {"photo": _photo, "drawing": _drawing}
    return made


def latency_plot(timings: Sequence[Timing]) -> str:
    """An SVG: for each description its stages, stacked, and its age when it was published."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    instants = [timing.at_s for timing in timings]
    steps = np.diff(instants)
    width = 0.8 * float(steps.min()) if len(steps) else 0.1
    bottom = np.zeros(len(timings))
    for stage in STAGES:
        heights = np.array([timing.stages_ms.get(stage, 0.0) for timing in timings])
        axes.bar(instants, heights, width, bottom, label=stage.replace("_", " "))
        bottom += heights
    ages = [np.nan if timing.age_ms is None else timing.age_ms for timing in timings]
    if np.isfinite(ages).any():
        axes.plot(instants, ages, "k.-", linewidth=0.8, label="age when published")
    axes.set_xlabel("end of the event window, seconds since the run began")
    axes.set_ylabel("milliseconds")
    axes.margins(x=0.02)
    figure.legend(loc="outside right upper", frameon=False)
    return svg_of(figure)


def svg_of(figure: Figure) -> str:
    """A drawing as an element of a page."""
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    text = svg.getvalue()
    return text[text.index("<svg") :]


def _photo(image: NDArray[np.uint8]) -> str:
    """A data: address of a photograph, as JPEG."""
    return _data_address(image, ".jpg", "image/jpeg")


def _drawing(image: NDArray[np.uint8]) -> str:
    """A data: address of a picture with sharp edges, as PNG."""
    return _data_address(image, ".png", "image/png")


def _data_address(image: NDArray[np.uint8], suffix: str, kind: str) -> str:
    _, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return f"data:{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"
