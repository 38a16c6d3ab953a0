"""Events as lines of text."""

from __future__ import annotations

import io
import json
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recording_files import equal, joined, random_events

from evspec_ros import cli
from evspec_ros.errors import RecordingError
from evspec_ros.events.bounds import Outside
from evspec_ros.events.text_lines import decode_lines, new_counts
from evspec_ros.events.types import Events
from evspec_ros.recordings import open_recording, text
from evspec_ros.recordings.recording import Recording, Wanted
from evspec_ros.recordings.times import UNITS

SIZE = "64 48\n"  # width and height of random_events


def in_unit(t_ns: int, unit: str) -> str:
    """A time as people write it, exactly."""
    whole, rest = divmod(t_ns, UNITS[unit])
    digits = len(str(UNITS[unit])) - 1
    return f"{whole}.{rest:0{digits}}" if unit == "s" else str(whole)


def lines_of(events: Events, order: str = "txyp", unit: str = "s", separator: str = " ", off: int = 0) -> str:
    """A line for each event."""
    rows = zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True)
    columns = ({"t": in_unit(t, unit), "x": str(x), "y": str(y), "p": str(p or off)} for t, x, y, p in rows)
    return "".join(separator.join(row[name] for name in order) + "\n" for row in columns)


def recording_of(path: Path, content: str | bytes, **wanted: str) -> Recording:
    """A file with this content, opened."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_recording(path, Wanted(**wanted))


# What the lines are


@pytest.mark.parametrize("separator", [" ", ",", "\t", ";", ", ", "  "])
@pytest.mark.parametrize("order", ["txyp", "xytp", "xypt"])
@pytest.mark.parametrize(("unit", "off"), [("s", 0), ("us", -1)])
def test_orders_separators_and_polarities_are_told_by_the_numbers(
    tmp_path: Path, separator: str, order: str, unit: str, off: int
) -> None:
    """Seconds by their fraction, whole numbers as microseconds; off is 0 or -1."""
    events = random_events(500, start_ns=0)
    recording = recording_of(tmp_path / "r.txt", SIZE + lines_of(events, order, unit, separator, off))
    assert equal(joined(recording.events()), events)
    (topic,) = recording.topics
    assert (topic.type, topic.count) == (f"text: {' '.join(order)}, t in {unit}", 500)


@pytest.mark.parametrize(
    ("header", "order", "unit"),
    [
        ("timestamp,x,y,polarity", "txyp", "us"),
        ("y,x,p,t", "yxpt", "us"),
        ("x,y,p,t_ns", "xypt", "ns"),
        ("# x y t[s] pol", "xytp", "s"),
        ("% t [us] x y p", "txyp", "us"),
        ('"Time (ms)";"Col";"Row";"On"', "txyp", "ms"),
        ("# what camera it was\n\n# ts,xs,ys,ps", "txyp", "us"),
    ],
)
def test_a_line_of_names_tells_columns_and_unit(tmp_path: Path, header: str, order: str, unit: str) -> None:
    """As pandas and others write them, also in a comment."""
    events = random_events(300, start_ns=0)
    events.t[:] = events.t // 1_000_000 * 1_000_000 if unit == "ms" else events.t
    separator = "," if "," in header else ";" if ";" in header else " "
    content = header + "\n" + lines_of(events, order, unit, separator)
    recording = recording_of(tmp_path / "r.csv", content)
    assert joined(recording.events()).t.tolist() == events.t.tolist()
    assert joined(recording.events()).y.tolist() == events.y.tolist()
    assert recording.topics[0].type.endswith(f"t in {unit}")


@pytest.mark.parametrize(
    ("t", "unit"),
    [
        (["0.001", "0.002"], "s"), (["1504645177.423456", "1504645178"], "s"), (["1.5e-03", "2.5e-03"], "s"),
        (["1095", "1110"], "us"), (["1.095e+03", "1.110000e+03"], "us"), (["1095.0", "1110.0"], "us"),
        (["1700000000001095", "1700000000001110"], "us"),
        (["1700000000001095001", "1700000000001110999"], "ns"),
        (["1095000", "500759000"], "ns"), (["1095000", "1096000"], "us"),
        (["200000000001", "200000000002"], "ns"),
    ],
)  # fmt: skip
def test_the_unit_is_told_by_the_times_unless_it_is_named(tmp_path: Path, t: list[str], unit: str) -> None:
    """By a fraction, by their size, or by how fast they pass; --time-unit overrules it all."""
    content = SIZE + "".join(f"{one} 3 4 1\n" for one in t)
    recording = recording_of(tmp_path / "r.txt", content)
    assert recording.topics[0].type.endswith(f"t in {unit}")
    assert recording.info().events.t_last_ns == int(Decimal(t[1]) * UNITS[unit])
    named = recording_of(tmp_path / "r.txt", content, time_unit="ns")
    assert named.topics[0].type.endswith("t in ns")


def test_columns_are_read_as_they_are_named(tmp_path: Path) -> None:
    """Whatever header there is; other names are passed over."""
    content = "a,b,c,d,e\n" + "".join(f"{k % 2},7,{k + 20},{k},99\n" for k in range(50))
    recording = recording_of(tmp_path / "r.csv", content, columns="p,_,y,x,t", time_unit="ms")
    events = joined(recording.events())
    assert (events.x.tolist(), events.y.tolist()) == (list(range(50)), list(range(20, 70)))
    assert set(events.t.tolist()) == {99_000_000}
    with pytest.raises(RecordingError, match=r"The columns of .* are a, b, c, d, e, of which .*--columns"):
        recording_of(tmp_path / "r.csv", content)


def test_comments_and_empty_lines_and_ends_of_windows_are_passed_over(tmp_path: Path) -> None:
    """Before, between and behind the events; the last line needs no end."""
    events = random_events(40, start_ns=0)
    lines = lines_of(events).splitlines()
    lines[3:3] = ["", "# comment", "   ", "// another", "% a third"]
    content = "\ufeff# made by hand\r\n\r\n" + SIZE.strip() + "\r\n" + "\r\n".join(lines)
    recording = recording_of(tmp_path / "r.txt", content)
    assert equal(joined(recording.events()), events)
    assert recording.info().topics[0].read.refused == 0


@pytest.mark.parametrize(
    "bad", ["0.05 3 4", "0.05 x 4 1", "0.05 3.5 4 1", "nan 3 4 1", "0.05,,4,1", "1e30 3 4 1"]
)
def test_lines_that_are_no_event_are_left_out_and_the_first_is_named(tmp_path: Path, bad: str) -> None:
    """Wherever they are; nothing else is lost."""
    events = random_events(200, start_ns=0)
    lines = lines_of(events).splitlines(keepends=True)
    lines[70:70] = [bad + "\n"]
    lines[150:150] = ["what?\n", bad + "\n"]
    recording = recording_of(tmp_path / "r.txt", SIZE + "".join(lines))
    assert equal(joined(recording.events()), events)
    (topic,) = recording.info().topics
    assert topic.read.refused == 3
    assert topic.first_refusal is not None
    assert topic.first_refusal.reason.startswith("Line 72 ")


def test_events_outside_the_sensor_are_left_out_and_counted(tmp_path: Path) -> None:
    """Of the size that the file names; without one, it holds all that are pixels."""
    events = random_events(200, start_ns=0)
    inside = lines_of(events).splitlines(keepends=True)
    lines = "".join([*inside[:9], "0.01 300 40 1\n", "0.01 -1 3 0\n", *inside[9:]])
    assert recording_of(tmp_path / "r.txt", SIZE + lines).info().events.outside == Outside(
        2, (300, 40), 301, 41
    )
    info = recording_of(tmp_path / "r.txt", lines).info().events
    assert (info.count, info.outside.count, info.width, info.height) == (201, 1, 304, 240)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a story\nwithout numbers\n", "is no recording known here, it is text without a line of numbers"),
        ("0.1 2\n0.2 3\n0.3 4\n", r"cannot be told by their numbers, 0\.1 2; name the columns"),
        ("5 9 2 1\n3 8 7 1\n4 1 1 0\n" * 9, r"cannot be told by their numbers, 5 9 2 1; name the columns"),
        ("0 480\n0.1 2 3 1\n", "a sensor of 0 x 480 pixels, which is impossible"),
        ("640 480\n170000000000.5 2 3 1\n", r"r\.txt has a time of 170000000000\.5 seconds, which are 5,387"),
        (SIZE + lines_of(random_events(20)) + "1" * 5000, "a line of more than 4096 bytes"),
    ],
)
def test_what_holds_no_events_is_told(tmp_path: Path, content: str, told: str) -> None:
    """One sentence that says what to do."""
    with pytest.raises(RecordingError, match=told):
        recording_of(tmp_path / "r.txt", content).info()


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_single_event_is_told_from_the_size(tmp_path: Path, end: str) -> None:
    """Also where nothing follows it."""
    (events,) = recording_of(tmp_path / "r.txt", SIZE + "0.001 3 4 1" + end).events()
    assert (events.t.tolist(), events.x.tolist(), events.width) == ([1_000_000], [3], 64)


# The numbers


@settings(deadline=None)
@given(value=st.integers(-(2**62) + 1, 2**62 - 1), power=st.integers(0, 9), exponent=st.integers(0, 12))
@example(value=1504645177423456789, power=9, exponent=0)
def test_times_are_exact_to_the_nanosecond_in_any_notation(value: int, power: int, exponent: int) -> None:
    """19 digits, of which a double would keep 15."""
    sign, digits = "-" if value < 0 else "", f"{abs(value):020}"
    plain = f"{sign}{digits[: 20 - power]}.{digits[20 - power :]}"
    cut = len(digits) - exponent
    scientific = f"{sign}{digits[:cut]}.{digits[cut:]}e{exponent - power:+}"
    for written in (plain, scientific):
        columns = np.empty((4, 1), np.int64)
        data = np.frombuffer(f"{written} 1 2 0".encode(), np.uint8)
        assert decode_lines(data, np.arange(4), power, new_counts(), *columns) == 1
        assert columns[0, 0] == value, written


@pytest.mark.parametrize(
    ("written", "nanoseconds"), [("1.0949999999999999e-03", 1_095_000), ("0.00000000049", 0), ("-2.5e-9", -3)]
)
def test_fractions_of_a_nanosecond_are_rounded(written: str, nanoseconds: int) -> None:
    """As a double of 17 digits is meant."""
    columns = np.empty((4, 1), np.int64)
    data = np.frombuffer(f"{written} 9.490000000000000000e+02 2 1\n".encode(), np.uint8)
    assert decode_lines(data, np.arange(4), 9, new_counts(), *columns) == 1
    assert columns[:2, 0].tolist() == [nanoseconds, 949]


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_no_bytes_make_more_events_than_lines(data: bytes) -> None:
    """Every line is an event, left out, or nothing."""
    columns, counts = np.empty((4, data.count(b"\n") + 1), np.int64), new_counts()
    n = decode_lines(np.frombuffer(data, np.uint8), np.arange(4), 9, counts, *columns)
    assert n + counts[1] <= counts[0] <= data.count(b"\n") + 1


def test_what_numpy_reads_and_writes_is_read(tmp_path: Path) -> None:
    """savetxt's own notation, and loadtxt finds the same numbers."""
    events = random_events(400, start_ns=0)
    table = np.stack([events.t / 1e9, events.x, events.y, events.p], 1)
    np.savetxt(tmp_path / "r.txt", table)
    ours = joined(open_recording(tmp_path / "r.txt").events())
    assert np.array_equal(np.stack([ours.t / 1e9, ours.x, ours.y, ours.p], 1), np.loadtxt(tmp_path / "r.txt"))


@pytest.mark.parametrize("off", [0, -1])
def test_what_evlib_reads_is_read(tmp_path: Path, off: int) -> None:
    """Both find the same events in a file of t x y p in seconds."""
    evlib = pytest.importorskip("evlib", reason="evlib has no wheel for this machine")
    events = random_events(2000, start_ns=0)
    path = tmp_path / "r.txt"
    ours = joined(recording_of(path, lines_of(events, off=off)).events())
    theirs = evlib.load_events(str(path)).collect()
    behind = ours.t // 1000 - theirs["t"].dt.total_microseconds().to_numpy()
    assert set(behind.tolist()) <= {0, 1}  # it cuts a double off: 0.000489 s are 488 us to it
    for name in "xy":
        assert theirs[name].to_list() == getattr(ours, name).tolist()
    assert (theirs["polarity"].to_numpy() > 0).astype(int).tolist() == ours.p.tolist()


# Archives, memory, the command


def zipped(path: Path, **members: str) -> Path:
    """An archive; __ in a name stands for a dot."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return path


def test_an_archive_of_rpg_e2vid_is_read_as_it_is(tmp_path: Path) -> None:
    """One text with the size in its first line; of several the one called events."""
    events = random_events(500)
    content = SIZE + lines_of(events)
    for members in ({"boxes__txt": content}, {"events__txt": content, "images__txt": "0.1 a.png\n"}):
        recording = open_recording(zipped(tmp_path / "r.zip", **members))
        assert equal(joined(recording.events()), events)


def test_other_archives_are_not_supported(tmp_path: Path) -> None:
    """What they hold is told; a damaged one is called so."""
    with pytest.raises(RecordingError, match=r"is not supported, it holds a\.txt, b\.txt and not one"):
        open_recording(zipped(tmp_path / "r.zip", a__txt="1", b__txt="2"))
    buffer = io.BytesIO()
    np.savez(buffer, t=np.arange(3))
    with pytest.raises(RecordingError, match=r"is not supported, it holds t\.npy and not one"):
        recording_of(tmp_path / "r.npz", buffer.getvalue())
    data = bytearray(zipped(tmp_path / "r.zip", a__txt=SIZE + lines_of(random_events(900))).read_bytes())
    with pytest.raises(RecordingError, match=r"r\.zip is damaged"):
        recording_of(tmp_path / "r.zip", bytes(data[:-30]))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(RecordingError, match=r"a\.txt in .*r\.zip cannot be unpacked"):
        recording_of(tmp_path / "r.zip", bytes(data)).info()


def test_a_long_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a block ends, no line is lost and each number of a line is right."""
    monkeypatch.setattr(text, "BLOCK", 1000)
    events = random_events(300, start_ns=0)
    lines = lines_of(events).splitlines(keepends=True)
    lines.insert(250, "gone\n")
    recording = recording_of(tmp_path / "r.txt", SIZE + "".join(lines))
    pieces = list(recording.events())
    assert len(pieces) > 5
    assert equal(joined(pieces), events)
    refusal = recording.info().topics[0].first_refusal
    assert refusal is not None
    assert refusal.reason.startswith("Line 252 is no event: 'gone'")


def test_the_command_takes_columns_and_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`info` and `convert` alike; a unit that gives an impossible rate is asked about."""
    events = random_events(300, start_ns=0)
    path = tmp_path / "r.csv"
    path.write_text(lines_of(events, "yxpt", "us", ","))
    options = ["--columns", "y,x,p,t", "--time-unit", "us"]
    assert cli.main(["info", "--json", str(path), *options]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["events"]["sum_t_ns"] == int(events.t.sum())
    assert "remarks" not in told
    assert cli.main(["convert", str(path), str(tmp_path / "bag"), *options]) == 0
    assert open_recording(tmp_path / "bag").info().events.sum_x == int(events.x.sum())
    assert cli.main(["info", str(path), *options[:2], "--time-unit", "s"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "are unlikely for an event camera: is the unit of the times a thousand or a million times finer"
        in said
    )


def test_a_unit_is_refused_where_the_format_tells_it(shared_data: Path) -> None:
    """What is left without effect would mislead."""
    with pytest.raises(RecordingError, match="tells what 'us' is to tell; leave that out"):
        open_recording(shared_data / "cuke-emlb/demo-01.aedat4", Wanted(time_unit="us"))
