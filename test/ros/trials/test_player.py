"""Playing a recording: at the right time, lap after lap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evspec_ros.errors import RosError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.bag_writer import BagWriter
from evspec_ros.ros.trials import player
from evspec_ros.ros.trials.player import Playback

MS = 1_000_000


@pytest.mark.parametrize("rate", [1.0, 0.5, 2.0])
def test_time_runs_on_from_lap_to_lap_and_can_be_traced_back(rate: float) -> None:
    """The end of one lap is the beginning of the next, and a stamp tells which moment it was, whatever the
    rate: that changes when a message leaves, not what it says.
    """
    schedule = Playback(begin_ns=10**18, start_ns=500 * MS, lap_ns=100 * MS, rate=rate)
    assert schedule.to_ros(500 * MS, 0) == 10**18
    assert schedule.to_ros(600 * MS, 0) == schedule.to_ros(500 * MS, 1) == 10**18 + 100 * MS
    for lap in range(3):
        stamp_ns = schedule.to_ros(540 * MS, lap)
        assert schedule.to_recording(stamp_ns) == 540 * MS
        assert schedule.due_ns(stamp_ns) == 10**18 + round((40 + 100 * lap) * MS / rate)
    times = np.array([500 * MS, 540 * MS])
    assert schedule.to_ros(times, 2).tolist() == [schedule.to_ros(int(t), 2) for t in times]


def test_the_player_plays_the_topics_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is not in the bag ends it with status 1 and the names that are."""
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_frame(Frame(MS, np.zeros((4, 4, 3), np.uint8)))
    assert player.main([str(tmp_path / "bag"), "--image", "/centre"]) == 1
    assert "no topic /centre for --image; those that would do: /camera/image_raw." in capsys.readouterr().err


def test_in_step_nothing_leaves_before_the_last_image_was_received(
    ros: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each message the player waits for its images, and an image that nobody receives ends it."""
    with BagWriter(tmp_path / "bag") as bag:
        pixel = np.zeros(1, np.uint16)
        for step in range(3):
            bag.write_frame(Frame(step * 10 * MS, np.zeros((4, 4, 3), np.uint8)))
            t = np.array([step * 10 * MS + 3 * MS])
            bag.write_events(Events(t, pixel, pixel, np.zeros(1, np.uint8), 4, 4), int(t[0]))
    playing = player.Player(open_recording(tmp_path / "bag"), in_step=True)
    done: list[str] = []
    received = [True]
    monkeypatch.setattr(playing._events, "publish", lambda _: done.append("events"))
    monkeypatch.setattr(playing._frames, "publish", lambda _: done.append("image"))

    def acked(_: object) -> bool:
        done.append("waited")
        return received[0]

    monkeypatch.setattr(playing._frames, "wait_for_all_acked", acked)
    playing.play(playing.schedule(1.0), 0.0, once=True)
    assert done == ["waited", "image", "waited", "events"] * 3
    received[0] = False
    with pytest.raises(RosError, match="Nobody received an image on /image within 30 s"):
        playing.play(playing.schedule(1.0), 0.0, once=True)
    playing.node.destroy_node()
