"""The race of peers: what is measured, that a failure is a row, and that a new peer is one file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evspec_ros import cli
from evspec_ros.evaluation import peers as room
from evspec_ros.evaluation.peer_race import BASELINE, OURS, race_peers
from evspec_ros.evaluation.peers import PeerModels, PeerText, all_peers
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.windows import Window

MODELS = PeerModels(Path(), Path(), {}, 8)
WINDOW = Window(0, Events.empty(4, 4), (Frame(0, np.zeros((4, 4, 3), np.uint8)),))


class FakePeer:
    """Takes as long as it is told."""

    about = "a fake"

    def __init__(self, name: str, total_ms: float, text: str = "a", problem: str = "") -> None:
        self.name, self._total_ms, self._text, self._problem = name, total_ms, text, problem
        self.streams = 0

    def load(self) -> None:
        """Nothing."""

    def begin_stream(self) -> None:
        """Counts."""
        self.streams += 1

    def describe(self, _: Window) -> PeerText:
        """Ten tokens."""
        if self._problem:
            raise RuntimeError(self._problem)
        return PeerText(tuple(range(10)), self._text, self._total_ms / 2, self._total_ms)


def test_ratios_are_those_of_combined_to_each() -> None:
    """40 ms a window beside 10 ms: four times as long, a fourth of the tokens a second."""
    fakes = [
        FakePeer(OURS, 10),
        FakePeer(BASELINE, 40),
        FakePeer("else", 20, "b"),
        FakePeer("bad", 1, "", "No!"),
    ]
    rows = {row.peer: row for row in race_peers(fakes, [[WINDOW] * 3, [WINDOW]])}
    assert (rows[BASELINE].slower_window, rows[BASELINE].slower_tokens) == (4.0, 4.0)
    assert (rows[BASELINE].tokens_per_second, rows[BASELINE].windows) == (250.0, 4)
    assert (rows[OURS].same_text, rows["else"].same_text) == (1.0, 0.0)
    assert rows["bad"].failed == "RuntimeError: No!"
    assert [fake.streams for fake in fakes] == [2, 2, 2, 0]


def test_a_file_in_the_room_is_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else has to be changed."""
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    name = 'mine'\n    about = ''\n\n\ndef peers(models):\n    return [Mine()]\n"
    )
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    names = [peer.name for peer in all_peers(MODELS)]
    assert names == sorted(names)
    assert {"mine", "evspec combined", "transformers generate"} <= set(names)


def test_transformers_and_we_write_the_same_about_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """On one checkpoint, in one run; what transformers cannot do is a row with its reason."""
    chosen = ("evspec none", "evspec combined", "transformers generate", "transformers prompt lookup")
    options = [word for name in chosen for word in ("--peer", name)]
    options += ["--streams", "1", "--max-new-tokens", "12", "--threads", "1", "--no-memory", "--json"]
    assert cli.main(["bench", "peers", *options]) == 0
    rows = {row["peer"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == set(chosen)
    assert all(row["same_text"] == 1.0 for row in rows.values() if not row["failed"])
    assert rows["transformers generate"]["slower_window"] > 1.5
    assert not [name for name in chosen[:3] if rows[name]["failed"]]
    assert cli.main(["bench", "peers", "--peer", "nobody"]) == 1


@pytest.mark.slow
def test_the_memory_of_a_peer_is_that_of_a_process_of_its_own() -> None:
    """A hundred megabytes at least: torch alone takes more."""
    models = Path(__file__).parents[2] / "models"
    given = ("evspec none", models / "tiny_video_llava", models / "tiny_eventgpt", 4)
    command = [sys.executable, "-m", "evspec_ros.evaluation.peer_race", *map(str, given)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert float(result.stdout) > 100, result.stderr
