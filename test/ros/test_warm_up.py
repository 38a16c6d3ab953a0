"""Kernels are compiled once per machine, and before the first packet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Warms up as the node does, then takes in events of every encoding, on time and late, up to the five images.
NODE = """
import gc, json
import numpy as np
from numba.core.dispatcher import Dispatcher
from evspec_ros.evaluation.event_load import EVENT_ARRAY, loads
from evspec_ros.events.decoders import ENCODINGS, Decoder
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.window import WindowSize
from evspec_ros.ros.ingest import ArrayStream, PacketStream, warm_up
from serialised import serialised_packet

def kernels():
    return [each for each in gc.get_objects() if isinstance(each, Dispatcher)
            and each.py_func.__module__.startswith("evspec_ros.")]

def compiled():
    return sorted(f"{each.py_func.__module__}.{each.py_func.__name__} {signature}"
                  for each in kernels() for signature in each.signatures)

def packet(seq, encoding, data, width, height):
    return serialised_packet(10**9 + 10**6 * seq, events=data, width=width, height=height, seq=seq,
                             encoding=encoding, is_bigendian=False, time_base=10**9)

warm_up()
warm = compiled()
taken_in = set()
for load in loads(2000):
    arrays = load.encoding == EVENT_ARRAY
    stream = (ArrayStream if arrays else PacketStream)(1.0, 10**6, follow_sensor_clock=True)
    for seq in range(3):  # each at the same sensor time: the later ones are merged
        stream.add(load.data if arrays else packet(seq, load.encoding, load.data, load.width, load.height))
    window = stream.newest().window(WindowSize())
    assert len(window) and render_event_images(window).any()
    taken_in.add(load.encoding)
Decoder("trigger", 1, 1).decode(bytes(8))
assert taken_in | {"trigger"} == {*ENCODINGS, EVENT_ARRAY}
print(json.dumps({
    "kernels": len(warm),
    "compiled": sum(sum(each.stats.cache_misses.values()) for each in kernels()),
    "after_warm_up": [each for each in compiled() if each not in warm],
}))
"""


def start(cache: Path) -> dict[str, Any]:
    """What one process did that found this cache of compiled kernels."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{root}{os.pathsep}{root / 'test'}",
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", NODE]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(printed)
    return result


@pytest.mark.slow
def test_the_second_start_on_a_machine_compiles_nothing(tmp_path: Path) -> None:
    """The first one compiles every kernel while it warms up, the second one finds them all; and neither has
    to compile anything when events come.
    """
    first, second = start(tmp_path), start(tmp_path)
    assert first["compiled"] >= first["kernels"] > 10
    assert second["compiled"] == 0
    assert first["after_warm_up"] == second["after_warm_up"] == []
