"""What every serialised ROS 2 message begins with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.decoders import PacketData

HEAD_BYTES = 4  # the encoding's name and, unused, its options
_LITTLE_ENDIAN = b"\x00\x01"
_ORDERS = {b"\x00\x00": ">", _LITTLE_ENDIAN: "<"}  # as struct names them


def body_and_order(message: PacketData, what: str) -> tuple[NDArray[np.uint8], str]:
    """The bytes behind the four that name the encoding, a view, and "<" or ">", the order of a number's
    bytes; EventDecodingError where it is not plain CDR. what: the message, for the sentence.
    """
    data = np.frombuffer(message, np.uint8)
    order = _ORDERS.get(data[:2].tobytes())
    if order is None:
        raise EventDecodingError(
            f"An {what} begins with {data[:HEAD_BYTES].tobytes().hex(' ') or 'nothing'}, which is not CDR "
            "(00 00 or 00 01): it is damaged, or serialised in a way that is not known."
        )
    return data[HEAD_BYTES:], order


def little_endian_body(message: PacketData, what: str) -> NDArray[np.uint8]:
    """The bytes behind the four that name the encoding, a view; EventDecodingError where that is not
    little-endian CDR. what: the message, for the sentence.
    """
    data = np.frombuffer(message, np.uint8)
    if data[:2].tobytes() != _LITTLE_ENDIAN:
        raise EventDecodingError(
            f"An {what} begins with {data[:HEAD_BYTES].tobytes().hex(' ') or 'nothing'}, which is not "
            "little-endian CDR (00 01 00 00): let its publisher run on a little-endian machine."
        )
    return data[HEAD_BYTES:]
