"""What every serialised ROS 2 message begins with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.decoders import PacketData

HEAD_BYTES = 4  # the encoding's name and, unused, its options
_LITTLE_ENDIAN = b"\x00\x01"


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
