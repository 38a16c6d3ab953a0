"""docs/node.md says what the node has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from node_bench import Bench, make_bench
from rclpy.action import get_action_server_names_and_types_by_node
from rclpy.lifecycle import TransitionCallbackReturn

from evspec_ros.ros.requirements import ask_type, stamped_type
from evspec_ros.ros.tables import parameter_table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "node.md").read_text(encoding="utf-8")
POLICY = ElementTree.parse(ROOT / "config" / "security_policy.xml")  # noqa: S314 - our own
SOMETIMES = {
    "/image",
    "/image/compressed",
    "/clock",
    "/parameter_events",  # heard by some versions
    "/evspec/ask",
    "/evspec/description/stamped",
    "/evspec/get_type_description",
}
PLAIN = (
    "parameter",
    "rosout",
    "transition_event",
    "/clock",
    "/_action/",
)  # what every lifecycle node and every action has


def test_the_parameters_are_those_of_the_code() -> None:
    """`python -m evspec_ros.ros.tables` prints the table."""
    assert PAGE.endswith(parameter_table() + "\n")


def test_the_foxglove_layout_shows_topics_that_there_are() -> None:
    """Every panel of the arrangement is configured, with a topic of the node's."""
    layout = json.loads((ROOT / "config" / "foxglove.json").read_text(encoding="utf-8"))
    panels = layout["configById"]
    assert set(re.findall(r'"(\w+!\w+)"', json.dumps(layout["layout"]))) == set(panels)
    named = set(re.findall(r'"(/[\w/]+)', json.dumps(panels)))
    topics = re.findall(r"^\| `([~/][\w/]+)`", PAGE, re.MULTILINE)
    assert named <= {topic.replace("~", "/evspec") for topic in topics}


def test_topics_and_services_are_those_of_an_active_node(spinner: Spinner, checkpoints: Path) -> None:
    """Each with its type, and no other."""
    bench = make_bench(spinner, autostart=False, max_new_tokens=3)
    assert bench.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert bench.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    bench.wait_until_connected()
    of_node = "evspec", "/"
    found = [
        *bench.node.get_publisher_names_and_types_by_node(*of_node),
        *bench.node.get_subscriber_names_and_types_by_node(*of_node),
        *(
            (name, types)
            for name, types in bench.node.get_service_names_and_types_by_node(*of_node)
            if types[0].startswith("std_srvs")
        ),
        *_actions(bench),
    ]
    have = {(name, types[0]) for name, types in found if not any(part in name for part in PLAIN)}
    topics, _, _ = PAGE.partition("## When")
    rows = re.findall(r"^\| `([\w~/]+)`.*? \| `(\w+/(?:msg|srv|action)/\w+)` \|", topics, re.MULTILINE)
    told = {(f"/{name.replace('~', 'evspec').lstrip('/')}", kind) for name, kind in rows}
    if stamped_type() is None:
        told = {(name, kind) for name, kind in told if "stamped" not in name}
    if ask_type() is None:
        told = {(name, kind) for name, kind in told if "/ask" not in name}
    assert have == told


def _actions(bench: Bench) -> list[tuple[str, list[str]]]:
    """Those that the node serves, as another node learns of them."""
    return list(get_action_server_names_and_types_by_node(bench.node, "evspec", "/"))


def _allowed(kind: str, how: str) -> set[str]:
    """Full names of what the policy lets the node `how` (publish, subscribe, reply, execute)."""
    found = POLICY.iterfind(f".//{kind}s[@{how}='ALLOW']/{kind}")
    return {f"/{(one.text or '').replace('~', 'evspec').lstrip('/')}" for one in found}


@pytest.mark.parametrize("image_transport", ["raw", "compressed"])
def test_the_security_policy_allows_what_an_active_node_opens(
    spinner: Spinner, checkpoints: Path, image_transport: str
) -> None:
    """And nothing else, but for the other transport of images, simulated time and what some versions lack."""
    bench = make_bench(spinner, autostart=False, max_new_tokens=3, image_transport=image_transport)
    node = bench.node
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    for kind, how, look in (
        ("topic", "publish", node.get_publisher_names_and_types_by_node),
        ("topic", "subscribe", node.get_subscriber_names_and_types_by_node),
        ("service", "reply", node.get_service_names_and_types_by_node),
        ("action", "execute", lambda *_: _actions(bench)),
    ):
        names = (name for name, _ in look("evspec", "/"))
        opened, allowed = {name for name in names if "/_action/" not in name}, _allowed(kind, how)
        assert opened <= allowed <= opened | SOMETIMES
