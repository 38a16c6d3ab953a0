"""A ROS domain of its own for the tests, the tiny checkpoints, an executor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from spinner import Spinner

from evspec_ros.errors import RosError
from evspec_ros.files import share_directory
from evspec_ros.ros.requirements import require_ros


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    """rclpy, initialised in a domain that nobody else on this machine uses."""
    try:
        require_ros()
    except RosError as error:
        pytest.skip(str(error))
    import rclpy

    from evspec_ros.ros.trials.processes import isolated_environment

    before = dict(os.environ)
    os.environ.update(isolated_environment())
    rclpy.init(args=[])
    yield
    rclpy.try_shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoints() -> Path:
    """The folder of the tiny checkpoints; the test is skipped where they were not trained yet."""
    models = share_directory() / "models"
    if not (models / "tiny_eagle3" / "model.safetensors").is_file():
        pytest.skip("needs the tiny checkpoints in models/, which `evspec train all` makes")
    return models


@pytest.fixture
def spinner(ros: None) -> Iterator[Spinner]:
    """An executor for the nodes of one test, which are destroyed after it."""
    spinner = Spinner()
    yield spinner
    spinner.close()
