"""`evspec eval RECORDING...`: windows, texts, what goes on after an interruption, recordings that are bad."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from serialised import typestore

from evspec_ros import cli
from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.replay import run
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.questions import questions_beside
from evspec_ros.evaluation.replay.store import RunFolder
from evspec_ros.evaluation.replay.sweep import replayed, windows_ending
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.bag_writer import BagWriter
from evspec_ros.simulation.recorded_scene import record_scene

MODELS = Path(__file__).parents[2] / "models"
PLAN = ReplayPlan(str(MODELS / "tiny_video_llava"), str(MODELS / "tiny_eventgpt"), "", "none")
MS = 1_000_000
START_NS = 1_700_000_000_000_000_000
SIZE = 48


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scene of 0.6 s."""
    path = tmp_path_factory.mktemp("scenes") / "scene"
    record_scene(path, seed=3, seconds=0.6)
    return path


def write(path: Path, *, events: bool = True, frames: bool = True) -> Path:
    """A third of a second of a wandering bar."""
    with BagWriter(path) as bag:
        for step in range(33):
            now_ns = START_NS + step * 10 * MS
            if events:
                t = now_ns + np.arange(SIZE) * 100_000
                rows = np.arange(SIZE, dtype=np.uint16)
                column, on = np.full(SIZE, step, np.uint16), np.ones(SIZE, np.uint8)
                bag.write_events(Events(t, column, rows, on, SIZE, SIZE), now_ns)
            if frames:
                bag.write_frame(Frame(now_ns, np.full((SIZE, SIZE, 3), step, np.uint8)))
    return path


def evaluated(*arguments: object, code: int = 0) -> None:
    """Run `evspec eval` with plain decoding."""
    assert cli.main(["eval", *map(str, arguments), "--drafter", "none", "--threads", "1"]) == code


def summary_of(folder: Path) -> dict[str, Any]:
    """The run's summary.json."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def test_windows_follow_each_other_by_a_windows_worth(tmp_path: Path) -> None:
    """Each ends at its newest event, 50 ms behind the last or a packet later, and holds what came before."""
    windows = list(replayed(open_recording(write(tmp_path / "bag")), PLAN))
    steps = np.diff([window.stamp_ns for window in windows])
    assert len(windows) == 7
    assert ((steps >= 50 * MS) & (steps < 60 * MS)).all()
    assert windows[0].degraded == "no events"  # a frame came first
    for window in windows[1:]:
        assert window.events.t[-1] == window.stamp_ns
        assert window.events.t[0] > window.stamp_ns - 50 * MS
        assert max(frame.stamp_ns for frame in window.frames) <= window.stamp_ns


def test_the_windows_of_known_ends_are_the_same(scene: Path) -> None:
    """Cut anew at their ends, all windows hold the events and frames that they held."""
    recording = open_recording(scene)
    windows = list(replayed(recording, PLAN))
    again = windows_ending(recording, PLAN, [window.stamp_ns for window in windows])
    for one, other in zip(windows, again, strict=True):
        assert one.stamp_ns == other.stamp_ns
        assert one.events.t.tolist() == other.events.t.tolist()
        assert [f.stamp_ns for f in one.frames] == [f.stamp_ns for f in other.frames]


def test_frames_alone_are_described_and_events_alone_where_asked(tmp_path: Path) -> None:
    """The window is marked with what it lacks."""
    frames_alone = open_recording(write(tmp_path / "frames", events=False))
    assert {window.degraded for window in replayed(frames_alone, PLAN)} == {"no events"}
    events_alone = open_recording(write(tmp_path / "events", frames=False))
    assert not list(replayed(events_alone, PLAN))
    asked = ReplayPlan(PLAN.target, PLAN.event_model, "", "none", without_frames="describe")
    windows = list(replayed(events_alone, asked))
    assert {window.degraded for window in windows} == {"no frames"}
    assert len(windows[0].frames) == 8


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings that cannot be evaluated, or not as a whole, by what their line has to say."""
    folder = tmp_path_factory.mktemp("bad")
    with Writer(folder / "empty", version=8) as writer:
        writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=typestore())
    types = get_typestore(Stores.ROS2_JAZZY)
    types.register(get_types_from_msg("int32 value", "strange_msgs/msg/Reading"))
    with Writer(folder / "strange", version=8) as writer:
        connection = writer.add_connection("/reading", "strange_msgs/msg/Reading", typestore=types)
        writer.write(connection, START_NS, b"\0\1\0\0\7\0\0\0")
    cut = write(folder / "cut")
    (file,) = cut.glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    (folder / "nothing.mcap").write_bytes(b"")
    return {
        "no message was recorded": folder / "empty",
        "strange_msgs/msg/Reading": folder / "strange",
        "no images": write(folder / "events", frames=False),
        "no events": write(folder / "frames", events=False),
        "no recording at": folder / "nowhere",
        "mcap recover": cut,
        "is empty": folder / "nothing.mcap",
    }


def test_what_is_bad_gets_a_line_and_the_rest_is_evaluated(
    bad: dict[str, Path], scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One recording beside many bad ones: each of these is told once, and what can be read of it is."""
    evaluated(*bad.values(), scene, "--out", tmp_path / "run")
    printed = capsys.readouterr().out
    for told, path in bad.items():
        lines = [line for line in printed.splitlines() if line.startswith(f"{path}: ")]
        assert [told in line for line in lines] == [True], (told, lines)
    windows = {
        Path(one["recording"]).name: one["windows"] for one in summary_of(tmp_path / "run")["recordings"]
    }
    assert windows[scene.name] > 8
    assert windows["cut"] > 0
    assert windows["frames"] == 7
    assert windows["events"] == windows["nowhere"] == 0


def test_a_run_without_any_window_fails(bad: dict[str, Path], tmp_path: Path) -> None:
    """Its line is printed all the same, and the status is 1."""
    evaluated(bad["is empty"], "--out", tmp_path / "run", code=1)


def test_log_time_far_from_the_stamps_is_told(shared_data: Path, tmp_path: Path) -> None:
    """302 days: the bag's events are drawn, by the stamps."""
    bag = shared_data / "event_camera_codecs" / "test_data_evt3_trigger"
    evaluated(bag, "--without-frames", "describe", "--out", tmp_path / "run")
    (one,) = summary_of(tmp_path / "run")["recordings"]
    assert [("302 days after the stamps" in remark) for remark in one["remarks"]] == [True]
    assert one["windows"] > 5


def test_a_run_goes_on_where_it_was_killed(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-written line is forgotten, what is there is not described again, nothing comes twice."""
    whole = tmp_path / "whole"
    evaluated(scene, "--out", whole)
    (lines,) = (whole / "windows").iterdir()
    begun = tmp_path / "begun"
    shutil.copytree(whole, begun)
    (begun / "recordings.jsonl").unlink()
    kept = lines.read_text().splitlines(keepends=True)
    (begun / "windows" / lines.name).write_text("".join(kept[:4]) + kept[4][:20])
    described = []
    original = run.described_rows
    monkeypatch.setattr(
        run, "described_rows", lambda *given: described.append(given[3].stamp_ns) or original(*given)
    )
    evaluated(scene, "--out", begun)
    assert len(described) == len(kept) - 4
    texts = [
        [(row["stamp_ns"], row["text"]) for row in RunFolder.opened(one).all_rows()] for one in (whole, begun)
    ]
    assert texts[0] == texts[1]
    evaluated(scene, scene, "--out", begun)
    assert len(described) == len(kept) - 4
    assert len(summary_of(begun)["recordings"]) == 1


KILLED = """
import json, os, signal, sys
from pathlib import Path
from evspec_ros.evaluation.replay import run, store
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.store import RunFolder

class Describer:
    def forget_stream(self): pass

plan, paths = ReplayPlan("", "", ""), [Path(path) for path in sys.argv[2:]]
ReplayPlan.load = lambda self: Describer()
run.described_rows = lambda describer, plan, identity, window, *rest: [
    {"stamp_ns": window.stamp_ns, "question": "What?", "text": "a ball " * 20}
]
whole, written = store._append, 0

def append(path, line):
    global written
    written += 1
    if written == lines and half:
        row = json.dumps(line).encode()
        with path.open("ab") as file:
            file.write(row[: len(row) // 2])
    else:
        whole(path, line)
    if written == lines:
        os.kill(os.getpid(), signal.SIGKILL)

store._append = append
for lines, half in ((3, True), (2, False), (1, True), (4, True), (3, False)):
    if (child := os.fork()) == 0:
        run.evaluate_recordings(paths, plan, RunFolder(Path(sys.argv[1]), plan.as_dict()))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, (lines, half)
store._append = whole
run.evaluate_recordings(paths, plan, RunFolder(Path(sys.argv[1]), plan.as_dict()))
"""  # kills itself behind, or in the middle of, so many lines


def test_whenever_it_is_killed_nothing_is_missing_and_nothing_comes_twice(tmp_path: Path) -> None:
    """Killed five times, between two lines and in the middle of one, of a window and of a recording that is
    done, a run ends as one that nobody killed.
    """
    paths = [write(tmp_path / name) for name in ("first", "second")]
    with BagWriter(paths[1].with_name("third")) as bag:  # another content, so another recording
        for step in range(20):
            bag.write_frame(Frame(START_NS + step * 10 * MS, np.full((8, 8, 3), step, np.uint8)))
    paths[1] = paths[1].with_name("third")
    script = [sys.executable, "-c", KILLED, str(tmp_path / "run"), *map(str, paths)]
    root = str(Path(__file__).parents[2])
    subprocess.run(script, env={**os.environ, "PYTHONPATH": root}, check=True)
    folder = RunFolder.opened(tmp_path / "run")
    expected = [window.stamp_ns for path in paths for window in replayed(open_recording(path), PLAN)]
    assert [row["stamp_ns"] for row in folder.all_rows()] == expected
    assert [one.windows for one in folder.finished().values()] == [7, len(expected) - 7]
    for file in (*(tmp_path / "run" / "windows").iterdir(), tmp_path / "run" / "recordings.jsonl"):
        whole = [line for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        assert len(whole) == len(set(whole))


def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """The sentence says what differs."""
    RunFolder(tmp_path, {"drafter": "none", "dtype": "float32"})
    with pytest.raises(EvspecError, match="drafter 'none' and not 'eagle'"):
        RunFolder(tmp_path, {"drafter": "eagle", "dtype": "float32"})


def test_questions_beside_a_recording_are_asked_and_scored(scene: Path, tmp_path: Path) -> None:
    """Each at its time or at the end; the right answer scores 1 in every measure."""
    bag = tmp_path / "scene"
    shutil.copytree(scene, bag)
    evaluated(bag, "--out", tmp_path / "first")
    last = RunFolder.opened(tmp_path / "first").all_rows()[-1]["text"]
    questions = [
        {"question": "Describe the scene.", "answer": last},
        {"question": "What moves?", "answer": "nothing of the kind", "at_s": 0.2},
    ]
    (tmp_path / "scene.qa.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    evaluated(bag, "--out", tmp_path / "second")
    answered = [row for row in RunFolder.opened(tmp_path / "second").all_rows() if "answer" in row]
    assert [row["question"] for row in answered] == ["What moves?", "Describe the scene."]
    assert answered[0]["at_s"] == pytest.approx(0.2, abs=0.06)
    assert answered[1]["text"] == last
    assert summary_of(tmp_path / "second")["total"]["scores"]["exact"] == 0.5


@pytest.mark.parametrize("line", ["no json", '{"question": "What?"}', '{"question": 1, "answer": "a"}'])
def test_a_line_that_is_no_question_is_told(line: str, tmp_path: Path) -> None:
    """With its number, its file and what is expected."""
    (tmp_path / "bag.qa.jsonl").write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(EvspecError, match=r"Line 2 of .*bag\.qa\.jsonl is no question: write"):
        questions_beside(tmp_path / "bag")


def test_pieces_of_a_text_say_who_wrote_them(scene: Path, tmp_path: Path) -> None:
    """Together they are the text; accepted tokens are drafts, and plain decoding has none."""
    arguments = [str(scene), "--drafter", "suffix", "--threads", "1", "--out", str(tmp_path / "run")]
    assert cli.main(["eval", *arguments]) == 0
    rows = RunFolder.opened(tmp_path / "run").all_rows()
    assert all("".join(text for text, _ in row["spans"]) == row["text"] for row in rows)
    assert {whose for _, whose in rows[0]["spans"]} <= {"draft", "target"}
    assert "draft" in {whose for _, whose in rows[-1]["spans"]}
