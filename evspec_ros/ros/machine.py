"""What the machine under the node tells: memory, the disk that is written to, a Jetson's sensors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticStatus

from evspec_ros.ros.diagnostics import Health

LITTLE_DISK_MB = 100.0  # less room than this, and logs, heads and plans may be cut off
HOT_C = 95.0  # a Jetson throttles hereabouts
_THERMAL, _POWER = "thermal/thermal_zone*", "hwmon/hwmon*"


def machine_health(device: str, folders: tuple[Path, ...], sensors: Path = Path("/sys/class")) -> Health:
    """Memory of this process and of the device, room in the folders that are written to, temperature and
    power where sysfs tells; a warning where a disk is full or the machine hot.
    """
    values: dict[str, Any] = {"resident_mb": _resident_mb(), **_gpu_memory(device)}
    temperatures, powers = _temperatures(sensors), _powers(sensors)
    values |= {f"{name}_c": value for name, value in temperatures.items()}
    values |= {f"{name}_w": value for name, value in powers.items()}
    free = {folder: free_mb(folder) for folder in folders}
    values |= {f"free_mb {folder}": round(room) for folder, room in free.items()}
    full = [folder for folder, room in free.items() if room < LITTLE_DISK_MB]
    if full:
        told = f"The disk of {full[0]} is full: {free[full[0]]:.0f} MB are left for logs, heads and plans."
        return Health("machine", DiagnosticStatus.WARN, told, values)
    hottest = max(temperatures, key=lambda name: temperatures[name], default="")
    if hottest and temperatures[hottest] >= HOT_C:
        told = f"The sensor {hottest} tells {temperatures[hottest]:.0f} degrees Celsius: give it air."
        return Health("machine", DiagnosticStatus.WARN, told, values)
    return Health("machine", DiagnosticStatus.OK, "within its limits", values)


def free_mb(folder: Path) -> float:
    """Room on the disk of a folder, which need not be there yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free / 1e6


def log_folder() -> Path:
    """Where ROS writes its logs."""
    home = os.environ.get("ROS_HOME") or Path.home() / ".ros"
    return Path(os.environ.get("ROS_LOG_DIR") or Path(home) / "log")


def _resident_mb() -> float | str:
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return "unknown"
    return round(int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _gpu_memory(device: str) -> dict[str, float]:
    if not device.startswith("cuda"):
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"gpu_free_mb": round(free / 1e6), "gpu_total_mb": round(total / 1e6)}


def _temperatures(sensors: Path) -> dict[str, float]:
    """Degrees Celsius of each thermal zone."""
    found = {
        zone.name: (_read(zone / "type"), _read(zone / "temp")) for zone in sorted(sensors.glob(_THERMAL))
    }
    return {kind or name: int(value) / 1e3 for name, (kind, value) in found.items() if _number(value)}


def _powers(sensors: Path) -> dict[str, float]:
    """Watts of each rail of an INA3221, the Jetson's power monitor: millivolts times milliamperes."""
    found: dict[str, float] = {}
    for monitor in sorted(sensors.glob(_POWER)):
        for label in sorted(monitor.glob("in*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            volts, amperes = _read(monitor / f"in{number}_input"), _read(monitor / f"curr{number}_input")
            if _number(volts) and _number(amperes):
                found[_read(label).lower()] = round(int(volts) * int(amperes) / 1e6, 2)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(text: str) -> bool:
    return text.removeprefix("-").isdigit()
