"""RGB frames in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frame:
    """One RGB image: stamp_ns, nanoseconds; image, uint8 [height, width, 3] in R, G, B order."""

    stamp_ns: int
    image: NDArray[np.uint8]
