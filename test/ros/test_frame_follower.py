"""One camera followed among the images of a topic: two do not mix, and a new one takes over."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evspec_ros.errors import FrameError
from evspec_ros.events.streams import Source
from evspec_ros.ros.frame_follower import FrameFollower

LEFT, RIGHT = Source("left", "rgb8", 640, 480), Source("right", "rgb8", 640, 480)
MS = 1_000_000


def play(follower: FrameFollower, images: list[tuple[Source, float, int, int | None]]) -> list[int]:
    """Take images (source, arrival in s, stamp in ns, number); the indices of those that were kept."""
    kept = []
    for index, (source, at_s, stamp_ns, number) in enumerate(images):
        try:
            follower.take(source, stamp_ns, number, at_s)
        except FrameError:
            continue
        kept.append(index)
    return kept


@given(
    period_s=st.floats(0.01, 2.0),
    phase=st.floats(0.05, 0.95),
    other=st.sampled_from([RIGHT, Source("left", "mono8", 640, 480), Source("left", "rgb8", 320, 240)]),
)
def test_two_cameras_do_not_mix(period_s: float, phase: float, other: Source) -> None:
    """Whatever their rate: the first one is followed, once its rate is known."""
    times = [(k * period_s, LEFT) for k in range(60)] + [
        ((k + phase) * period_s, other) for k in range(20, 60)
    ]
    images = [
        (source, at_s, round(at_s * 1e9), None) for at_s, source in sorted(times, key=lambda one: one[0])
    ]
    kept = play(FrameFollower(), images)
    assert [images[index][0] for index in kept] == [LEFT] * 60


@given(offset=st.integers(0, 10_000), phase=st.floats(0.05, 0.95))
def test_publishers_that_look_alike_are_told_by_their_numbers(offset: int, phase: float) -> None:
    """Of two with one frame, size and encoding one is followed from some image on."""
    first = [(LEFT, k / 30, k * 33 * MS, 5_000 + k) for k in range(60)]
    second = [(LEFT, (k + phase) / 30, round((k + phase) * 33 * MS), offset + k) for k in range(20, 60)]
    images = sorted(first + second, key=lambda image: image[1])
    kept = [images[index] for index in play(FrameFollower(), images)]
    of_second = [image in second for image in kept]
    assert sum(before != after for before, after in pairwise(of_second)) <= 1


def test_another_size_takes_over_after_three_periods() -> None:
    """And not before; the reason is told."""
    follower = FrameFollower()
    play(follower, [(LEFT, k / 10, k * 100 * MS, None) for k in range(20)])
    small = Source("left", "rgb8", 320, 240)
    with pytest.raises(FrameError, match="let only one camera publish"):
        follower.take(small, 2000 * MS, None, 1.9 + 0.29)
    assert "320 x 240 pixels" in follower.take(small, 2000 * MS, None, 1.9 + 0.31)
    assert follower.take(small, 2100 * MS, None, 2.3) == ""


@pytest.mark.parametrize(("number", "at_once"), [(20, True), (None, False)])
def test_stamps_that_go_back_begin_a_new_stream(number: int | None, at_once: bool) -> None:
    """At once where the publisher is known to be the same; otherwise when it has been silent."""
    follower = FrameFollower()
    play(follower, [(LEFT, k / 10, k * 100 * MS, None if number is None else k) for k in range(20)])
    if at_once:
        assert "1.700 s before" in follower.take(LEFT, 200 * MS, number, 2.0)
    else:
        with pytest.raises(FrameError, match=r"1\.700 s before"):
            follower.take(LEFT, 200 * MS, number, 2.0)
        assert "1.500 s before" in follower.take(LEFT, 400 * MS, number, 2.4)


def test_images_that_overtake_each_other_are_one_camera_s() -> None:
    """By less than a tenth of a second."""
    follower = FrameFollower()
    stamps = [0, 66, 33, 100, 133]
    assert len(play(follower, [(LEFT, k / 30, stamp * MS, k) for k, stamp in enumerate(stamps)])) == 5
