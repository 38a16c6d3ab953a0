"""Child processes end with their parent's block, and what they died of is told."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from evspec_ros.errors import RosError
from evspec_ros.ros.trials.processes import DOMAINS, Child, isolated_environment


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that does what its argument says."""
    code = "import sys; exec(sys.argv[1])"
    (tmp_path / "obedient.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return "obedient"


def wait_for(child: Child) -> None:
    """Return when the child has ended well."""
    deadline = time.monotonic() + 60
    while not child.finished():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_that_ends_well_has_its_output_kept(module: str, tmp_path: Path) -> None:
    """finished() turns true and output is what it printed."""
    with Child("talker", module, ["print('said')"], tmp_path) as child:
        wait_for(child)
        assert child.output == "said\n"


def test_a_child_that_dies_is_reported_with_its_last_words(module: str, tmp_path: Path) -> None:
    """The sentence names the child, its status and the last line that it wrote to stderr."""
    with (
        Child("talker", module, ["sys.exit('it went wrong')"], tmp_path) as child,
        pytest.raises(RosError, match="The talker ended with status 1: it went wrong"),
    ):
        wait_for(child)


def test_leaving_the_block_ends_a_child_that_would_run_on(module: str, tmp_path: Path) -> None:
    """A child is interrupted and gone when the block is left."""
    code = "import time, os; print(os.getpid(), flush=True); time.sleep(1000)"
    deadline = time.monotonic() + 60
    with Child("sleeper", module, [code], tmp_path) as child:
        while not child.output:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = int(child.output)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_demo_keeps_to_this_machine_and_to_a_domain_of_its_own() -> None:
    """The environment sets a valid domain, local discovery and the profile for large messages."""
    environment = isolated_environment()
    assert int(environment["ROS_DOMAIN_ID"]) in DOMAINS
    assert Path(environment["FASTRTPS_DEFAULT_PROFILES_FILE"]).is_file()
    assert environment.keys() & {"ROS_LOCALHOST_ONLY", "ROS_AUTOMATIC_DISCOVERY_RANGE"}
