"""docs/architecture.md: its rooms are the package's, and its recipes are all that an addition takes.

Each toy is added to a copy of the package, in the files that the recipe numbers and in no other, and is then
used from end to end by the command `evspec`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import Writer
from serialised import serialised_packet, typestore

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
RECIPES = [title for title in SECTIONS if title.startswith("A new ")]
WIDTH, HEIGHT = 200, 100

DRAFTER = '''
from evspec_ros.speculative.drafter import NoDrafter
from evspec_ros.speculative.growth import grow_chain


class ToyDrafter(NoDrafter):
    """Drafts the last token once more."""

    name = "toy"

    def start(self, prompt, features, token, capacity):
        self._last = token

    def propose(self, limits, *_):
        return grow_chain(limits, 1, lambda drafted: (self._last, 1.0))

    def accept(self, tokens, features):
        self._last = tokens[-1]
'''
KERNEL = '''

def decode_toy(words, time_base, width, height, state, t, x, y, p):
    """A u32 an event: 7 bits of y, 8 of x, one of polarity, 16 of microseconds after time_base."""
    t[:] = time_base + (words >> 16).astype(np.int64) * 1000
    y[:], x[:], p[:] = words & 0x7F, words >> 7 & 0xFF, words >> 15 & 1
    state[EVENTS] += len(words)
    return len(words)
'''
READER = '''
import numpy as np

from evspec_ros.events.types import Events
from evspec_ros.recordings.recording import Piece, Recording, Topic


class ToyRecording(Recording):
    """A first line, then t, x, y, p of each event as int64."""

    topics = (Topic("events", "toy", 0),)

    def pieces(self, *, events=True, frames=True):
        rows = np.frombuffer(self.path.read_bytes()[4:], "<i8").reshape(-1, 4)
        t, x, y, p = rows.T.copy()
        found = Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), 200, 100)
        yield Piece("events", len(rows), events=found)
'''


class Copy:
    """A copy of the package that remembers which of its files were changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.touched: set[str] = set()
        shutil.copytree(
            ROOT / "evspec_ros", folder / "evspec_ros", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name in ("models", "config", "package.xml"):
            (folder / name).symlink_to(ROOT / name)

    def add(self, path: str, text: str) -> None:
        """Append to a file, which need not be there."""
        with (self._folder / path).open("a", encoding="utf-8") as file:
            file.write(text)
        self.touched.add(path.replace("toy", "NAME"))

    def add_row(self, path: str, table: str, row: str, imported: str = "") -> None:
        """Put a row behind the line that begins the table, and an import before it."""
        text = (self._folder / path).read_text(encoding="utf-8")
        changed, count = re.subn(
            rf"^({table}\b.*= [({{].*)$", rf"{imported}\n\1\n{row}", text, flags=re.MULTILINE
        )
        assert count == 1, f"{path} has no single table {table}"
        (self._folder / path).write_text(changed, encoding="utf-8")
        self.touched.add(path)

    def evspec(self, *arguments: str | Path, code: int = 0) -> Any:
        """What the verb prints on stdout, as JSON; on stderr where it fails."""
        result = subprocess.run(
            [sys.executable, "-m", "evspec_ros", *map(str, arguments)],
            cwd=self._folder, env={**os.environ, "PYTHONPATH": str(self._folder)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == code, result.stderr
        return result.stderr if code else json.loads(result.stdout)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """The package, to be changed."""
    return Copy(tmp_path)


def _numbered(title: str) -> set[str]:
    """The files of the package that a recipe's numbered lines name."""
    lines = re.findall(r"^\d\. .*?(?=^\d\. |^$|\Z)", SECTIONS[title], re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`(evspec_ros/[\w/.]+)`", "".join(lines)))


def _events(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64 [count, 4]: t in nanoseconds, x, y, p."""
    random = np.random.default_rng(0)
    t = np.sort(random.integers(0, 50_000, count)) * 1000
    return np.stack([t, *(random.integers(0, most, count) for most in (WIDTH, HEIGHT, 2))], axis=1)


def test_the_page_names_every_room() -> None:
    """Each folder of the package has a line of its own, and no line names one that is not there; folders in
    them may have one.
    """
    named = set(re.findall(r"^ +(\w+)/ ", SECTIONS["The rooms"], re.MULTILINE)) - {"evspec_ros"}
    rooms, inner = (
        {path.parent.name for path in ROOT.glob(f"evspec_ros/{depth}/__init__.py")} for depth in ("*", "*/*")
    )
    assert rooms <= named <= rooms | inner


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_has_at_most_five_lines_of_files_that_are_there(title: str) -> None:
    """All paths in a recipe exist, NAME being what is added."""
    assert len(re.findall(r"^\d\. ", SECTIONS[title], re.MULTILINE)) <= 5
    paths = re.findall(r"`((?:evspec_ros|test|docs|config)/[\w/.]+)`", SECTIONS[title])
    assert len(paths) >= 3
    assert not [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]


@pytest.mark.slow
def test_a_drafter_is_added_where_the_page_says(copy: Copy) -> None:
    """It drafts in a race with plain decoding, and the text is the same."""
    copy.add("evspec_ros/speculative/toy.py", DRAFTER)
    copy.add_row(
        "evspec_ros/speculative/registry.py",
        "DRAFTERS",
        '    "toy": DrafterKind(lambda *_: ToyDrafter(), reads_events=False),',
        "from evspec_ros.speculative.toy import ToyDrafter",
    )
    assert copy.touched == _numbered("A new drafter")
    options = ("--scenes", "1", "--streams", "0", "--drafter", "toy", "--json")
    rows = copy.evspec("bench", "decode", *options)["rows"]
    (toy,) = (row for row in rows if row["drafter"] == "toy" and not row["temperature"])
    assert toy["identical"]
    assert toy["acceptance_by_position"]


def test_an_encoding_is_added_where_the_page_says(copy: Copy, tmp_path: Path) -> None:
    """A bag of such packets has the events that went in."""
    copy.add("evspec_ros/events/word_kernels.py", KERNEL)
    copy.add_row(
        "evspec_ros/events/decoders.py",
        "_FORMATS",
        '    "toy": _Format(np.dtype("<u4"), True, len, decode_toy),',
        "from evspec_ros.events.word_kernels import decode_toy",
    )
    assert copy.touched == _numbered("A new encoding")
    t, x, y, p = _events(1000).T
    words = (t // 1000 << 16 | p << 15 | x << 7 | y).astype("<u4").tobytes()
    kind = "event_camera_msgs/msg/EventPacket"
    with Writer(tmp_path / "bag", version=8) as writer:
        connection = writer.add_connection("/events", kind, typestore=typestore())
        packet = serialised_packet(
            10**18, events=words, encoding="toy", width=WIDTH, height=HEIGHT, seq=0, time_base=10**18,
            is_bigendian=False,
        )  # fmt: skip
        writer.write(connection, 10**18, packet)
    found = copy.evspec("info", tmp_path / "bag", "--json")["events"]
    assert (found["count"], found["on"]) == (1000, p.sum())
    assert (found["sum_t_ns"] - 1000 * 10**18, found["sum_x"], found["sum_y"]) == (t.sum(), x.sum(), y.sum())


def test_a_recording_format_is_added_where_the_page_says(copy: Copy, tmp_path: Path) -> None:
    """Its totals are those of its events, and a file of no format is told that this one would do."""
    copy.add("evspec_ros/recordings/toy.py", READER)
    copy.add_row(
        "evspec_ros/recordings/opening.py",
        "READERS",
        '    b"toy\\\\n": ToyRecording,',
        "from evspec_ros.recordings.toy import ToyRecording",
    )
    copy.add_row("evspec_ros/choices.py", "RECORDINGS", '    "a .toy file, "')
    assert copy.touched == _numbered("A new recording format")
    events = _events(1000)
    (tmp_path / "events.toy").write_bytes(b"toy\n" + events.astype("<i8").tobytes())
    found = copy.evspec("info", tmp_path / "events.toy", "--json")["events"]
    assert found["count"] == 1000
    assert [found[name] for name in ("sum_t_ns", "sum_x", "sum_y", "on")] == events.sum(axis=0).tolist()
    (tmp_path / "nothing").write_bytes(b"\x00no recording")
    assert "a .toy file" in copy.evspec("info", tmp_path / "nothing", code=1)
