"""The node's executable."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from evspec_ros.errors import EvspecError, RosError
from evspec_ros.ros import shared_memory
from evspec_ros.ros.memory import use_one_heap
from evspec_ros.ros.requirements import require_ros

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LEAVE_S = 0.7  # from the first signal until the process is gone, whatever computes then
# So long a thread waits for another one that runs Python; by default 5 ms, as long as a callback may take.
SWITCH_S = 0.0005
PATIENCE_S = 2.0  # signals that come once more within this time of the end are not heard


def main(arguments: Sequence[str] | None = None) -> int:
    """Spin the node until SIGINT or SIGTERM; 1 and one sentence on stderr if it cannot start."""
    for number in SIGNALS:  # while modules are imported there is nothing to clean up
        signal.signal(number, lambda *_: os._exit(0))
    use_one_heap()
    sys.setswitchinterval(SWITCH_S)
    try:
        require_ros()
        _spin(arguments)
    except EvspecError as error:
        print(f"evspec: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the node spins
        pass
    return 0


def _spin(arguments: Sequence[str] | None) -> None:
    import rclpy
    from rclpy.executors import ExternalShutdownException

    from evspec_ros.ros.node import EvspecNode

    signal.signal(signal.SIGINT, signal.default_int_handler)  # rclpy's handlers call those that are there
    signal.signal(signal.SIGTERM, lambda *_: None)
    _leave_in_time()
    try:
        rclpy.init(args=arguments)
    except RuntimeError as error:
        raise RosError(f"ROS cannot be started with these arguments: {_first_line(error)}.") from error
    tell_of_stale_memory()
    node = None
    try:
        node = EvspecNode()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        if rclpy.ok():  # otherwise a signal came amid a transition, which then could not be published
            raise
    finally:
        _hear_no_signals()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        for number in SIGNALS:  # rclpy put the handlers back that were there, and Python would let them kill
            signal.signal(number, signal.SIG_IGN)


def _leave_in_time() -> None:
    """Have a thread end the process LEAVE_S after the first signal: the main thread may be in the midst of a
    prefill or of building an engine, where no Python handler runs.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def leave() -> None:
        os.read(read, 1)
        time.sleep(LEAVE_S)
        os.write(2, b"evspec: ended in the midst of a step, which would have taken longer.\n")
        os._exit(0)

    threading.Thread(target=leave, name="leave", daemon=True).start()


def tell_of_stale_memory() -> None:
    """Log what killed processes left in shared memory, a node of this kind among them perhaps."""
    from rclpy.logging import get_logger

    if left := shared_memory.report(shared_memory.stale_segments()):
        get_logger("evspec").warning(left)


def _hear_no_signals() -> None:
    """Let the node end in peace; a signal that comes when that takes too long ends it at once."""
    begun = time.monotonic()

    def leave(*_: object) -> None:
        if time.monotonic() - begun > PATIENCE_S:
            os._exit(1)

    for number in SIGNALS:
        signal.signal(number, leave)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(", at ")[0].rstrip(". ")


if __name__ == "__main__":
    sys.exit(main())
