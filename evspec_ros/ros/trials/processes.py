"""Child processes of the demo: started beside each other in a ROS domain of their own, and always ended."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from evspec_ros.errors import RosError
from evspec_ros.files import share_directory

DOMAINS = range(1, 102)  # above 101, DDS ports fall among those that Linux hands out to anybody
STOP_TIMEOUT_S = 30.0  # a description may be under way


def isolated_environment() -> dict[str, str]:
    """Variables that keep a demo to this machine, in a ROS domain nobody uses, with room for whole images."""
    profile = str(share_directory() / "config" / "fastdds.xml")
    local = (
        {"ROS_LOCALHOST_ONLY": "1"}
        if os.environ.get("ROS_DISTRO") == "humble"
        else {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    )
    return {
        "ROS_DOMAIN_ID": str(_free_domain()),
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
        **local,
    }


@contextmanager
def isolated_ros(name: str) -> Iterator[Path]:
    """ROS in this process and its children as `isolated_environment` has it, and a folder for their files,
    which begins with `name`; both are gone afterwards.
    """
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    before = dict(os.environ)
    os.environ.update(isolated_environment())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with tempfile.TemporaryDirectory(prefix=f"evspec_{name}_") as folder:
            yield Path(folder)
    finally:
        rclpy.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _free_domain() -> int:
    """A domain whose first participant's port nobody holds on this machine."""
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        if _can_bind(7410 + 250 * domain):  # unicast discovery of participant 0 (DDSI-RTPS 9.6.1.1)
            return domain
    raise RosError("Every ROS domain from 1 to 101 is in use on this machine; end a node that is not needed.")


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


class Child:
    """A Python module run as a process of its own; leaving the `with` block ends it, whatever happened.

    What it says goes to files in `folder`. It gets a process group of its own, so that Ctrl-C reaches the
    parent alone, which then ends its children in order.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self._stdout, self._stderr = folder / f"{name}.out", folder / f"{name}.err"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def output(self) -> str:
        """What it has written to stdout so far."""
        return self._stdout.read_text(encoding="utf-8")

    def finished(self) -> bool:
        """Whether it has ended well; raises RosError with its last words if it ended otherwise."""
        status = self._process.poll()
        if status:
            raise RosError(f"The {self.name} ended with status {status}: {self.last_words()}")
        return status is not None

    def cpu_s(self) -> float:
        """Processor time that it has used so far, seconds; Linux alone tells."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Memory of it that is in use now, megabytes; Linux alone tells."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def ended(self) -> bool:
        """Whether it has ended, well or otherwise."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        lines = self._stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing."

    def terminate(self) -> None:
        """Send SIGTERM, which it may answer by ending."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it: SIGINT, and SIGKILL where that does not help."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # a second Ctrl-C comes here too
            self.kill()


def as_parameter_file(parameters: Mapping[str, object]) -> str:
    """The text of a ROS parameter file for every node; JSON, which is YAML too."""
    return json.dumps({"/**": {"ros__parameters": dict(parameters)}})
