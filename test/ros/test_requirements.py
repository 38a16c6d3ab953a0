"""Where ROS is missing, one sentence says what to install."""

from __future__ import annotations

import pytest

from evspec_ros.errors import RosError
from evspec_ros.ros import requirements
from evspec_ros.ros.main import main


def test_a_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node's executable prints the sentence and exits with status 1."""
    monkeypatch.setattr(requirements, "PACKAGES", {"no_such_msgs.msg": "install it from the moon"})
    with pytest.raises(RosError, match="no_such_msgs"):
        requirements.require_ros()
    assert main([]) == 1
    assert "install it from the moon." in capsys.readouterr().err
