"""What the package logs while a node configures reaches the node's log."""

from __future__ import annotations

import logging
import threading

from evspec_ros.ros.log import forwarded


class _Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, line: str) -> None:
        self.lines.append(("info", line))

    def warning(self, line: str) -> None:
        self.lines.append(("warning", line))

    def error(self, line: str) -> None:
        self.lines.append(("error", line))


def test_each_severity_keeps_its_own_and_details_stay_out() -> None:
    """Progress, warnings and errors; not what is for debugging, nor what is logged before or after."""
    package, log = logging.getLogger("evspec_ros.engines.some"), _Log()
    package.info("before")
    with forwarded(log):
        package.debug("detail")
        package.info("%d %% done", 40)
        package.warning("done in another way")
        package.error("not done")
    package.info("after")
    assert log.lines == [("info", "40 % done"), ("warning", "done in another way"), ("error", "not done")]


def test_two_nodes_of_a_process_log_their_own() -> None:
    """Both configure at once, each in a thread of its own."""
    logs = [_Log(), _Log()]
    both_in = threading.Barrier(2)

    def configure(number: int) -> None:
        with forwarded(logs[number]):
            both_in.wait(10)
            logging.getLogger("evspec_ros").info("node %d", number)
            both_in.wait(10)

    threads = [threading.Thread(target=configure, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [log.lines for log in logs] == [[("info", "node 0")], [("info", "node 1")]]
