"""Damaged packets in every encoding: at most EventDecodingError, no event outside the sensor, no byte beyond.

EVSPEC_DAMAGED_PACKETS says how many there are; a million take some minutes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rosbags.rosbag2 import Reader
from serialised import serialised_packet

from evspec_ros.errors import EventDecodingError
from evspec_ros.evaluation.event_load import EVENT_ARRAY, loads
from evspec_ros.events import event_arrays, event_packets, streams
from evspec_ros.events.decoders import ENCODINGS, Decoder
from evspec_ros.events.types import Events
from evspec_ros.ros import ingest

PACKETS = int(os.environ.get("EVSPEC_DAMAGED_PACKETS", "8000"))
WIDTH, HEIGHT = 64, 48
EVENT_ARRAY_ROS1 = "dvs_msgs/EventArray of ROS 1"
LIES = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16, 640], "<u4")  # as lengths, sizes and times
LOADS = loads(60, WIDTH, HEIGHT)
SAMPLES = {
    name: [np.frombuffer(load.data, np.uint8) for load in LOADS if load.encoding == name]
    for name in {load.encoding: None for load in LOADS}
}
SAMPLES["trigger"] = SAMPLES["mono"]
ROS1_EVENTS = b"".join(struct.pack("<HHIIB", k, k % HEIGHT, k, k, k & 1) for k in range(60))
ROS1_HEAD = struct.pack("<7I", 1, 0, 0, 0, HEIGHT, WIDTH, 60)  # seq, stamp, no name, size, events
SAMPLES[EVENT_ARRAY_ROS1] = [np.frombuffer(ROS1_HEAD + ROS1_EVENTS, np.uint8)]
MESSAGES = [
    np.frombuffer(
        serialised_packet(
            seq, frame_id="camera", events=SAMPLES["evt3"][seq % 3].tobytes(), seq=seq,
            width=WIDTH, height=HEIGHT, time_base=0, encoding="evt3", is_bigendian=False,
        ),
        np.uint8,
    )
    for seq in range(50)
]  # fmt: skip
REAL = ("test_data_evt3_trigger", "test_data_libcaer_rollover", "test_data_mono_cd")
EACH = -(-PACKETS // (len(SAMPLES) + 1 + 2 * len(REAL)))


def before_a_forbidden_page(most: int) -> NDArray[np.uint8]:
    """Memory whose first byte beyond the end cannot be read: whoever tries ends the process."""
    size = -(-most // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, size + mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + size), mmap.PAGESIZE, 0) == 0  # PROT_NONE
    return memory[:size]


def damaged(samples: list[NDArray[np.uint8]], count: int) -> Iterator[NDArray[np.uint8]]:
    """Packets in turn, with bits turned or a number that lies, of their length or another, or plain noise."""
    rng = np.random.default_rng(9)
    memory = before_a_forbidden_page(2 * max(map(len, samples)))
    for sample in islice(cycle(samples), count):
        kind = rng.integers(0, 5)
        size = len(sample) if kind < 2 else int(rng.integers(1, 2 * len(sample)))
        packet = memory[len(memory) - size :]
        packet[:] = rng.integers(0, 256, size, np.uint8) if kind == 4 else np.resize(sample, size)
        for at in rng.integers(0, size, kind * 2):
            packet[at] ^= 1 << rng.integers(0, 8)
        if kind == 1 and size >= 4:
            at = int(rng.integers(0, size // 4)) * 4
            packet[at : at + 4] = np.frombuffer(rng.choice(LIES).tobytes(), np.uint8)
        yield packet


def reader(name: str) -> Callable[[NDArray[np.uint8]], Events]:
    """What takes such packets in."""
    if name == EVENT_ARRAY:
        return lambda packet: event_arrays.read_cdr(packet).events
    if name == EVENT_ARRAY_ROS1:
        return lambda packet: event_arrays.read_ros1(packet).events
    return Decoder(name, WIDTH, HEIGHT).decode


@pytest.fixture
def whole_stream(monkeypatch: pytest.MonkeyPatch) -> Callable[[NDArray[np.uint8]], Events]:
    """What the node does with a serialised message, up to the newest window; no stream keeps out another."""
    monkeypatch.setattr(streams, "SILENCE_S", 0.0)
    stream = ingest.PacketStream(0.1, 100_000, follow_sensor_clock=True)

    def add(packet: NDArray[np.uint8]) -> Events:
        stream.add(packet)
        newest = stream.newest()
        return newest.buffer.window(newest.sensor_ns, 10**8) if newest else Events.empty(1, 1)

    return add


def outcome(
    read: Callable[[NDArray[np.uint8]], Events], packets: Iterator[NDArray[np.uint8]]
) -> tuple[int, int]:
    """How many were refused and how many events came of the others, all inside their sensor."""
    refused = seen = 0
    for packet in packets:
        try:
            events = read(packet)
        except EventDecodingError:
            refused += 1
            continue
        seen += len(events)
        assert not len(events) or (events.x.max() < events.width and events.y.max() < events.height)
    return refused, seen


def test_every_encoding_is_among_them() -> None:
    """None is added without being damaged here."""
    assert set(ENCODINGS) < set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_packets_are_refused_or_give_events_inside_the_sensor(name: str) -> None:
    """Whatever became of a packet; the ones after it are read all the same."""
    refused, seen = outcome(reader(name), damaged(SAMPLES[name], EACH))
    assert refused
    assert seen or name == "trigger"


def test_damaged_messages_are_refused_or_give_events_inside_the_sensor(
    whole_stream: Callable[[NDArray[np.uint8]], Events],
) -> None:
    """Header, lengths and all."""
    assert min(outcome(whole_stream, damaged(MESSAGES, EACH)))


@pytest.mark.parametrize("bag", REAL)
def test_real_packets_are_no_less_safe_when_damaged(
    bag: str, shared_data: Path, whole_stream: Callable[[NDArray[np.uint8]], Events]
) -> None:
    """The packets of a recording one after the other, damaged as messages and within."""
    with Reader(shared_data / "event_camera_codecs" / bag) as recording:
        messages = [np.frombuffer(data, np.uint8) for _, _, data in recording.messages()]
    assert min(outcome(whole_stream, damaged(messages, EACH)))
    packets = [event_packets.read_cdr(message) for message in messages]
    decoder = Decoder(packets[0].encoding, packets[0].width, packets[0].height)
    assert min(outcome(decoder.decode, damaged([packet.events for packet in packets], EACH)))
