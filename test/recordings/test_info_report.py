"""What `evspec info` and `evspec convert` print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recording_files import START_NS, random_events, random_frames, write_aedat4

from evspec_ros import cli
from evspec_ros.recordings import open_recording


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """An aedat4 file with events and frames."""
    path = tmp_path / "r.aedat4"
    frames = [(frame.stamp_ns, frame.image) for frame in random_frames(4, 0.1)]
    write_aedat4(path, [random_events(123_456 // 64, 0.1)], frames)
    return path


def test_json_is_one_object_with_exact_sums(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout holds the info as one JSON object and nothing else, sums beyond 2^63 exact."""
    assert cli.main(["info", "--json", str(recording)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == open_recording(recording).info().as_dict()
    assert told["events"]["sum_t_ns"] == sum(random_events(123_456 // 64, 0.1).t.tolist()) > 2**63
    assert list(told) == ["events", "triggers", "frames", "duration_s", "topics"]


def test_tables_tell_counts_rates_and_size(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table for people has topics, counts, sensor, duration and when it was."""
    assert cli.main(["info", str(recording)]) == 0
    told = capsys.readouterr().out
    for word in ("1,929", "64 x 48", "0.100 s", "EVTS", "FRME", "2023-11-14 22:13:20", "a second"):
        assert word in told, told
    assert START_NS // 10**9 == 1_700_000_000  # 2023-11-14 22:13:20 UTC


def test_a_conversion_ends_with_what_was_written(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json prints the new bag's info and nothing else."""
    command = ["convert", "--json", "--storage", "sqlite3", str(recording), str(tmp_path / "bag")]
    assert cli.main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == open_recording(tmp_path / "bag").info().as_dict()
    assert (tmp_path / "bag" / "bag.db3").is_file()


def test_a_fault_is_one_sentence_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording that cannot be read ends the command with status 1 and nothing on stdout."""
    assert cli.main(["info", "--json", str(tmp_path / "absent.aedat4")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.replace("\n", " ").count("There is no recording at") == 1
