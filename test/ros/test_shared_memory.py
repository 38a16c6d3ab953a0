"""Shared memory of processes that were killed is found, that of living ones is left out."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from spinner import Spinner

from evspec_ros.doctor import software
from evspec_ros.ros import shared_memory
from evspec_ros.ros.shared_memory import FOLDER, report, stale_segments

PROCESS = """
import rclpy, time
rclpy.init(args=[])
node = rclpy.create_node("killed")
print(flush=True)
time.sleep(600)
"""


def test_a_segment_is_stale_where_nobody_holds_its_lock(tmp_path: Path) -> None:
    """Ports, other files and locks without a segment are left out."""
    for name in ("fastrtps_0123456789abcdef", "fastdds_00000000000000aa", "fastrtps_00000000000000bb"):
        (tmp_path / name).write_bytes(bytes(1_000_000))
        (tmp_path / f"{name}_el").touch()
    (tmp_path / "fastrtps_00000000000000cc_el").touch()
    (tmp_path / "fastrtps_port7411").touch()
    (tmp_path / "fastrtps_port7411_el").touch()
    (tmp_path / "psm_12345").touch()
    with (tmp_path / "fastrtps_00000000000000bb_el").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stale = stale_segments(tmp_path)
    assert [path.name for path in stale] == ["fastdds_00000000000000aa", "fastrtps_0123456789abcdef"]
    text = report(stale)
    assert "2 segments of shared memory of 2 MB" in text
    assert "fastdds_00000000000000aa" in text
    assert "`fastdds shm clean`" in text
    assert stale_segments(tmp_path / "nowhere") == []
    assert report([]) == ""


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs /dev/shm")
def test_kill_9_leaves_a_segment_that_doctor_names(spinner: Spinner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment of a real process, while it lives and after."""
    before = set(FOLDER.iterdir())
    process = subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, env=dict(os.environ))
    try:
        assert process.stdout is not None
        process.stdout.readline()
        own = {path for path in set(FOLDER.iterdir()) - before if shared_memory._LOCK.fullmatch(path.name)}
        segments = {path.with_name(path.name.removesuffix("_el")) for path in own}
        if not segments:
            pytest.skip("the middleware uses no shared memory here")
        assert not segments & set(stale_segments())
        process.send_signal(signal.SIGKILL)
        process.wait()
        stale = segments & set(stale_segments())
        assert stale
        monkeypatch.setattr(shared_memory, "stale_segments", lambda: sorted(stale))
        (found,) = (item for item in software() if item.name == "shared memory")
        assert found.version == f"{len(stale)} stale"
        assert str(min(stale)) in found.advice
    finally:
        process.kill()
        process.wait()
        for path in stale_segments():
            if path not in before:
                path.unlink()
                path.with_name(f"{path.name}_el").unlink()
