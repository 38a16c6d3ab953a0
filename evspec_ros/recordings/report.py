"""What `evspec info` and `evspec convert` show."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from evspec_ros.recordings.convert import convert
from evspec_ros.recordings.opening import open_recording
from evspec_ros.recordings.recording import WHATEVER, EventTotals, RecordingInfo, Topic, Wanted

YEAR_2000_NS = 946_684_800_000_000_000  # earlier times count from a start that the recording does not tell


def read_info(path: Path, wanted: Wanted = WHATEVER) -> RecordingInfo:
    """What is in a recording, with progress on stderr meanwhile. Raises RecordingError."""
    recording = open_recording(path, wanted)
    with _progress() as progress:
        progress.add_task(f"reading {path}", total=None)
        return recording.info()


def print_info(path: Path, info: RecordingInfo) -> None:
    """Tables of what is in a recording."""
    console = Console(highlight=False)
    console.print(_totals(path, info))
    console.print(_topics(info))
    if info.events.outside.count:
        console.print(_outside(info.events), soft_wrap=True)
    for remark in info.remarks:
        console.print(remark, soft_wrap=True, markup=False)
    for topic in info.topics:
        for remark in _remarks(topic):
            console.print(remark, soft_wrap=True, markup=False)


def convert_visibly(source: Path, destination: Path, storage: str, wanted: Wanted) -> None:
    """Convert a recording to rosbag2, with progress on stderr meanwhile. Raises RecordingError."""
    with _progress() as progress:
        task = progress.add_task(f"writing {destination}", total=None)
        convert(
            source,
            destination,
            storage,
            lambda seconds: progress.update(task, description=f"writing {destination}: {seconds:.1f} s"),
            wanted,
        )


def _progress() -> Progress:
    """A line on stderr that goes away when the work is done."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _totals(path: Path, info: RecordingInfo) -> Table:
    events = info.events
    table = Table(title=str(path), title_justify="left", show_header=False)
    table.add_row("starts", _time(info.start_ns))
    table.add_row("ends", _time(max(info.stop_ns - 1, info.start_ns)))
    table.add_row("duration", f"{info.duration_s:.3f} s")
    if events.count:
        table.add_row("sensor", f"{events.width} x {events.height} pixels")
    table.add_row(
        "events", f"{events.count:,} ({events.on:,} on, {events.off:,} off){_rate(events.count, info)}"
    )
    if events.t_first_ns is not None and events.t_last_ns is not None:
        table.add_row("first event", f"{events.t_first_ns / 1e9:.6f} s on the sensor's clock")
        table.add_row("last event", f"{events.t_last_ns / 1e9:.6f} s on the sensor's clock")
    table.add_row("frames", f"{info.frames:,}{_rate(info.frames, info)}")
    table.add_row("triggers", f"{info.triggers:,}")
    return table


def _topics(info: RecordingInfo) -> Table:
    table = Table("topic", "type", "count", "read")
    for topic in info.topics:
        table.add_row(
            topic.name, topic.type, f"{topic.count:,}", f"no: {topic.left_out}" if topic.left_out else "yes"
        )
    return table


def _outside(events: EventTotals) -> str:
    """How many events lie outside the sensor, and which size would hold all where they are many."""
    outside, size = events.outside, events.size_that_holds_all
    told = (
        f"{outside.count:,} of {outside.count + events.count:,} events lie outside the sensor of "
        f"{events.width} x {events.height} pixels, the first of them at {outside.first}, and were left out"
    )
    return f"{told}; a sensor of {size[0]} x {size[1]} would hold all." if size else f"{told}."


def _remarks(topic: Topic) -> list[str]:
    """What was not as it should be among a topic's messages, a sentence each."""
    read, first = topic.read, topic.first_refusal
    remarks = []
    if first is not None:
        in_bag = (
            first.log_ns != 0
        )  # the damaged place of a file has no time, and its reason tells where it is
        what = "messages" if in_bag else "records"
        where = f" number {first.number:,} ({_time(first.log_ns)})" if in_bag else ""
        remarks.append(
            f"{read.refused:,} of the {what} were left out, the first of them{where}: {first.reason}"
        )
    if read.lost:
        remarks.append(f"{read.lost:,} messages are missing.")
    if read.unplaced:
        remarks.append(f"{read.unplaced:,} events were left out, for a loss hid their time or place.")
    if read.corrupt:
        remarks.append(f"{read.corrupt:,} words were unreadable.")
    if read.restarts:
        remarks.append(f"The stream began anew, times: {read.restarts:,}; the last time: {read.restart}")
    return [f"{topic.name}: {remark}" for remark in remarks]


def _rate(count: int, info: RecordingInfo) -> str:
    if not count or not info.duration_s:
        return ""
    rate = count / info.duration_s
    return f", {rate / 1e6:.2f} million a second" if rate >= 1e5 else f", {rate:,.1f} a second"


def _time(stamp_ns: int) -> str:
    if stamp_ns < YEAR_2000_NS:
        return f"{stamp_ns / 1e9:.6f} s"
    return datetime.fromtimestamp(stamp_ns / 1e9, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f UTC")
