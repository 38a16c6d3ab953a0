"""The report of a replayed run: complete, with nothing to load, and alive in a real browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Browser, found_chromium

from evspec_ros import cli
from evspec_ros.events.types import Events
from evspec_ros.recordings.bag_writer import BagWriter
from evspec_ros.simulation.recorded_scene import record_scene

CHROMIUM = found_chromium()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two scenes and of a recording without images."""
    folder = tmp_path_factory.mktemp("reported")
    for seed in (4, 5):
        record_scene(folder / f"scene_{seed}", seed=seed, seconds=0.4)
    with BagWriter(folder / "<blind>") as bag:
        t, pixel = np.arange(3, dtype=np.int64) * 1_000_000, np.zeros(3, np.uint16)
        bag.write_events(Events(t, pixel, pixel, np.zeros(3, np.uint8), 64, 48), 0)
    recordings = [str(folder / name) for name in ("scene_4", "scene_5", "<blind>")]
    assert cli.main(["eval", *recordings, "--drafter", "suffix", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_the_page_holds_everything_and_loads_nothing(run: Path) -> None:
    """Tables, three plots and four windows a scene; names are escaped, nothing is fetched."""
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 2 * 3
    assert html.count('class="window"') == 2 * 4
    assert html.count("event image 5") >= 2 * 3
    assert 'class="drafted"' in html
    assert "&lt;blind&gt; holds no images" in html
    assert "trained on simulated scenes" in html
    addresses = re.findall(r'(?:src|href)="(.*?)"', html)
    assert all(address.startswith(("data:image/", "#")) for address in addresses)


def test_markdown_has_a_row_for_each_recording(run: Path) -> None:
    """And a line for what is wrong."""
    lines = (run / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert [len(row.split("|")) for row in rows] == [len(rows[0].split("|"))] * 5
    assert [line for line in lines if "holds no images" in line]


DAVIS = ("cuke-emlb/demo-01.aedat4", "event-vision-library/sample.aedat4")  # size of both: 346 x 260


def test_reports_of_real_recordings_show_them_and_say_that_nobody_taught_them(
    shared_data: Path, tmp_path: Path
) -> None:
    """Every recording that has frames: these and the events are shown, and the page, the table of it and
    summary.json say that the tiny checkpoints know nothing of such scenes.
    """
    known = sorted(str(path.relative_to(shared_data)) for path in shared_data.rglob("*.aedat4"))
    assert known == sorted(DAVIS)
    run = tmp_path / "run"
    paths = [str(shared_data / name) for name in DAVIS]
    assert cli.main(["eval", *paths, "--drafter", "none", "--max-new-tokens", "8", "--out", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert [one["windows"] > 2 for one in summary["recordings"]] == [True, True]
    html = (run / "report.html").read_text(encoding="utf-8")
    for told in (html, (run / "report.md").read_text(encoding="utf-8"), *summary["notes"]):
        assert "trained on simulated scenes of coloured shapes alone" in told
    sections = html.split("<section")[1:]
    assert [section.count('class="window"') > 2 for section in sections] == [True, True]
    for section in sections:
        photos = re.findall(r'<img src="data:image/\w+;base64,([^"]+)" alt="the newest RGB frame">', section)
        assert len(photos) == section.count('class="window"')
        for photo in photos:
            image = cv2.imdecode(np.frombuffer(base64.b64decode(photo), np.uint8), cv2.IMREAD_COLOR)
            assert image.std() > 10
            assert image.shape[1] / image.shape[0] == pytest.approx(346 / 260, rel=0.02)
        assert section.count('alt="event image 5"') >= len(photos) - 1  # the first may end before any event


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt install chromium), which is not installed")
def test_a_browser_shows_it_and_its_buttons_work(run: Path, tmp_path: Path) -> None:
    """One recording is chosen by a click, colours go by another, and what is drawn changes."""
    assert CHROMIUM
    with Browser(CHROMIUM, tmp_path / "profile") as browser:
        browser.open((run / "report.html").as_uri())
        shown = "document.querySelectorAll('section:not(.hidden)').length"
        coloured = "getComputedStyle(document.querySelector('.drafted')).backgroundColor"
        assert browser.value(shown) == 3
        assert browser.value("[...document.images].every(one => one.complete && one.naturalWidth)") is True
        assert browser.value(coloured) == "rgb(207, 232, 207)"
        before = cv2.imdecode(np.frombuffer(browser.screenshot(), np.uint8), cv2.IMREAD_COLOR)
        browser.click('[data-section="2"]')
        assert browser.value(shown) == 1
        browser.click("#colours")
        assert browser.value(coloured) == "rgba(0, 0, 0, 0)"
        after = cv2.imdecode(np.frombuffer(browser.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert before.std() > 10
    assert before.shape[0] > 1.5 * after.shape[0]
