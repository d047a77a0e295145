"""Drives a headless Chromium over the DevTools protocol. PROGRAM is None where none is installed."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")


class Page:
    """A tab. messages: errors and warnings of console, script and network"""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self.socket, self.session, self.number, self.messages = socket, session, 0, []
        self.events: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events that arrive meanwhile are noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        await self.socket.send_json(message | ({"sessionId": self.session} if self.session else {}))
        while True:
            answer = await asyncio.wait_for(self.socket.receive_json(), 60)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method", ""), event.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.messages.append(about["exceptionDetails"])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.messages.append(about["entry"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.messages.append(about["args"])

    async def open(self, place: Path | str, width: int, height: int, scheme: str = "light", hash_: str = "") -> None:
        """Load a file, or the page at an address, in a window of this size, in CSS pixels."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        address = place if isinstance(place, str) else place.resolve().as_uri()
        for url in ("about:blank", f"{address}{hash_}"):  # another hash alone would load nothing
            self.events.clear()
            await self.call("Page.navigate", url=url)
            while "Page.loadEventFired" not in self.events:
                self._note(await asyncio.wait_for(self.socket.receive_json(), 60))

    async def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot, of the window or of the whole page."""
        result = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(result["data"]))


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """Context with an empty tab of a fresh browser, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            address = None
            while address is None:
                line = (await asyncio.wait_for(browser.stderr.readline(), 60)).decode()
                assert line, "the browser did not start"
                address = re.search(r"listening on (ws://\S+)", line)
            async with aiohttp.ClientSession() as session, session.ws_connect(address[1], max_msg_size=0) as socket:
                root = Page(socket, "")
                target = (await root.call("Target.createTarget", url="about:blank"))["targetId"]
                attached = await root.call("Target.attachToTarget", targetId=target, flatten=True)
                page = Page(socket, attached["sessionId"])
                page.number = 1000  # not those of `root`
                yield page
        finally:
            browser.kill()
            await browser.wait()
