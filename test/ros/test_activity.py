"""What counts as activity, and a node that rests without it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import MS, at_least, make_bench

from evspec_ros.events.types import Events
from evspec_ros.ros.activity import SAMPLE, Activity, Glance
from evspec_ros.ros.parameters import Settings

WIDTH, HEIGHT, WINDOW_NS = 640, 480, 50_000_000
ACTIVITY = Settings().activity


def _noise(seed: int, count: int = 4000) -> Events:
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, WINDOW_NS, count))
    x, y = (random.integers(0, size, count).astype(np.uint16) for size in (WIDTH, HEIGHT))
    return Events(t, x, y, random.integers(0, 2, count).astype(np.uint8), WIDTH, HEIGHT)


def _blob(seed: int, centre: float, speed: float, count: int = 4000) -> Events:
    """A cluster around a column, centre a share of the width, that moves by `speed` widths in the window."""
    noise = _noise(seed, count)
    where = centre + speed * noise.t / WINDOW_NS + np.random.default_rng(seed).normal(0, 0.01, count)
    x = np.clip(where * WIDTH, 0, WIDTH - 1).astype(np.uint16)
    return Events(noise.t, x, (noise.y // 8 + 200).astype(np.uint16), noise.p, WIDTH, HEIGHT)


def _news(before: Events, after: Events, activity: Activity = ACTIVITY) -> str:
    return Glance.at(after, WINDOW_NS).news(Glance.at(before, WINDOW_NS), activity)


def test_noise_that_goes_on_is_no_news() -> None:
    """However much of it there is; nor is silence after silence. The first window is."""
    assert [_news(_noise(seed), _noise(seed + 1)) for seed in range(20)] == [""] * 20
    assert _news(Events.empty(1, 1), Events.empty(1, 1)) == ""
    assert Glance.at(Events.empty(1, 1), WINDOW_NS).news(None, ACTIVITY) == "the first window"


@pytest.mark.parametrize("count", [100, 150, 250, 400, 1000])
def test_little_noise_is_no_news_either(count: int) -> None:
    """Fewer events than leave none of the cells empty by chance."""
    assert [_news(_noise(seed, count), _noise(seed + 1, count)) for seed in range(50)] == [""] * 50


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        (_noise(1, 1000), _noise(2, 4000), "have become 80000"),
        (_noise(1, 4000), Events.empty(1, 1), "have become 0"),
        (_blob(1, 0.2, 0.05), _blob(2, 0.6, 0.05), "where none were"),
        (_blob(1, 0.4, 0.05), _blob(2, 0.45, -0.05), "the direction turned by 17"),
    ],
)
def test_rate_clusters_and_turns_are_news(before: Events, after: Events, what: str) -> None:
    """Each by itself, and none below the rate at which all is still."""
    assert what in _news(before, after)
    assert _news(before, after, Activity(1e9, 2.0, 0.2, 60.0)) == ""


def test_the_rate_of_a_sample_is_that_of_its_window() -> None:
    """Of many events the newest are looked at."""
    many = _noise(3, 200_000)
    assert Glance.at(many[-SAMPLE:], WINDOW_NS).rate == pytest.approx(4e6, rel=0.05)


def test_a_still_scene_is_described_once(spinner: Spinner, checkpoints: Path) -> None:
    """Then the networks rest, which /diagnostics tells with the last description's age, until it moves."""
    bench = make_bench(spinner, trigger="activity", max_new_tokens=3)
    bench.wait_until_connected()
    bench.describe_now()
    sent_at = 0.0

    def still() -> None:
        nonlocal sent_at
        if time.monotonic() - sent_at > 0.02:
            sent_at = time.monotonic()
            bench.send_image(time.time_ns())

    bench.until(lambda: (still(), at_least(bench.values("descriptions"), "still_windows", 20))[1], "rest")
    described = int(bench.values("descriptions")["descriptions"])
    status = bench.health("descriptions")
    assert status is not None
    assert status.level == DiagnosticStatus.OK
    assert "resting, for nothing happens; the last description came" in status.message
    bench.until(lambda: (still(), at_least(bench.values("descriptions"), "still_windows", 40))[1], "more")
    assert int(bench.values("descriptions")["descriptions"]) == described
    assert float(bench.values("descriptions")["last_description_s"]) > 0.5
    before = len(bench.received["/evspec/result"])
    bench.until(
        lambda: (bench.send_events(time.time_ns() - MS), len(bench.received["/evspec/result"]) > before)[1],
        "a description of what moves",
    )
    assert "events a second have become" in bench.until(
        lambda: bench.values("descriptions")["woken_by"], "the reason"
    )
