"""The chain from scenes to results, killed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

import chain_links
import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = get_context("forkserver")  # its children need not import torch
KILLS = 3
LINKS = {  # and how long a file it may write until it dies
    chain_links.make_checkpoints: 20_000_000, chain_links.extract_features: 20_000,
    chain_links.train_eagle3: 60_000, chain_links.find_results: 60_000,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started, so that a link's time is its own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(Path(__file__).parent))))
    CONTEXT.set_forkserver_preload(["chain_links"])
    process = CONTEXT.Process()
    process.start()
    process.join()


def _start(link: Callable[[Path], None], folder: Path, longest: int | None = None) -> BaseProcess:
    process = CONTEXT.Process(target=chain_links.run, args=(link, folder, longest))
    process.start()
    return process


def _finish(link: Callable[[Path], None], folder: Path) -> None:
    process = _start(link, folder)
    process.join()
    assert process.exitcode == 0


def _results(folder: Path) -> dict[str, bytes]:
    """Every file but the state of trainings and what a kill has left unfinished."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.suffix not in {".pt", ".part"} and not path.name.startswith(".")
    }


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.__name__)
def test_what_was_killed_again_and_again_ends_as_if_nothing_had_happened(
    link: Callable[[Path], None], tmp_path: Path
) -> None:
    """In the middle of a file and by SIGKILL at random moments, then the same command once more: the same
    files to the byte.
    """
    started = time.monotonic()
    _finish(link, tmp_path / "whole")
    seconds = time.monotonic() - started
    process = _start(link, tmp_path / "killed", LINKS[link])
    process.join()
    assert process.exitcode == -signal.SIGXFSZ
    random, killed = Random(link.__name__), 0
    while killed < KILLS:
        process = _start(link, tmp_path / "killed")
        process.join(random.uniform(0, seconds / 2))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:  # sooner than the first time
            shutil.rmtree(tmp_path / "killed")
            seconds /= 2
    _finish(link, tmp_path / "killed")
    results = _results(tmp_path / "whole")
    assert len(results) > 2
    assert _results(tmp_path / "killed") == results


def test_workers_end_with_the_process_that_was_killed(tmp_path: Path) -> None:
    """Those that have something to do and those that wait for it."""
    process = _start(chain_links.keep_workers, tmp_path)
    workers = _eventually(
        lambda: [int(path.stem) for path in tmp_path.glob("*.pid")], lambda found: len(found) == 2
    )
    assert all(map(_runs, workers))
    process.kill()
    process.join()
    _eventually(lambda: [*filter(_runs, workers)], lambda left: not left)


def _runs(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _eventually(find: Callable[[], list[int]], wanted: Callable[[list[int]], bool]) -> list[int]:
    """What is found as soon as it is what is wanted, within half a minute."""
    deadline = time.monotonic() + 30
    while not wanted(found := find()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found
