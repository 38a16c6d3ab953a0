"""A headless chromium, spoken to over its DevTools protocol: opens a page, clicks, takes screenshots."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 60.0


def found_chromium() -> str | None:
    """The browser's path, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a browser of its own, which ends with the `with` block."""

    def __init__(self, executable: str, profile: Path) -> None:
        self._process = subprocess.Popen(
            [
                executable, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={profile}",
                "--window-size=1100,1400", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._number = 0
        import websocket

        self._socket = websocket.create_connection(self._address(profile), timeout=TIMEOUT_S)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT_S)

    def open(self, address: str) -> None:
        """Load a page and wait until it is there."""
        self._ask("Page.navigate", url=address)
        self.until(f"document.readyState == 'complete' && location.href == {json.dumps(address)}")

    def until(self, expression: str) -> None:
        """Wait for JavaScript to say that something is true."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.value(expression) is not True:
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What JavaScript says."""
        return self._ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of the first element that a CSS selector finds."""
        where = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._ask(
                "Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1
            )

    def screenshot(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _address(self, profile: Path) -> str:
        """Of the page's own channel, once the browser has written down its port."""
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + TIMEOUT_S
        while True:
            assert time.monotonic() < deadline, "the browser does not answer"
            assert self._process.poll() is None, "the browser ended"
            lines = port_file.read_text().split() if port_file.exists() else []
            if len(lines) > 1:
                with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json") as answer:
                    pages = [one for one in json.load(answer) if one["type"] == "page"]
                if pages:
                    address: str = pages[0]["webSocketDebuggerUrl"]
                    return address
            time.sleep(0.1)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
