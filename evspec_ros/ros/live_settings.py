"""The node's parameters as ROS has them: their declaration on a node, and what follows a change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from evspec_ros.choices import NEW_HEAD
from evspec_ros.errors import EvspecError, Failure, RosError
from evspec_ros.files import share_directory
from evspec_ros.ros.guard import Guard
from evspec_ros.ros.parameters import ROWS, Settings, changed


def declare(node: Node) -> Settings:
    """Declare every parameter on the node and return its start values; RosError for a bad one."""
    defaults = Settings()
    try:
        for name in ROWS:
            node.declare_parameter(name, getattr(defaults, name), _descriptor(name, defaults))
    except ParameterException as error:
        raise RosError(f"The node cannot start: {error}.") from error
    settings = changed(defaults, {name: node.get_parameter(name).value for name in ROWS})
    node.set_parameters(_with_fractions(list(node.get_parameters(list(ROWS)))))
    return settings


def _with_fractions(parameters: list[Parameter]) -> list[Parameter]:
    """The same, `1` being 1.0 where a fraction is meant, so that nobody reads an integer there."""
    defaults = Settings()
    return [
        Parameter(one.name, value=float(one.value))
        if type(one.value) is int and isinstance(getattr(defaults, one.name, None), float)
        else one
        for one in parameters
    ]


def _descriptor(name: str, defaults: Settings) -> ParameterDescriptor:
    row, default = ROWS[name], getattr(defaults, name)
    descriptor = ParameterDescriptor(name=name, description=row.description)
    descriptor.additional_constraints = " ".join(
        [f"One of {', '.join(row.choices)}."] * bool(row.choices)
        + ["Changeable while running." if row.live else "Read when the node is configured."]
    )
    if isinstance(default, float):
        descriptor.dynamic_typing = True  # takes `1` where `1.0` is meant; changed() checks the rest
        descriptor.floating_point_range = [FloatingPointRange(from_value=row.low, to_value=row.high)]
    elif row.low is not None and row.high is not None:
        descriptor.integer_range = [IntegerRange(from_value=int(row.low), to_value=int(row.high))]
    return descriptor


def trusted_folders(settings: Settings) -> set[Path]:
    """Those that paths may lie in while the node runs: of the paths that it started with, the package's."""
    given = [getattr(settings, name) for name, row in ROWS.items() if row.path]
    return {Path(path).resolve().parent for path in given if path not in {"", NEW_HEAD}} | {
        (share_directory() / "models").resolve()
    }


class LiveSettings:
    """The settings of a running node, replaced as a whole at every accepted change.

    `configured()` says whether the node is past configuring, when only the rows marked live may change and
    `check` tells what the loaded models have no room for; `on_change` follows every change.
    """

    def __init__(
        self,
        node: Node,
        configured: Callable[[], bool],
        check: Callable[[Settings], None],
        on_change: Callable[[], None],
        guard: Guard,
    ) -> None:
        self.current = declare(node)
        self._folders = trusted_folders(self.current)
        self._configured = configured
        self._check = check
        self._on_change = on_change
        node.add_on_set_parameters_callback(guard("A parameter could not be set", self._set, _refused))
        if hasattr(node, "add_pre_set_parameters_callback"):  # since Iron; on Humble `1` stays an integer
            node.add_pre_set_parameters_callback(_with_fractions)

    def _set(self, parameters: list[Parameter]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in parameters if parameter.name in ROWS}
        before = self.current
        try:
            settings = changed(before, values)
            self._refuse_fixed(before, settings)
            self._refuse_foreign(before, settings)
            if self._configured():
                self._check(settings)
        except EvspecError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.current = settings
        try:
            self._on_change()
        except BaseException:
            self.current = before
            raise
        return SetParametersResult(successful=True)

    def _refuse_fixed(self, before: Settings, after: Settings) -> None:
        """Raise RosError for a change of what was read; the same value again is fine, as in a file."""
        fixed = [
            name
            for name, row in ROWS.items()
            if not row.live and getattr(before, name) != getattr(after, name)
        ]
        if fixed and self._configured():
            raise RosError(
                f"Parameter {fixed[0]} is read when the node is configured: deactivate and clean up the node "
                "first, set it, then configure it again."
            )

    def _refuse_foreign(self, before: Settings, after: Settings) -> None:
        """Raise RosError for a path outside the trusted folders: whoever reaches the node over the network
        may choose among the robot's models, not read or write elsewhere.
        """
        for name in (name for name, row in ROWS.items() if row.path):
            path = getattr(after, name)
            if path in {"", NEW_HEAD, getattr(before, name)}:
                continue
            if not any(Path(path).resolve().is_relative_to(folder) for folder in self._folders):
                folders = ", ".join(sorted(map(str, self._folders)))
                raise RosError(
                    f"Parameter {name} is {path!r}, which lies outside the folders of the checkpoints that "
                    f"the node started with ({folders}): give it at the start, in a parameter file or by -p."
                )


def _refused(failure: Failure, _: list[Parameter]) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=f"The parameter could not be set: {failure.problem}.")
