"""Decoders of the encodings in event_camera_msgs/EventPacket and Prophesee's files."""

from __future__ import annotations

import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import EventDecodingError
from evspec_ros.events import state
from evspec_ros.events.bounds import Outside, outside_in
from evspec_ros.events.line_kernels import (
    EVT3_ROLLOVER_US,
    count_evt3,
    count_libcaer_cmp,
    decode_evt3,
    decode_libcaer_cmp,
)
from evspec_ros.events.types import Events
from evspec_ros.events.word_kernels import (
    EVT2_ROLLOVER_US,
    count_evt21,
    count_evt21_legacy,
    decode_evt2,
    decode_evt21,
    decode_evt21_legacy,
    decode_libcaer,
    decode_mono,
    decode_trigger,
    is_legacy_evt21,
)

PacketData: TypeAlias = "bytes | bytearray | memoryview | array.array[int] | NDArray[np.uint8]"

_TIME_BASE_LIMIT_NS = 1 << 62  # the year 2116; later ones leave no room for the times within a packet


@dataclass(frozen=True)
class DecoderStatistics:
    """What a decoder has seen since it was made."""

    packets: int
    events: int
    triggers: int  # edges of external trigger signals
    corrupt_words: int  # words that mean nothing in this encoding; they were skipped
    outside_sensor: int  # events at coordinates that the sensor does not have; they were dropped
    unplaced: int  # events dropped at the start or after a loss, before the stream told their time and place


class Decoder:
    """Turns the packets of one stream, in their order, into events; what an encoding carries over is kept.

    evt2, evt21 and evt3 are Prophesee's formats (docs.prophesee.ai, "Data encoding formats"), with the
    sensor's own times. Of evt21 there are two word orders: that of a GenX320, and evt21_legacy, an IMX636's,
    with the upper half first. A driver may name it as OpenEB does, "evt21;width=1280;endianness=legacy";
    plain evt21 is the order that the first packet tells. libcaer, libcaer_cmp, mono and trigger are those of
    event_camera_codecs, with times that count from the packet's time base. A trigger packet holds no events,
    only edges that are counted.
    """

    def __init__(self, encoding: str, width: int, height: int) -> None:
        check(encoding, width, height)
        name = _format_name(encoding)
        self.encoding = encoding
        self.width = width
        self.height = height
        self._format = _FORMATS[name]
        self._order_open = name == "evt21" and "endianness" not in encoding
        self._packets = 0
        self._state = state.new_state()

    def resynchronise(self) -> None:
        """A packet was lost: what was carried over is not trusted before the stream says it again.

        evt2 and evt21 wait for a TIME_HIGH, evt3 for TIME_HIGH, TIME_LOW and ADDR_Y, libcaer_cmp for ADDR_X,
        vectors for their base; events before that are dropped and counted as `unplaced`. It is so at the
        start, too.
        """
        state.resynchronise(self._state)

    @property
    def rollover_ns(self) -> int:
        """After this long the encoding's clock begins again at 0; 0 for one that counts from a time base."""
        return self._format.rollover_us * 1000

    def pass_rollovers(self, count: int) -> None:
        """The clock began again unseen, so often, before the last TIME_HIGH: while packets were lost."""
        self._state[state.HIGH] += count * self._format.rollover_us

    def decode(self, data: PacketData, time_base: int = 0, *, is_bigendian: bool = False) -> Events:
        """The events of the next packet, in their order on the wire, all inside the sensor.

        data: the packet's field `events`; time_base: its field of that name, nanoseconds, ignored for
        Prophesee's formats; is_bigendian: its words have their first byte last. Raises EventDecodingError,
        before any state changes, for a length that is no whole number of words and for a time base out of
        range.
        """
        words = self._words(data, is_bigendian)
        if self._format.timed and not 0 <= time_base < _TIME_BASE_LIMIT_NS:
            raise EventDecodingError(
                f"The time base {time_base} of a {self.encoding} packet is out of range: "
                f"it must be nanoseconds from 0 to {_TIME_BASE_LIMIT_NS - 1}."
            )
        self._packets += 1
        if self._order_open:
            self._take_order(words)
        most = self._format.count(words)
        t, x, y, p = np.empty(most, np.int64), *np.empty((2, most), np.uint16), np.empty(most, np.uint8)
        origin = int(time_base) if self._format.timed else 0
        count = self._format.decode(words, origin, self.width, self.height, self._state, t, x, y, p)
        return Events(t[:count], x[:count], y[:count], p[:count], self.width, self.height)

    @property
    def statistics(self) -> DecoderStatistics:
        """A snapshot of the counters."""
        return DecoderStatistics(self._packets, *self._state[: state.UNPLACED + 1].tolist())

    @property
    def outside(self) -> Outside:
        """The events so far at places that the sensor does not have."""
        return outside_in(self._state)

    def _take_order(self, words: NDArray[Any]) -> None:
        legacy = is_legacy_evt21(words)
        if legacy is not None:
            self._format = _FORMATS["evt21_legacy" if legacy else "evt21"]
            self._order_open = False

    def _words(self, data: PacketData, is_bigendian: bool) -> NDArray[Any]:
        raw = np.frombuffer(data, np.uint8)
        size = self._format.word.itemsize
        if len(raw) % size:
            raise EventDecodingError(
                f"A {self.encoding} packet of {len(raw)} bytes is damaged: its words are {size} bytes each."
            )
        if is_bigendian:
            raw = raw.view(self._format.swapped or self._format.word).byteswap().view(np.uint8)
        words = raw.view(self._format.word)
        words = words if words.flags.aligned else words.copy()
        words.flags.writeable = (
            False  # read-only and aligned whatever came in: one compiled kernel serves all
        )
        return words


def check(encoding: str, width: int, height: int) -> None:
    """Raises EventDecodingError for an encoding that is not known and for a sensor that cannot be."""
    if _format_name(encoding) not in _FORMATS:
        raise EventDecodingError(
            f"The event encoding {encoding!r} is unknown: known ones are {', '.join(ENCODINGS)}."
        )
    if not (0 < width <= 1 << 16 and 0 < height <= 1 << 16):
        raise EventDecodingError(
            f"A sensor of {width} x {height} pixels is impossible: give each side as 1 to 65536 pixels."
        )


def warm_up() -> None:
    """Compiles the decoders, or loads them from numba's cache, so that no packet has to wait for it."""
    for encoding in ENCODINGS:
        Decoder(encoding, 1, 1).decode(b"")


@dataclass(frozen=True, eq=False)
class _Format:
    word: np.dtype[Any]
    timed: bool  # times count from the packet's time_base
    count: Callable[[NDArray[Any]], int]  # how many events there are at most
    decode: Callable[..., int]  # writes the events into t, x, y, p and returns their number
    rollover_us: int = 0  # the clock's period, where times do not count from a time_base
    swapped: np.dtype[Any] | None = None  # what changes its order of bytes as a whole; None: word


def _format_name(encoding: str) -> str:
    """The format behind an encoding's name, which may carry options as in OpenEB: "EVT21;width=320"."""
    name, *options = encoding.lower().split(";")
    return "evt21_legacy" if name == "evt21" and "endianness=legacy" in options else name


_FORMATS = {
    "evt2": _Format(np.dtype("<u4"), False, len, decode_evt2, EVT2_ROLLOVER_US),
    "evt21": _Format(np.dtype("<i8"), False, count_evt21, decode_evt21, EVT2_ROLLOVER_US),
    "evt21_legacy": _Format(
        np.dtype("<i8"), False, count_evt21_legacy, decode_evt21_legacy, EVT2_ROLLOVER_US, np.dtype("<u4")
    ),
    "evt3": _Format(np.dtype("<u2"), False, count_evt3, decode_evt3, EVT3_ROLLOVER_US),
    "libcaer_cmp": _Format(np.dtype("<u2"), True, count_libcaer_cmp, decode_libcaer_cmp),
    "libcaer": _Format(np.dtype("<i8"), True, len, decode_libcaer, swapped=np.dtype("<u4")),
    "mono": _Format(np.dtype("<i8"), True, len, decode_mono),
    "trigger": _Format(np.dtype("<i8"), True, len, decode_trigger),
}
ENCODINGS: tuple[str, ...] = tuple(_FORMATS)
