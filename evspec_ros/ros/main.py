"""The node's executable."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from evspec_ros.errors import EvspecError
from evspec_ros.ros.memory import use_one_arena
from evspec_ros.ros.requirements import require_ros


def main(arguments: Sequence[str] | None = None) -> int:
    """Spin the node until SIGINT or SIGTERM; 1 and one sentence on stderr if it cannot start."""
    use_one_arena()
    try:
        require_ros()
        _spin(arguments)
    except EvspecError as error:
        print(f"evspec: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the node spins, or once more while it ends
        pass
    return 0


def _spin(arguments: Sequence[str] | None) -> None:
    import rclpy
    from rclpy.executors import ExternalShutdownException

    from evspec_ros.ros.node import EvspecNode

    rclpy.init(args=arguments)
    node = EvspecNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        if rclpy.ok():  # otherwise a signal came amid a transition, which then could not be published
            raise
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
