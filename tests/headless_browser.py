"""Opens a local page in a real headless Chromium without any network, over its DevTools protocol.

References:
    https://chromedevtools.github.io/devtools-protocol (domains Page, Runtime, Network, Log, Emulation).
"""

import asyncio
import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SECONDS = 60.0
_LOOK = """(() => {
  const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') &&
    e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.tagName + ' ' + e.className);
  return {
    inner_width: innerWidth, scroll_width: document.documentElement.scrollWidth, too_wide: wide,
    images: [...document.images].map(i => i.complete ? i.naturalWidth : 0),
    without_alt: [...document.images].filter(i => !i.alt.trim()).length,
    background: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    height: document.documentElement.scrollHeight, scripts: document.scripts.length, text: document.body.innerText,
    broken_links: [...document.querySelectorAll('a[href^="#"]')].filter(a => !document.getElementById(a.hash.slice(1))).length,
  };
})()"""


@dataclass
class Seen:
    """What the browser saw of a page.

    Attributes:
        problems: failed requests, requests that leave the file, messages of the console, exceptions.
        look: values of the page as laid out.
        screenshot: PNG of the whole page.
    """

    problems: list[str]
    look: dict[str, Any]
    screenshot: bytes


@dataclass
class _Tab:
    """A page's session: commands with their replies, events on the way."""

    socket: Any
    session: str = ""
    count: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        await self.socket.send_json(message | ({"sessionId": self.session} if self.session else {}))
        return await self._until(lambda m: m.get("id") == self.count)

    async def event(self, method: str) -> None:
        if not any(e["method"] == method for e in self.events):
            await self._until(lambda m: m.get("method") == method)

    async def _until(self, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = await self.socket.receive_json(timeout=_SECONDS)
            if "method" in message:
                self.events.append(message)
            if found(message):
                if "error" in message:
                    raise RuntimeError(f"DevTools: {message['error']}")
                return message.get("result", {})


def look_at(page: Path, *, width: int, dark: bool = False) -> Seen:
    """Opens a file at a width in CSS pixels as a phone (below 600) or a screen.

    Raises:
        RuntimeError: if the browser does not start.
    """
    return _with_browser(lambda tab: _visit(tab, page, width, dark))


def _with_browser(visit: Callable[[_Tab], Awaitable[Seen]]) -> Seen:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Names resolve to nothing and the proxy does not answer: whatever is asked of the network fails, but what this
        # machine itself serves.
        process = subprocess.Popen(
            [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--hide-scrollbars", "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--proxy-server=127.0.0.1:9", "--remote-debugging-port=0",
             f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=profile,
        )  # fmt: skip
        try:
            return asyncio.run(_talk(_address(Path(profile), process), visit))
        finally:
            process.terminate()
            process.wait(timeout=_SECONDS)


def _address(profile: Path, process: subprocess.Popen) -> str:
    """Of the browser's DevTools, once it has written it."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        file = profile / "DevToolsActivePort"
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise RuntimeError(f"{BROWSER} did not start.")


async def _talk(address: str, visit: Callable[[_Tab], Awaitable[Seen]]) -> Seen:
    import aiohttp

    async with (
        aiohttp.ClientSession(trust_env=False) as client,
        client.ws_connect(address, max_msg_size=0) as socket,
    ):
        browser = _Tab(socket)
        target = (await browser.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await browser.call("Target.attachToTarget", targetId=target, flatten=True)
        return await visit(_Tab(socket, attached["sessionId"], browser.count))


async def _visit(tab: _Tab, page: Path, width: int, dark: bool) -> Seen:
    for domain in ("Page", "Runtime", "Network", "Log"):
        await tab.call(f"{domain}.enable")
    await tab.call(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await tab.call("Emulation.setEmulatedMedia", features=[scheme])
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1}
    await tab.call("Emulation.setDeviceMetricsOverride", **screen, mobile=width < 600)
    tab.events.clear()
    await tab.call("Page.navigate", url=page.resolve().as_uri())
    await tab.event("Page.loadEventFired")
    await tab.call("Runtime.evaluate", expression="Promise.all([...document.images].map(i => i.decode().catch(() => 0)))",
                   awaitPromise=True)  # fmt: skip
    looked = await tab.call("Runtime.evaluate", expression=_LOOK, returnByValue=True)
    picture = await tab.call("Page.captureScreenshot", captureBeyondViewport=True)
    problems = [text for event in tab.events if (text := _problem(event, page))]
    return Seen(problems, looked["result"]["value"], base64.b64decode(picture["data"]))


def _problem(event: dict[str, Any], page: Path) -> str:
    """What an event says against the page, or nothing."""
    name, said = event["method"], event["params"]
    if name == "Network.loadingFailed":
        return f"request failed: {said['errorText']}"
    if name == "Network.requestWillBeSent":
        url = said["request"]["url"]
        return "" if url.startswith("data:") or url == page.resolve().as_uri() else f"request to {url[:200]}"
    if name == "Log.entryAdded":
        return f"log: {said['entry']['text']}"
    if name == "Runtime.consoleAPICalled":
        return f"console: {[a.get('value') for a in said['args']]}"
    return f"exception: {said['exceptionDetails']['text']}" if name == "Runtime.exceptionThrown" else ""
