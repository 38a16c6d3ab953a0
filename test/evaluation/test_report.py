"""The HTML report: complete, self-contained, safe."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.report import Moment, Report, Timing, write_report


class Elements(HTMLParser):
    """Counts elements and collects where they lead."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One more element."""
        self.names.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]


def report(moments: int) -> Report:
    """A report of so many descriptions; every second one had no events."""
    pictures = np.zeros((5, 8, 8, 3), np.uint8)
    return Report(
        title="a run of <one> & two",
        figures={"descriptions": str(moments)},
        moments=[
            Moment(0.1 * k, "a <red> ball", pictures[0], None if k % 2 else pictures, {"age": "3 ms"})
            for k in range(moments)
        ],
        timings=[Timing(0.1 * k, 12.0, {"prefill": 3.0, "decode": 5.0}) for k in range(moments)],
        remarks=["taken on a quiet machine"],
    )


@pytest.mark.parametrize("moments", [0, 1, 4])
def test_everything_is_in_one_file_with_nothing_to_load(tmp_path: Path, moments: int) -> None:
    """Pictures are embedded, texts are escaped, and a run without descriptions has a report, too."""
    path = tmp_path / "new" / "report.html"
    write_report(path, report(moments))
    html = path.read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(html)
    with_events = (moments + 1) // 2
    assert elements.names.count("img") == moments + 5 * with_events
    assert elements.names.count("svg") == (moments > 0)
    assert all(address.startswith(("data:image/", "#")) for address in elements.addresses)
    assert "a run of &lt;one&gt; &amp; two" in html
    assert html.count("a &lt;red&gt; ball") == moments
    assert "taken on a quiet machine" in html


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A report whose folder is a file says so."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(EvspecError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", report(0))
