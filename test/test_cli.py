"""The command's own contract: help, exit statuses, and where it writes."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evspec_ros import cli
from evspec_ros.errors import EvspecError, RecordingError

ROOT = Path(__file__).parents[1]
VERBS = ("demo", "info", "convert", "eval", "bench", "export", "doctor", "features", "train")
COMMANDS = (
    "demo", "info", "convert", "eval", "bench decode", "bench decoder", "doctor", "features extract",
    "features analyse", "train tiny", "train eagle"
)  # fmt: skip


def evspec(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own, from the source tree."""
    return subprocess.run(
        [sys.executable, "-m", "evspec_ros", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """--help exits with 0 and names every verb."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    listed = re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert set(VERBS) <= set(listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_verb_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A verb's --help exits with 0 and tells of --json."""
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command.split(), "--help"])
    assert exit_.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "",
        "sing",
        "info",
        "convert a",
        "convert a b --storage tape",
        "demo --seconds 0",
        "demo --seconds nan",
        "demo --seconds soon",
        "eval --simulated 0",
        "eval --dtype float12",
        "doctor --machine abacus",
        "doctor --kv-dtype int4",
        "bench",
        "bench decode --p-min 2",
        "bench decoder --shape 13b",
        "bench decoder --threads 0",
        "features extract",
        "features extract here --layers two",
        "train eagle --features here --online",
        "train eagle --precision int8",
    ],
)
def test_misuse_exits_with_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the parser refuses exits with 2 and prints nothing on stdout."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(command.split())
    assert exit_.value.code == 2
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("raised", "status"), [(RecordingError("Nothing is [there]."), 1), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_exit_status_follows_what_the_verb_raised(
    raised: EvspecError | KeyboardInterrupt | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours is 1, an interruption 130, success 0."""

    def run(_: argparse.Namespace) -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr(cli, "_info", run)
    assert cli.main(["info", "anything"]) == status


def test_foreign_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program itself keeps its traceback."""

    def run(_: argparse.Namespace) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_info", run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info", "anything"])


def test_failure_is_one_sentence_on_stderr(tmp_path: Path) -> None:
    """A recording that is not there: exit status 1, nothing on stdout, one line on stderr that names it."""
    missing = tmp_path / "a[b]c" / "nowhere.mcap"
    result = evspec("info", missing)
    assert result.returncode == 1
    assert not result.stdout
    assert result.stderr.count("\n") == 1
    assert str(missing) in result.stderr


@pytest.mark.parametrize("training", ["tiny", "eagle"])
def test_training_on_a_device_that_is_not_there_fails_before_it_begins(
    training: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence on stderr, status 1, and no run directory."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", training, "--device", "abacus"]) == 1
    assert "no device 'abacus'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_json_is_all_there_is_on_stdout(shared_data: Path) -> None:
    """`info --json` prints one object, the known answer of a DAVIS346 recording, and nothing else."""
    result = evspec("info", shared_data / "event-vision-library" / "sample.aedat4", "--json")
    assert result.returncode == 0, result.stderr
    info = json.loads(result.stdout)
    assert (info["events"]["count"], info["events"]["on"], info["frames"]) == (6676, 3563, 4)


def test_starting_the_command_imports_neither_torch_nor_ros() -> None:
    """Help and errors answer at once: heavy packages wait for the verb that needs them."""
    heavy = "{'torch', 'transformers', 'rclpy', 'cv2'}"
    code = f"import sys, evspec_ros.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
