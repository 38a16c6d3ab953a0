"""What the machine tells, from a copy of a Jetson's sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diagnostic_msgs.msg", reason="needs the ROS messages")

from diagnostic_msgs.msg import DiagnosticStatus

from evspec_ros.ros import machine
from evspec_ros.ros.machine import machine_health


def _sensors(folder: Path, temperature: int) -> Path:
    files = {
        "thermal/thermal_zone0/type": "cpu-thermal",
        "thermal/thermal_zone0/temp": str(temperature),
        "thermal/thermal_zone1/type": "gpu-thermal",
        "hwmon/hwmon1/in1_label": "VDD_IN",
        "hwmon/hwmon1/in1_input": "5000",
        "hwmon/hwmon1/curr1_input": "2400",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


def test_temperature_and_power_are_told_where_readable(tmp_path: Path) -> None:
    """In degrees and watts; a zone that cannot be read is left out."""
    health = machine_health("cpu", (tmp_path,), _sensors(tmp_path, 51500))
    assert health.level == DiagnosticStatus.OK
    assert health.values["cpu-thermal_c"] == 51.5
    assert health.values["vdd_in_w"] == 12.0
    assert "gpu-thermal_c" not in health.values
    assert health.values["resident_mb"] > 10


def test_heat_and_a_full_disk_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a sentence; a folder that is not there yet is looked for above."""
    hot = machine_health("cpu", (tmp_path / "later",), _sensors(tmp_path, 99000))
    assert (hot.level, "cpu-thermal" in hot.message) == (DiagnosticStatus.WARN, True)
    monkeypatch.setattr(machine, "LITTLE_DISK_MB", 1e12)
    full = machine_health("cpu", (tmp_path / "later",), tmp_path)
    assert (full.level, "is full" in full.message) == (DiagnosticStatus.WARN, True)
