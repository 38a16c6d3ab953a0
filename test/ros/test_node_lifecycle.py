"""The node's life: starting, configuring, failing, simulated time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import Bench, at_least, make_bench
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock

from evspec_ros.errors import RosError
from evspec_ros.ros import configuring
from evspec_ros.ros.node import EvspecNode
from evspec_ros.ros.qos import EVENT_QOS, IMAGE_QOS


@pytest.fixture
def inactive(spinner: Spinner, checkpoints: Path) -> Bench:
    """A node that was started and waits to be configured."""
    return make_bench(spinner, autostart=False, max_new_tokens=12)


def test_the_lifecycle_can_be_walked_through_twice(inactive: Bench) -> None:
    """Configure, activate, deactivate, clean up, and again; each succeeds and nothing is left over."""
    walker = inactive.node
    for _ in range(2):
        for transition in ("configure", "activate", "deactivate", "cleanup"):
            assert getattr(walker, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS
        assert inactive.set_parameter("drafter", "none") == ""
    inactive.until(lambda: walker.count_publishers("/evspec/description") == 0, "the publishers' end")
    assert walker.trigger_shutdown() == TransitionCallbackReturn.SUCCESS


def test_kernels_are_compiled_before_the_node_activates(
    inactive: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configuring warms up what the first packets need."""
    warmed_up: list[str] = []
    monkeypatch.setattr(configuring, "warm_up", lambda: warmed_up.append("once"))
    assert inactive.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert warmed_up == ["once"]


def test_a_missing_checkpoint_fails_configuring_and_the_node_stays(inactive: Bench) -> None:
    """Configuring fails, diagnostics say why, and with the right path it succeeds."""
    good = inactive.node.get_parameter("target").value
    assert inactive.set_parameter("target", str(Path(good).with_name("nowhere"))) == ""
    assert inactive.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    status = inactive.until(lambda: inactive.health("descriptions"), "diagnostics")
    assert status.level == DiagnosticStatus.ERROR
    assert "nowhere" in status.message
    assert inactive.set_parameter("target", good) == ""
    assert inactive.node.trigger_configure() == TransitionCallbackReturn.SUCCESS


@pytest.mark.parametrize("name", ["target", "event_model", "draft_head", "draft_head_dir"])
def test_a_path_outside_the_models_folders_is_refused(inactive: Bench, tmp_path: Path, name: str) -> None:
    """Over the network nobody makes the node read or write elsewhere, by dots and links neither."""
    models = Path(inactive.node.get_parameter("target").value).parent
    (tmp_path / "elsewhere").mkdir()
    refused = "lies outside the folders of the checkpoints"
    assert refused in inactive.set_parameter(name, str(tmp_path / "elsewhere"))
    assert refused in inactive.set_parameter(name, f"{models}/../../../elsewhere")
    assert inactive.set_parameter(name, str(models / "another")) == ""


def test_profiles_of_topics_are_overridden_at_the_start(spinner: Spinner, checkpoints: Path) -> None:
    """By the parameters that rclpy names; activated twice, the node keeps them, and others have their own."""
    depth = "qos_overrides./events.subscription.depth"
    bench = make_bench(
        spinner, **{"autostart": False, depth: 7, "qos_overrides./evspec/result.publisher.depth": 3}
    )
    assert bench.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    for _ in range(2):
        assert bench.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        assert bench.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert bench.node.get_parameter(depth).value == 7
    assert bench.node.get_parameter("qos_overrides./image.subscription.depth").value == IMAGE_QOS.depth
    assert EVENT_QOS.depth == 1000


def test_autostart_activates_the_node_by_itself(spinner: Spinner, checkpoints: Path) -> None:
    """With nobody to manage it, a started node describes."""
    bench = make_bench(spinner, max_new_tokens=3)
    bench.wait_until_connected()
    assert bench.describe_now()["tokens"] <= 3


def test_a_new_head_is_kept_when_the_node_is_deactivated(
    spinner: Spinner, checkpoints: Path, tmp_path: Path
) -> None:
    """Diagnostics say what drafts until it does, and why it could not be saved."""
    bench = make_bench(
        spinner, autostart=False, draft_head="new", draft_head_dir=str(tmp_path / "head"), max_new_tokens=12
    )
    walker = bench.node
    assert walker.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert walker.trigger_activate() == TransitionCallbackReturn.SUCCESS
    bench.wait_until_connected()
    assert bench.describe_now()["drafter"] == "combined without a head"
    values = bench.until(lambda: bench.values("descriptions"), "diagnostics")
    assert "a new draft head learns" in values["drafter_reason"]
    assert walker._describer is not None
    learner = walker._describer._learner
    learner.steps += 1  # type: ignore[attr-defined]
    assert walker.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert (tmp_path / "head" / "config.json").is_file()

    (tmp_path / "file").write_text("")
    learner._store = replace(learner._store, directory=tmp_path / "file")  # type: ignore[attr-defined]
    assert walker.trigger_activate() == TransitionCallbackReturn.SUCCESS
    learner.steps += 1  # type: ignore[attr-defined]
    assert walker.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    values = bench.until(
        lambda: at_least(bench.values("descriptions"), "learning_failures", 1), "the problem"
    )
    assert "cannot be written" in values["last_error"]


def test_a_saved_head_of_no_use_is_told_in_diagnostics(
    spinner: Spinner, checkpoints: Path, tmp_path: Path
) -> None:
    """A new one begins."""
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    bench = make_bench(spinner, autostart=False, draft_head="new", draft_head_dir=str(tmp_path))
    assert bench.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    told = bench.until(lambda: bench.values("descriptions").get("left_out", ""), "diagnostics")
    assert told.startswith("A new draft head begins, as the one in ")


def test_simulated_time_that_jumps_back_resets_the_streams(spinner: Spinner, checkpoints: Path) -> None:
    """With use_sim_time the node's clock is /clock's, and its jump back empties the buffers."""
    bench = make_bench(spinner, use_sim_time=True, max_new_tokens=3)
    clock = bench.cameras.create_publisher(Clock, "/clock", 10)
    bench.wait_until_connected()

    def tick(seconds: int) -> bool:
        message = Clock()
        message.clock.sec = seconds
        clock.publish(message)
        return bench.node.get_clock().now().nanoseconds == seconds * 10**9

    bench.until(lambda: tick(1000), "the clock")
    result = bench.describe_now(1000 * 10**9)
    assert result["age_ms"] == pytest.approx(0.0, abs=1.0)
    bench.until(lambda: tick(10), "the clock going back")
    bench.until(lambda: at_least(bench.values("events"), "restarts", 1), "the restart")


def test_a_bad_start_value_is_one_sentence(ros: None) -> None:
    """A node that is started with an impossible parameter says which, and does not start."""
    with pytest.raises(RosError, match="window_ms"):
        EvspecNode(parameter_overrides=[Parameter("window_ms", value=1000.0)])
    with pytest.raises(RosError, match="trigger"):
        EvspecNode(parameter_overrides=[Parameter("trigger", value="sometimes")])


def test_max_new_tokens_beyond_the_target_s_positions_is_refused(inactive: Bench) -> None:
    """At once while the node is configured; a start value when it is being configured, which then fails."""
    assert inactive.set_parameter("max_new_tokens", 2000) == ""
    assert inactive.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    status = inactive.until(lambda: inactive.health("descriptions"), "diagnostics")
    assert "max_new_tokens is 2000 and" in status.message
    assert inactive.set_parameter("max_new_tokens", 12) == ""
    assert inactive.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert "of the target's 1024 positions" in inactive.set_parameter("max_new_tokens", 2000)
    assert "shorten the prompt" in inactive.set_parameter("prompt", "word " * 3000)
    assert inactive.node.get_parameter("max_new_tokens").value == 12
    assert inactive.set_parameter("max_new_tokens", 13) == ""
