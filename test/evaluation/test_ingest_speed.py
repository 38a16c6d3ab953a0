"""The benchmark of ingest: what it decodes is what it says, and every encoding has its row."""

from __future__ import annotations

import json

import pytest

from evspec_ros import cli
from evspec_ros.evaluation import ingest_speed
from evspec_ros.evaluation.event_load import PACKET_US, loads
from evspec_ros.events.decoders import ENCODINGS, Decoder


@pytest.mark.parametrize("load", loads(5000), ids=lambda load: f"{load.encoding}-{load.statistics}")
def test_a_packet_holds_what_it_says(load: ingest_speed.EventLoad) -> None:
    """About as many events as asked for, within 4.096 ms, no word of it unreadable or outside."""
    assert load.events == pytest.approx(5000, rel=0.1)
    if load.encoding in ENCODINGS:
        decoder = Decoder(load.encoding, load.width, load.height)
        events = decoder.decode(load.data)
        statistics = decoder.statistics
        assert (statistics.corrupt_words, statistics.outside_sensor, statistics.unplaced) == (0, 0, 0)
        assert events.t[-1] - events.t[0] < PACKET_US * 1000


def test_every_encoding_has_a_row_and_evt3_its_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json prints one object with the promised keys; evt3's ratio is that of the two rates."""
    pytest.importorskip("evt3")
    monkeypatch.setattr(ingest_speed, "PACKET_EVENTS", 2000)
    monkeypatch.setattr(ingest_speed, "MILLION", 1000)
    assert cli.main(["bench", "ingest", "--no-node", "--seconds", "0.01", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"machine", "rows", "window_ms", "render_ms", "node"} <= set(report)
    assert report["copy_gb_per_s"] > 0
    assert {row["encoding"] for row in report["rows"]} >= set(ENCODINGS) - {"trigger"}
    for row in report["rows"]:
        assert (row["peer"] == "evt3") == (row["encoding"] == "evt3")
        if row["peer"]:
            assert row["ratio"] == pytest.approx(row["mev_per_s"] / row["peer_mev_per_s"], rel=0.02)
    assert cli.main(["bench", "ingest", "--no-node", "--seconds", "0.01"]) == 0
    assert "five images" in capsys.readouterr().out
