"""`evspec watch`: a page that shows what a node says while it says it.

A ROS node of its own subscribes to the other's topics and hands everything on to the browsers that look at
the page, as JSON texts and JPEG pictures of a WebSocket. A browser that is too slow misses some; the
describing node never waits. Served on 127.0.0.1 unless asked otherwise, and to pages of this server alone.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import rclpy
from aiohttp import WSMsgType, web
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String

from evspec_ros.errors import FrameError, RosError
from evspec_ros.frames.encodings import message_to_rgb

PAGE = Path(__file__).with_name("watch.html")
LOCAL = "127.0.0.1"
WAITING = 64  # messages that a browser may be behind
LARGEST = 4096  # bytes of what a browser may send; it has nothing to say
LARGEST_TEXT = 1_000_000  # characters of a node's message
JPEG_QUALITY = 80
LEVELS = ("OK", "WARN", "ERROR", "STALE")
HEADERS = {  # the page's own script and style are all that a browser may run
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Message = str | bytes


class Audience:
    """The browsers that look at the page, told from any thread; the last of each kind awaits newcomers."""

    def __init__(self, node: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._queues: set[asyncio.Queue[Message]] = set()
        self._last: dict[str, Message] = {"hello": json.dumps({"kind": "hello", "node": node})}

    def tell(self, kind: str, message: Message) -> None:
        """Hand a message to everybody, from another thread than theirs."""
        self._loop.call_soon_threadsafe(self._tell, kind, message)

    def _tell(self, kind: str, message: Message) -> None:
        self._last[kind] = message
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(message)

    async def serve(self, socket: web.WebSocketResponse) -> None:
        """Send to one browser until it leaves."""
        queue: asyncio.Queue[Message] = asyncio.Queue(WAITING)
        for message in self._last.values():
            queue.put_nowait(message)
        self._queues.add(queue)
        sending = asyncio.ensure_future(_send(queue, socket))
        try:
            async for said in socket:
                if said.type is WSMsgType.ERROR:
                    break
        finally:
            self._queues.discard(queue)
            sending.cancel()


async def _send(queue: asyncio.Queue[Message], socket: web.WebSocketResponse) -> None:
    while True:
        message = await queue.get()
        await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))


class Eavesdropper(Node):
    """Subscribes to what a node says; tell: where it goes, by its kind."""

    def __init__(self, watched: str, tell: Callable[[str, Message], None], **options: Any) -> None:
        super().__init__("evspec_watch", **options)
        self._watched, self._tell = watched, tell
        subscribe = self.create_subscription
        subscribe(String, f"{watched}/result", self._on_result, 10)
        subscribe(String, f"{watched}/description/partial", self._on_partial, 10)
        subscribe(Image, f"{watched}/overlay", self._on_overlay, qos_profile_sensor_data)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_result(self, message: String) -> None:
        try:
            result = json.loads(message.data) if len(message.data) <= LARGEST_TEXT else None
        except ValueError:
            result = None
        if isinstance(result, dict):
            self._say("result", {"result": result})

    def _on_partial(self, message: String) -> None:
        if len(message.data) <= LARGEST_TEXT:
            self._say("partial", {"text": message.data})

    def _on_overlay(self, message: Image) -> None:
        try:
            picture = cv2.cvtColor(message_to_rgb(message), cv2.COLOR_RGB2BGR)
        except FrameError as error:
            self.get_logger().warning(f"A picture is not shown: {error}", once=True)
            return
        _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        self._tell("overlay", encoded.tobytes())

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        prefix = f"{self._watched.lstrip('/')}: "
        own = [one for one in message.status if one.name.lstrip("/").startswith(prefix)]
        if own:
            rows = [
                {
                    "name": one.name.lstrip("/").removeprefix(prefix),
                    "level": LEVELS[min(one.level[0], len(LEVELS) - 1)],
                    "message": one.message,
                }
                for one in own
            ]
            self._say("diagnostics", {"status": rows})

    def _say(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._tell(kind, json.dumps({"kind": kind, **fields}))


def watch(node: str, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM; ready: told the address. Raises RosError for a port in use.

    To be called from the main thread, where signals arrive.
    """
    context = Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    try:
        asyncio.run(_serve(context, _full_name(node), host, port, ready))
    finally:
        context.try_shutdown()


def _full_name(node: str) -> str:
    return "/" + node.strip("/")


async def _serve(context: Context, node: str, host: str, port: int, ready: Callable[[str], None]) -> None:
    audience = Audience(node)
    runner = web.AppRunner(_application(audience), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    watcher = Eavesdropper(node, audience.tell, context=context)
    spinning = threading.Thread(target=_spin, args=(watcher, context), name="watch")
    spinning.start()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise RosError(
                f"The page cannot be served on {host}:{port} ({error.strerror or error}); choose another "
                "--port."
            ) from error
        bound = runner.addresses[0]
        ready(f"http://{bound[0]}:{bound[1]}/")
        await _signalled()
    finally:
        await runner.cleanup()
        context.try_shutdown()
        spinning.join()


async def _signalled() -> None:
    """Until a signal says that it is enough, also where whoever started this process ignores them."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


def _spin(watcher: Eavesdropper, context: Context) -> None:
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(watcher)
    with suppress(ExternalShutdownException):
        executor.spin()


def _application(audience: Audience) -> web.Application:
    application = web.Application(client_max_size=LARGEST)
    application.router.add_get("/", _page)
    application.router.add_get("/stream", partial(_stream, audience))
    return application


async def _page(_: web.Request) -> web.Response:
    return web.Response(text=PAGE.read_text(encoding="utf-8"), content_type="text/html", headers=HEADERS)


async def _stream(audience: Audience, request: web.Request) -> web.WebSocketResponse:
    """Other sites' pages may not listen: a browser says whose page it shows."""
    if urlsplit(request.headers.get("Origin", "")).netloc != request.host:
        raise web.HTTPForbidden(text="Only the page of this server may listen.")
    socket = web.WebSocketResponse(heartbeat=10.0, max_msg_size=LARGEST)
    await socket.prepare(request)
    await audience.serve(socket)
    return socket
