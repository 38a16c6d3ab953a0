"""The chain from scenes to results, killed."""

from __future__ import annotations

import os
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
KILLS = 4
LINKS = (
    chain_links.make_checkpoints, chain_links.extract_features, chain_links.train_eagle3,
    chain_links.find_results,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(Path(__file__).parent))))
    CONTEXT.set_forkserver_preload(["chain_links"])


def _start(link: Callable[[Path], None], folder: Path) -> BaseProcess:
    process = CONTEXT.Process(target=chain_links.run, args=(link, folder))
    process.start()
    return process


def _finish(link: Callable[[Path], None], folder: Path) -> float:
    """Run a link to its end; how many seconds it took."""
    started = time.monotonic()
    process = _start(link, folder)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


def _results(folder: Path) -> dict[str, bytes]:
    """Every file but the state of trainings and what a kill has left unfinished."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    left = (".pt", ".part")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.suffix not in left and not path.name.startswith(".")
    }


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.__name__)
def test_what_was_killed_again_and_again_ends_as_if_nothing_had_happened(
    link: Callable[[Path], None], tmp_path: Path
) -> None:
    """SIGKILL at random moments, then the same command once more: the same files to the byte."""
    _finish(link, tmp_path / "warm")
    seconds = _finish(link, tmp_path / "whole")
    random, killed = Random(link.__name__), 0
    for _ in range(KILLS):
        process = _start(link, tmp_path / "killed")
        process.join(random.uniform(0, seconds / 2))
        process.kill()
        process.join()
        killed += process.exitcode != 0
    assert killed
    _finish(link, tmp_path / "killed")
    whole = _results(tmp_path / "whole")
    assert len(whole) > 2
    assert _results(tmp_path / "killed") == whole
