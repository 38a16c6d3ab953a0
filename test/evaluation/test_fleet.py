"""A fleet's recordings on local Ray: nothing missing and nothing twice, though a worker is killed."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.replay import fleet
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.run import evaluate_recordings
from evspec_ros.evaluation.replay.store import RunFolder
from evspec_ros.recordings.recording import WHATEVER
from evspec_ros.simulation.recorded_scene import record_scene

MODELS = Path(__file__).parents[2] / "models"
PLAN = ReplayPlan(
    str(MODELS / "tiny_video_llava"), str(MODELS / "tiny_eventgpt"), "", "none", threads=1, max_new_tokens=12
)


@pytest.fixture
def _nothing_left() -> Iterator[None]:
    """Whatever became of the test, no process of Ray outlives it."""
    yield
    left = [one for one in psutil.Process().children(recursive=True) if "ray" in " ".join(one.cmdline())]
    for one in left:
        one.kill()
    assert not left


def test_without_ray_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is loaded."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EvspecError, match="pip install ray"):
        fleet.evaluate_on_fleet([], PLAN, RunFolder(tmp_path, PLAN.as_dict()), WHATEVER, fleet.LOCAL)


def _kill_one_worker(killed: list[int]) -> None:
    """The first one that is seen at work."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not killed:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it may have ended meanwhile
                if "evaluate_whole" in " ".join(process.cmdline()):
                    time.sleep(1.0)
                    process.kill()
                    killed.append(process.pid)
                    return
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("_nothing_left")
def test_a_killed_workers_recording_runs_again_and_counts_once(tmp_path: Path) -> None:
    """The rows are those of a run in one process."""
    pytest.importorskip("ray", reason="needs ray (pip install ray), which is not installed")
    paths = [tmp_path / f"scene_{seed}" for seed in range(2)]
    for seed, path in enumerate(paths):
        record_scene(path, seed, 0.5)
    alone = RunFolder(tmp_path / "alone", PLAN.as_dict())
    evaluate_recordings(paths, PLAN, alone)
    folder = RunFolder(tmp_path / "fleet", PLAN.as_dict())
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one_worker, args=(killed,))
    killer.start()
    fleet.evaluate_on_fleet(paths, PLAN, folder, WHATEVER, fleet.LOCAL)
    killer.join()
    assert killed
    files = (tmp_path / "fleet" / "windows").iterdir()
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert max(Counter(lines).values()) == 1
    assert len(lines) == len(folder.all_rows()) == len(alone.all_rows())
    mine, theirs = (
        sorted((row["recording"], row["stamp_ns"], row["text"]) for row in one.all_rows())
        for one in (alone, folder)
    )
    assert mine == theirs
