"""The table of parameters: typed, described, bounded, and refused in one sentence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy")

from evspec_ros.description import Limits
from evspec_ros.errors import RosError
from evspec_ros.events.window import WindowSize
from evspec_ros.files import share_directory
from evspec_ros.ros.parameters import ROWS, Settings, changed


def test_every_parameter_says_what_it_is_for() -> None:
    """Each row has a description, and numbers have bounds that hold for their default."""
    for row in fields(Settings):
        constraint, default = ROWS[row.name], getattr(Settings(), row.name)
        assert constraint.description
        if type(default) in {int, float}:
            assert constraint.low is not None
            assert constraint.high is not None
            assert constraint.low <= default <= constraint.high


def test_decoding_limits_are_parameters_with_the_describers_defaults() -> None:
    """Each field of Limits is a parameter that may change while the node runs."""
    assert Settings().limits == Limits()
    assert all(ROWS[limit.name].live for limit in fields(Limits))


def test_a_window_is_by_time_by_count_or_by_both() -> None:
    """window_ms and window_events together; 50 ms by default."""
    assert Settings().window == WindowSize(50_000_000, 0)
    assert changed(Settings(), {"window_ms": 100.0, "window_events": 9}).window == WindowSize(100_000_000, 9)


def test_the_parameter_file_of_the_package_states_the_defaults() -> None:
    """config/evspec.yaml names known parameters alone, with the values they have anyway."""
    yaml = pytest.importorskip("yaml")
    text = Path(share_directory() / "config" / "evspec.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert changed(Settings(), values) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("temperature", -0.5, "between 0 and 5"),
        ("window_ms", 101.0, "between 1 and 100"),
        ("max_new_tokens", 0, "between 1 and 2048"),
        ("max_new_tokens", 8.0, "has to be a int"),
        ("autostart", 1, "has to be a bool"),
        ("prompt", 3, "has to be a str"),
        ("image_transport", "theora", "one of raw, compressed"),
        ("trigger", "sometimes", "one of continuous, period, activity, on_request"),
        ("drafter", "crystal_ball", "one of auto, none, prompt_lookup, eventgpt"),
        ("dtype", "int3", "one of float32, float16, bfloat16, int8, int4"),
        ("kv_dtype", "int4", "one of auto, float16, int8"),
    ],
)
def test_a_bad_value_is_refused_in_a_sentence_that_names_it(name: str, value: Any, reason: str) -> None:
    """The sentence has the parameter's name, its value and what would be right."""
    with pytest.raises(RosError) as refusal:
        changed(Settings(), {name: value})
    sentence = str(refusal.value)
    assert name in sentence
    assert reason in sentence
    assert sentence.endswith(".")


def test_a_whole_number_is_taken_where_a_fraction_is_meant() -> None:
    """`temperature: 1` in a parameter file means 1.0."""
    assert changed(Settings(), {"temperature": 1}).temperature == 1.0
