"""The compiled messages: the same types, on the wire as rosbags reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from evspec_ros.errors import RosError
from evspec_ros.interfaces import build, message_texts

ROOT = Path(__file__).parents[2]

STORE = get_typestore(Stores.ROS2_JAZZY)
for _name, _text in message_texts().items():
    STORE.register(get_types_from_msg(_text, _name))


def message_class(name: str) -> Any:
    """The Python class of a message, or a skip where this ROS has no such package."""
    package, _, message = name.split("/")
    module = pytest.importorskip(f"{package}.msg", reason=f"{package} is not installed")
    return getattr(module, message)


@pytest.fixture(scope="module")
def serialization() -> Any:
    """rclpy's own serializer."""
    return pytest.importorskip("rclpy.serialization", reason="rclpy is not installed")


@settings(deadline=None)
@given(
    data=st.binary(max_size=40),
    encoding=st.sampled_from(["evt3", "libcaer_cmp", ""]),
    seq=st.integers(0, 2**64 - 1),
    stamp=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 10**9 - 1)),
)
@pytest.mark.parametrize("name", ["event_camera_msgs/msg/EventPacket", "event_array_msgs/msg/EventArray"])
def test_packets_on_the_wire_are_what_rosbags_reads(
    name: str, serialization: Any, data: bytes, encoding: str, seq: int, stamp: tuple[int, int]
) -> None:
    """What ROS serializes, an independent implementation reads with every field intact."""
    message = message_class(name)(width=640, height=480, seq=seq, time_base=seq // 2, encoding=encoding)
    message.header.stamp.sec, message.header.stamp.nanosec = stamp
    message.header.frame_id = "camera"
    message.events.frombytes(data)
    read: Any = STORE.deserialize_cdr(serialization.serialize_message(message), name)
    assert bytes(read.events) == data
    assert (read.encoding, read.seq, read.time_base) == (encoding, seq, seq // 2)
    assert (read.header.stamp.sec, read.header.stamp.nanosec) == stamp
    assert (read.width, read.height, read.header.frame_id) == (640, 480, "camera")


@pytest.mark.parametrize("package", ["dvs_msgs", "prophesee_event_msgs", "dv_ros2_msgs"])
def test_event_arrays_on_the_wire_are_what_rosbags_reads(package: str, serialization: Any) -> None:
    """Arrays of event messages keep each event's fields."""
    event = message_class(f"{package}/msg/Event")
    message = message_class(f"{package}/msg/EventArray")(width=346, height=260)
    for k in range(5):
        message.events.append(event(x=k, y=65535 - k, polarity=k % 2 == 0))
        message.events[-1].ts.nanosec = 999_999_999 - k
    read: Any = STORE.deserialize_cdr(serialization.serialize_message(message), f"{package}/msg/EventArray")
    assert [(e.x, e.y, e.polarity, e.ts.nanosec) for e in read.events] == [
        (k, 65535 - k, k % 2 == 0, 999_999_999 - k) for k in range(5)
    ]


def test_what_is_there_is_not_built_again() -> None:
    """A package that can be imported is not missing, whoever made it."""
    assert build.missing_packages(["json", "no_such_msgs"]) == ["no_such_msgs"]


def test_a_package_of_an_earlier_version_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that can be imported and lacks a kind of what is defined."""
    (tmp_path / "json" / "action").mkdir(parents=True)
    (tmp_path / "json" / "action" / "Ask.action").touch()
    monkeypatch.setattr(build, "DEFINITIONS", tmp_path)
    assert build.missing_packages(["json", "email"]) == ["json"]


def test_the_action_has_the_fields_of_its_definition() -> None:
    """Of each of its three parts."""
    ask = pytest.importorskip("evspec_msgs.action", reason="evspec_msgs is not built").Ask
    fields = [part.get_fields_and_field_types() for part in (ask.Goal, ask.Result, ask.Feedback)]
    assert fields == [
        {"question": "string"},
        {"description": "evspec_msgs/Description", "problem": "string", "first_word_ms": "double"},
        {"text": "string"},
    ]


def test_without_ros_wheels_the_builder_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an environment without ROS the builder fails with a sentence that names the remedy."""
    monkeypatch.setattr(build, "PREFIX", tmp_path)
    with pytest.raises(RosError, match=r"pip install 'evspec_ros\[ros\]'"):
        build.build(["event_camera_msgs"])


def test_without_a_compiler_the_builder_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gcc: one sentence with the packages to install."""
    (tmp_path / "include" / "rosidl_runtime_c").mkdir(parents=True)
    monkeypatch.setattr(build, "PREFIX", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RosError, match=r"needs gcc and g\+\+: apt install gcc g\+\+ python3-dev"):
        build.build(["event_camera_msgs"])


def test_an_unknown_package_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    """The builder knows the packages defined here and refuses any other name with status 2."""
    with pytest.raises(SystemExit) as exit_:
        build.main(["nobodys_msgs"])
    assert exit_.value.code == 2
    assert "nobodys_msgs" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(message_texts()))
def test_built_messages_have_the_type_hash_of_their_text(name: str) -> None:
    """The hash that was compiled in is the one that rosbags computes: drivers and nodes find each other."""
    package, _, message = name.split("/")
    description = build.PREFIX / "share" / package / "msg" / f"{message}.json"
    if not description.is_file():
        pytest.skip(f"{package} was not built into this Python environment")
    hashes = {h["type_name"]: h["hash_string"] for h in json.loads(description.read_text())["type_hashes"]}
    assert hashes[name] == STORE.hash_rihs01(name)
