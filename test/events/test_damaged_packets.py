"""Damaged packets in every encoding: at most EventDecodingError, no event outside the sensor, no byte beyond.

EVSPEC_DAMAGED_PACKETS says how many there are; a million take some minutes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from serialised import serialised_packet

from evspec_ros.errors import EventDecodingError
from evspec_ros.evaluation.event_load import EVENT_ARRAY, loads
from evspec_ros.events import event_arrays
from evspec_ros.events.decoders import ENCODINGS, Decoder
from evspec_ros.events.types import Events
from evspec_ros.ros.ingest import PacketStream

PACKETS = int(os.environ.get("EVSPEC_DAMAGED_PACKETS", "8000"))
WIDTH, HEIGHT = 64, 48
MOST_BYTES = 2048
LIES = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16, 640], "<u4")  # as lengths, sizes and times
SAMPLES = {load.encoding: np.frombuffer(load.data, np.uint8) for load in loads(60, WIDTH, HEIGHT)}
SAMPLES["trigger"] = SAMPLES["mono"]
SAMPLES["EventPacket"] = np.frombuffer(
    serialised_packet(
        5, frame_id="camera", events=SAMPLES["evt3"].tobytes(), width=WIDTH, height=HEIGHT, seq=1,
        time_base=0, encoding="evt3", is_bigendian=False,
    ),
    np.uint8,
)  # fmt: skip


def before_a_forbidden_page() -> NDArray[np.uint8]:
    """Memory whose first byte beyond the end cannot be read: whoever tries ends the process."""
    size = -(-MOST_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, size + mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(memory.ctypes.data + size), mmap.PAGESIZE, 0) == 0  # PROT_NONE
    return memory[:size]


def damaged(sample: NDArray[np.uint8], count: int) -> Iterator[NDArray[np.uint8]]:
    """A packet with bits turned or a number that lies, of its length or another one, or plain noise."""
    rng, memory = np.random.default_rng(9), before_a_forbidden_page()
    for _ in range(count):
        kind = rng.integers(0, 5)
        size = len(sample) if kind < 2 else int(rng.integers(1, min(2 * len(sample), MOST_BYTES)))
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
    if name in ENCODINGS:
        return Decoder(name, WIDTH, HEIGHT).decode
    if name == EVENT_ARRAY:
        return lambda packet: event_arrays.read_cdr(packet).events
    stream = PacketStream(0.1, 100_000, follow_sensor_clock=True)

    def add(packet: NDArray[np.uint8]) -> Events:
        stream.add(packet)
        newest = stream.newest()
        return newest.buffer.window(newest.sensor_ns, 10**8) if newest else Events.empty(1, 1)

    return add


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_packets_are_refused_or_give_events_inside_the_sensor(name: str) -> None:
    """Whatever became of a packet; the ones after it are read all the same."""
    read, refused, seen = reader(name), 0, 0
    for packet in damaged(SAMPLES[name], PACKETS // len(SAMPLES)):
        try:
            events = read(packet)
        except EventDecodingError:
            refused += 1
            continue
        seen += len(events)
        assert not len(events) or (events.x.max() < events.width and events.y.max() < events.height)
    assert refused
    assert seen or name == "trigger"
