"""The node's parameters: one typed table, and the check of every change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from evspec_ros.choices import (
    ACCEPTANCES,
    AUTO_DRAFTER,
    BACKENDS,
    DESCRIBE,
    DRAFTER_BACKENDS,
    KV_PRECISIONS,
    NEW_HEAD,
    OVERLAPS,
    PRECISIONS,
    WAIT,
)
from evspec_ros.description import Limits
from evspec_ros.errors import GenerationError, RosError
from evspec_ros.events.window import WindowSize
from evspec_ros.files import share_directory
from evspec_ros.prompts import DEFAULT_PROMPT, require_text
from evspec_ros.ros.activity import Activity
from evspec_ros.ros.degrading import Degrading
from evspec_ros.ros.diagnostics import Thresholds
from evspec_ros.ros.ingest import EVENT_STREAMS
from evspec_ros.ros.relief import CALM_S
from evspec_ros.sizes import FRAMES_SECONDS, LARGEST_TREE, WINDOW_MS
from evspec_ros.speculative.registry import DEFAULT_DRAFTER, DRAFTERS

TINY_PAIR = "tiny_video_llava", "tiny_eventgpt"
MOST_PROMPTS = 16  # about one window
ACTIVITY = "activity"  # a trigger that rests while nothing happens


@dataclass(frozen=True)
class Constraint:
    """What a parameter may be: low <= value <= high, or one of choices; spoken: the models are asked it;
    live: it may change while running; path: it names a directory.
    """

    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    spoken: bool = False
    live: bool = False
    path: bool = False


def _row(default: Any, description: str, **constraint: Any) -> Any:
    return field(default=default, metadata={"constraint": Constraint(description, **constraint)})


def _shipped(checkpoint: str) -> Any:
    def path() -> str:
        return str(share_directory() / "models" / checkpoint)

    return path


def _checkpoint(name: str, description: str) -> Any:
    return field(default_factory=_shipped(name), metadata={"constraint": Constraint(description, path=True)})


@dataclass(frozen=True)
class Settings:
    """One row per parameter of the node: name, type, default, description and bounds."""

    target: str = _checkpoint(TINY_PAIR[0], "directory of the target, a Video-LLaVA checkpoint")
    event_model: str = _checkpoint(
        TINY_PAIR[1], "directory of the event model, of EventGPT's kind; may be empty"
    )
    draft_head: str = _row(
        "",
        "directory of the draft head's checkpoint; new for one that begins from nothing and learns from the "
        "descriptions; empty for the package's own, which fits its tiny models",
        path=True,
    )
    draft_head_dir: str = _row(
        "",
        "directory where a new draft head is kept; empty for the user's own folder for these models",
        path=True,
    )
    device: str = _row("cpu", "where the networks run: cpu, cuda or cuda:N")
    dtype: str = _row(
        "float32",
        "the networks' precision; int8 and int4 are the decoders' weights alone and need torchao",
        choices=PRECISIONS,
    )
    kv_dtype: str = _row(
        "auto",
        "precision of the target's key/value cache, auto for what dtype computes in",
        choices=KV_PRECISIONS,
    )
    exact_half: bool = _row(
        False,
        "in half precision, give all passes of the target one shape, so that drafts cannot change a near tie",
    )
    backend: str = _row(
        "auto", "what computes the target's passes; auto picks what suits the device", choices=BACKENDS
    )
    drafter_backend: str = _row(
        "auto",
        "what computes the drafter's networks; auto picks what suits the device",
        choices=DRAFTER_BACKENDS,
    )
    threads: int = _row(
        0, "threads of the networks on the CPU, 0 for one per core; leave cores to the rest", low=0, high=256
    )
    drafter: str = _row(
        AUTO_DRAFTER,
        f"what drafts: {AUTO_DRAFTER} for what the checkpoints allow, {', '.join(DRAFTERS)}",
        choices=(AUTO_DRAFTER, *DRAFTERS),
    )
    overlap: str = _row(
        "auto",
        "read events while the target reads its prompt: on, off, auto for on where the networks are on a GPU",
        choices=OVERLAPS,
    )
    event_pooling: int = _row(
        1, "how many neighbouring event tokens a drafter sees as one, 1 for all of them", low=1, high=64
    )
    image_transport: str = _row(
        "raw",
        "which images are subscribed, as image_transport names them: raw (the topic image) or compressed "
        "(image/compressed)",
        choices=("raw", "compressed"),
    )
    online_distillation: bool = _row(
        False,
        "let the draft head learn from the descriptions in idle time; switched in where it is better. A new "
        "one always does",
    )
    autostart: bool = _row(True, "configure and activate at once, with no lifecycle manager")

    trigger: str = _row(
        "continuous",
        "describe as often as the networks manage and at most once per window_ms of new events or frames, "
        "every period_s seconds, when the events change (see activity_rate and what follows it), or when "
        "~/describe is called",
        choices=("continuous", "period", ACTIVITY, "on_request"),
        live=True,
    )
    activity_rate: float = _row(
        2000.0,
        "events per second below which all is still, with trigger=activity",
        low=0.0,
        high=1e9,
        live=True,
    )
    activity_rate_factor: float = _row(
        2.0,
        "activity is a rate so many times that of the last described window, or so many times less",
        low=1.1,
        high=1000.0,
        live=True,
    )
    activity_cluster: float = _row(
        0.2, "or so large a share of the events where that one had none", low=0.01, high=1.0, live=True
    )
    activity_turn_deg: float = _row(
        60.0, "or a direction of their motion that differs by so many degrees", low=1.0, high=180.0, live=True
    )
    period_s: float = _row(
        1.0, "seconds between descriptions with trigger=period", low=0.05, high=3600.0, live=True
    )
    prompt: str = _row(DEFAULT_PROMPT, "what the target is asked", spoken=True, live=True)
    questions: str = _row(
        "",
        "further questions about each window, separated by |; each is answered in its own result",
        spoken=True,
        live=True,
    )
    max_new_tokens: int = _row(
        Limits.max_new_tokens, "longest description in tokens", low=1, high=2048, live=True
    )
    temperature: float = _row(
        Limits.temperature, "0 is greedy, above it samples", low=0.0, high=5.0, live=True
    )
    top_p: float = _row(
        Limits.top_p, "sample from the smallest set of tokens this probable", low=0.01, high=1.0, live=True
    )
    top_k: int = _row(Limits.top_k, "sample from this many tokens, 0 for all", low=0, high=100_000, live=True)
    seed: int = _row(Limits.seed, "seed of the sampling", low=0, high=2**31 - 1, live=True)
    n_max: int = _row(Limits.n_max, "most drafted tokens in a row", low=1, high=64, live=True)
    tree_size: int = _row(
        Limits.tree_size, "most nodes of the draft tree", low=1, high=LARGEST_TREE, live=True
    )
    p_min: float = _row(Limits.p_min, "stop drafting below this confidence", low=0.0, high=1.0, live=True)
    acceptance: str = _row(
        Limits.acceptance,
        "which drafted tokens stand: exact loses nothing, typical and cascade trade faithfulness for speed",
        choices=ACCEPTANCES,
        live=True,
    )

    window_ms: float = _row(WINDOW_MS, "longest event window", low=1.0, high=100.0, live=True)
    window_events: int = _row(
        0,
        "most events in a window, the newest ones; 0 for all of window_ms. It changes how much is looked at, "
        "not how often",
        low=0,
        high=100_000_000,
        live=True,
    )
    frames_seconds: float = _row(
        FRAMES_SECONDS, "the eight frames are spread over this long", low=0.05, high=60.0
    )
    max_frames: int = _row(256, "most frames kept in memory", low=8, high=4096)
    event_buffer_s: float = _row(1.0, "seconds of events kept in memory", low=0.1, high=30.0)
    event_buffer_mb: int = _row(256, "most megabytes of events kept in memory", low=1, high=16_384)
    events_type: str = _row(
        "event_camera_msgs/msg/EventPacket",
        "what the topic events carries",
        choices=tuple(EVENT_STREAMS),
    )
    event_time: str = _row(
        "sensor",
        "the events' own clock: sensor (its offset to ROS time is tracked) or ros (already ROS time)",
        choices=("sensor", "ros"),
    )

    stale_after_s: float = _row(
        5.0,
        "a window that ended this long before its description begins is no news: its text is published on "
        "~/result alone, marked stale; 0 for never",
        low=0.0,
        high=3600.0,
        live=True,
    )
    without_events: str = _row(
        DESCRIBE,
        "while no events arrive: describe (frames alone; the result says `degraded`) or wait",
        choices=(DESCRIBE, WAIT),
        live=True,
    )
    without_frames: str = _row(
        WAIT,
        "while no images arrive: wait or describe (pictures of the events; the result says `degraded`)",
        choices=(DESCRIBE, WAIT),
        live=True,
    )
    relief_s: float = _row(
        CALM_S,
        "where the device ran out of memory, smaller limits and then no drafts help; a step is taken back "
        "after so many seconds",
        low=0.1,
        high=86_400.0,
        live=True,
    )
    warn_after_s: float = _row(
        Thresholds.warn_after_s,
        "seconds without a new description until /diagnostics warns; with trigger=period, beyond the period",
        low=0.1,
        high=86_400.0,
        live=True,
    )
    error_after_s: float = _row(
        Thresholds.error_after_s, "likewise, until it is an error", low=0.1, high=86_400.0, live=True
    )
    warn_age_s: float = _row(
        Thresholds.warn_age_s,
        "age of the window, when its text is published, from which /diagnostics warns",
        low=0.1,
        high=86_400.0,
        live=True,
    )
    error_age_s: float = _row(
        Thresholds.error_age_s, "likewise, from which it is an error", low=0.1, high=86_400.0, live=True
    )

    @property
    def thresholds(self) -> Thresholds:
        """What /diagnostics calls late and old."""
        return Thresholds(**{row.name: getattr(self, row.name) for row in fields(Thresholds)})

    @property
    def activity(self) -> Activity:
        """What counts as news with trigger=activity."""
        return Activity(
            self.activity_rate, self.activity_rate_factor, self.activity_cluster, self.activity_turn_deg
        )

    @property
    def degrading(self) -> Degrading:
        """What is described where a camera is missing."""
        return Degrading(self.without_events, self.without_frames, self.stale_after_s)

    @property
    def longest_pause_s(self) -> float | None:
        """How long nothing need be described though all is well; None where nobody can tell."""
        return {"continuous": 0.0, "period": self.period_s}.get(self.trigger)

    @property
    def window(self) -> WindowSize:
        """How much one description looks at."""
        return WindowSize(round(self.window_ms * 1e6), self.window_events)

    @property
    def limits(self) -> Limits:
        """The decoding limits among the parameters."""
        return Limits(**{row.name: getattr(self, row.name) for row in fields(Limits)})

    @property
    def checkpoints(self) -> tuple[Path, Path | None, Path | None]:
        """Paths of the target, the event model and the draft head; an empty path is None."""
        return Path(self.target), _optional_path(self.event_model), _draft_head(self)

    @property
    def learns(self) -> bool:
        """Whether the draft head learns from the descriptions."""
        return self.online_distillation or self.draft_head == NEW_HEAD

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt and the further questions."""
        further = (question.strip() for question in self.questions.split("|"))
        return self.prompt, *(question for question in further if question)


def _draft_head(settings: Settings) -> Path | None:
    """What was given, else the package's own for this drafter; None where it needs none, or can do without
    and the package's own is for other models.
    """
    drafter = DEFAULT_DRAFTER if settings.drafter == AUTO_DRAFTER else settings.drafter
    kinds = DRAFTERS[drafter].head_kinds
    if settings.draft_head or not kinds:
        return _optional_path(settings.draft_head if kinds else "")
    own = (settings.target, settings.event_model) == tuple(_shipped(name)() for name in TINY_PAIR)
    return Path(_shipped(f"tiny_{kinds[0]}")()) if own or drafter != DEFAULT_DRAFTER else None


def _optional_path(text: str) -> Path | None:
    return Path(text) if text else None


ROWS: dict[str, Constraint] = {row.name: row.metadata["constraint"] for row in fields(Settings)}


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Settings with other values, each checked against its row; RosError says which one is wrong and why."""
    checked = {name: _checked(name, value, getattr(settings, name)) for name, value in values.items()}
    settings = replace(settings, **checked)
    if not settings.prompt.strip():
        raise RosError(
            "Parameter prompt is empty, so nothing would be asked; 'Describe the scene.' would do."
        )
    if len(settings.prompts) > MOST_PROMPTS:
        raise RosError(
            f"Parameter questions holds {len(settings.prompts) - 1} questions, but has to hold at most "
            f"{MOST_PROMPTS - 1}: each is drafted and kept in memory by itself."
        )
    return settings


def _checked(name: str, value: Any, current: Any) -> Any:
    row = ROWS[name]
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(current):
        raise RosError(f"Parameter {name} is {value!r}, but has to be a {type(current).__name__}.")
    if row.choices and value not in row.choices:
        raise RosError(f"Parameter {name} is {value!r}, but has to be one of {', '.join(row.choices)}.")
    if row.low is not None and row.high is not None and not row.low <= value <= row.high:
        raise RosError(f"Parameter {name} is {value}, but has to lie between {row.low:g} and {row.high:g}.")
    if row.spoken:
        try:
            require_text(value)
        except GenerationError as error:
            raise RosError(f"Parameter {name} cannot be asked. {error}") from error
    return value
