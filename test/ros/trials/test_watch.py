"""`evspec watch`: what a node says reaches the browsers that look, and nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from browser import Browser, found_chromium
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Image
from std_msgs.msg import String

from evspec_ros.cli import main
from evspec_ros.ros.trials.watch import WAITING, Audience

CHROMIUM = found_chromium()
RESULT: dict[str, Any] = {
    "stamp": 1.5,
    "text": "a <b>red</b> square",
    "latency_ms": {"prefill": 8.5},
    "mean_accepted_length": 4.0,
}


@pytest.fixture
def speaker(ros: None) -> Iterator[Any]:
    """A node called robot/evspec, whose topics the page shows."""
    import rclpy

    node = rclpy.create_node("evspec", namespace="robot")
    yield node
    node.destroy_node()


@pytest.fixture
def address() -> Iterator[str]:
    """Where a server in a process of its own waits for browsers."""
    command = [sys.executable, "-m", "evspec_ros", "watch", "--node", "/robot/evspec", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.match(r"Open (http://127\.0\.0\.1:\d+/)", process.stdout.readline())
        assert found is not None
        yield found[1]
        try:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()


class Talk:
    """Everything that a node says, again and again until somebody has heard it."""

    def __init__(self, node: Any, result: dict[str, Any] = RESULT) -> None:
        publisher = node.create_publisher
        self._messages = [
            (publisher(String, "/robot/evspec/result", 10), String(data=json.dumps(result))),
            (publisher(String, "/robot/evspec/result", 10), String(data="no JSON")),
            (publisher(String, "/robot/evspec/description/partial", 10), String(data="a <b>red")),
            (publisher(Image, "/robot/evspec/overlay", 10), _picture()),
            (publisher(DiagnosticArray, "/diagnostics", 10), _diagnostics()),
        ]

    def again(self) -> None:
        """Say it."""
        for publisher, message in self._messages:
            publisher.publish(message)


def _picture() -> Image:
    message = Image(height=4, width=6, encoding="rgb8", step=18)
    message.data = np.zeros(72, np.uint8).tobytes()
    return message


def _diagnostics() -> DiagnosticArray:
    own = DiagnosticStatus(name="robot/evspec: describing", level=DiagnosticStatus.WARN, message="late")
    other = DiagnosticStatus(name="camera: driver", level=DiagnosticStatus.ERROR, message="gone")
    return DiagnosticArray(status=[own, other])


def test_everything_that_a_node_says_reaches_a_browser(speaker: Any, address: str) -> None:
    """Results, the text while it is written, pictures as JPEG, the node's own diagnostics; what is no JSON is
    left out, and who comes later sees the last of each.
    """
    talk = Talk(speaker)

    async def listen(speaking: bool) -> dict[str, Any]:
        heard: dict[str, Any] = {}
        async with aiohttp.ClientSession() as session:
            page = await (await session.get(address)).text()
            assert "<title>evspec</title>" in page
            async with session.ws_connect(f"{address}stream", origin=address.rstrip("/")) as socket:
                deadline = time.monotonic() + 20
                while len(heard) < 5 and time.monotonic() < deadline:
                    if speaking:
                        talk.again()
                    try:
                        message = await socket.receive(timeout=0.2)
                    except asyncio.TimeoutError:
                        continue
                    if message.type is aiohttp.WSMsgType.BINARY:
                        heard["overlay"] = message.data
                    else:
                        told = json.loads(message.data)
                        heard[told.pop("kind")] = told
        return heard

    for speaking in (True, False):
        heard = asyncio.run(listen(speaking))
        assert heard["hello"] == {"node": "/robot/evspec"}
        assert heard["result"] == {"result": RESULT}
        assert heard["partial"] == {"text": "a <b>red"}
        assert heard["overlay"].startswith(b"\xff\xd8\xff")
        (row,) = heard["diagnostics"]["status"]
        assert row == {"name": "describing", "level": "WARN", "message": "late"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed")
def test_a_browser_shows_it_as_text(speaker: Any, address: str, tmp_path: Path) -> None:
    """What the node says appears while it is said; markup in it stays letters and runs nothing."""
    assert CHROMIUM is not None
    hostile = "<img src=x onerror='window.hacked = true'> a red square"
    talk = Talk(speaker, {**RESULT, "text": hostile})
    with Browser(CHROMIUM, tmp_path / "profile") as browser:
        browser.open(address)
        ended = threading.Event()
        talking = threading.Thread(target=lambda: [talk.again() for _ in iter(lambda: ended.wait(0.1), True)])
        talking.start()
        try:
            browser.until("document.querySelectorAll('#diagnostics tr').length == 1")
            browser.until("document.getElementById('overlay').naturalWidth == 6")
            browser.until(f"document.getElementById('text').dataset.last == {json.dumps(hostile)}")
        finally:
            ended.set()
            talking.join()
        assert browser.value("document.getElementById('link').textContent") == "live"
        assert browser.value("document.getElementById('accepted').textContent") == "4.00"
        assert browser.value("document.getElementById('text').childElementCount") == 0
        assert browser.value("window.hacked === undefined") is True
        picture = browser.screenshot()
    assert picture.startswith(b"\x89PNG")
    if folder := os.environ.get("EVSPEC_SCREENSHOTS"):
        (Path(folder) / "watch.png").write_bytes(picture)


def test_another_site_s_page_may_not_listen(ros: None, address: str) -> None:
    """Neither with another origin nor with none; and the page lets no foreign script run."""

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            for headers in ({"Origin": "http://evil.example"}, {}):
                with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                    await session.ws_connect(f"{address}stream", headers=headers)
            policy = (await session.get(address)).headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy

    asyncio.run(ask())


def test_a_browser_that_is_too_slow_misses_the_oldest() -> None:
    """It holds WAITING messages at most, the newest ones, and nobody waits for it."""

    async def tell() -> list[str]:
        audience = Audience("/evspec")
        queue: asyncio.Queue[Any] = asyncio.Queue(WAITING)
        audience._queues.add(queue)
        for number in range(WAITING + 10):
            audience._tell("partial", str(number))
        return [queue.get_nowait() for _ in range(queue.qsize())]

    assert asyncio.run(tell()) == [str(number) for number in range(10, WAITING + 10)]


def test_a_port_that_is_taken_is_one_sentence(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which, and what to do."""
    port = address.rstrip("/").rpartition(":")[2]
    assert main(["watch", "--port", port]) == 1
    assert re.search(
        rf"cannot be served on 127\.0\.0\.1:{port} \(.*\); choose another", capsys.readouterr().err
    )
