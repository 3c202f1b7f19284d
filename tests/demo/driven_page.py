"""A page that this machine serves, driven in a headless Chromium as a visitor would: files dropped, controls moved."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.headless_browser import _problem, _Tab, _with_browser


class DrivenPage:
    """A visitor's tab."""

    def __init__(self, tab: _Tab) -> None:
        self._tab = tab

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        said = await self._tab.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise RuntimeError(said["exceptionDetails"].get("exception", {}).get("description", str(said)))
        return said["result"].get("value")

    async def until(self, expression: str, *, seconds: float = 120.0) -> Any:
        """Waits until an expression is true."""
        end = asyncio.get_running_loop().time() + seconds
        while not (
            value := await self.evaluate(
                f"(() => {{ const v = {expression}; return v instanceof Node ? true : v; }})()"
            )
        ):
            if asyncio.get_running_loop().time() > end:
                raise TimeoutError(f"never true: {expression}\n{await self.text()}")
            await asyncio.sleep(0.1)
        return value

    async def text(self) -> str:
        """What stands on the page."""
        return await self.evaluate("document.body.innerText")

    async def drop(self, selector: str, *files: Path) -> None:
        """Gives files to an input of the page."""
        found = await self._tab.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        await self._tab.call(
            "DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"]
        )

    async def click(self, selector: str) -> None:
        """Clicks an element, once it is there."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def move(self, selector: str, value: float) -> None:
        """Moves a slider."""
        await self.evaluate(
            f"(() => {{ const s = document.querySelector({json.dumps(selector)}); s.value = {value}; "
            "s.dispatchEvent(new Event('input', {bubbles: true})); "
            "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    async def key(self, name: str) -> None:
        """Presses a key where the focus is."""
        for kind in ("keyDown", "keyUp"):
            await self._tab.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    async def width(self, pixels: int) -> None:
        """Makes the window as wide as a phone or a screen."""
        await self._tab.call(
            "Emulation.setDeviceMetricsOverride", width=pixels, height=800, deviceScaleFactor=1, mobile=pixels < 600
        )

    async def screenshot(self, path: Path) -> None:
        """PNG of the whole page."""
        await asyncio.sleep(0.3)  # transitions of the theme
        picture = await self._tab.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    async def downloads_to(self, folder: Path) -> None:
        """Where files go that are downloaded."""
        await self._tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def problems(self) -> list[str]:
        """What went wrong on the page, and requests to other hosts."""
        return [text for event in self._tab.events if (text := _problem(event, Path("/"))) and not _is_usual(text)]


def _is_usual(problem: str) -> bool:
    """Requests to this machine, streams that the page ended, and what Gradio itself writes to the console."""
    return problem.startswith(("request to http://127.0.0.1:", "request to blob:")) or problem in (
        "request failed: net::ERR_ABORTED",
        "console: ['Method not implemented.']",
    )


def drive(address: str, visit: Callable[[DrivenPage], Awaitable[Any]], *, width: int = 1280) -> Any:
    """Opens the address, lets `visit` act, and returns what it returns."""

    async def act(tab: _Tab) -> Any:
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            await tab.call(f"{domain}.enable")
        page = DrivenPage(tab)
        await page.width(width)
        tab.events.clear()
        await tab.call("Page.navigate", url=address)
        return await visit(page)

    return _with_browser(act)
