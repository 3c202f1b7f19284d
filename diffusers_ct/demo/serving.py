"""Serves the page to this computer, from a private folder that is gone afterwards, and lets it load nothing from elsewhere."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .session import DemoModel
from .visitors import Visitors

LOCAL_HOSTS = ("127.0.0.1", "localhost")
LARGEST_UPLOAD = "4gb"
# Gradio's own scripts are inline and compile templates; pictures are inside their addresses.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class OnlyFromHere:
    """ASGI middleware: a browser loads nothing of the page from another host, and keeps no copy of scans."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = list(_HEADERS)
        if "/file=" in scope.get("path", ""):
            more.append((b"cache-control", b"no-store"))
        names = {name for name, _ in more}

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in names]
                message = {**message, "headers": [*kept, *more]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


@contextmanager
def running(
    model: DemoModel, *, host: str = "127.0.0.1", port: int | None = None, open_browser: bool = False
) -> Iterator[str]:
    """The page being served; gives its address, and removes all that was dropped at the end.

    Args:
        model: to restore with.
        host: address to listen at; others than `LOCAL_HOSTS` let other computers in.
        port: None takes the first that is free from 7860 on.
        open_browser: show it in the default browser.

    Raises:
        OSError: if the port is taken.
    """
    root = Path(tempfile.mkdtemp(prefix="diffusers-ct-demo-"))  # for this user alone (mode 0700)
    # Nothing is told to anybody, and uploads of Gradio lie in the private folder too.
    settings = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": str(root),
    }
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own server whether it is up
        settings[name] = ",".join(filter(None, [os.environ.get(name, ""), *LOCAL_HOSTS]))
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    visitors = Visitors(root)
    page = None
    try:
        from starlette.middleware import Middleware

        from .page import THEME, build_page, page_css

        page = build_page(model, visitors, local=host in LOCAL_HOSTS)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=LARGEST_UPLOAD,
            footer_links=[],
            run_history=False,  # else the browser would keep what was restored
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=THEME,
            css=page_css(),
            app_kwargs={"middleware": [Middleware(OnlyFromHere)], "docs_url": None, "redoc_url": None},
        )
        yield address
    finally:
        if page is not None:
            page.close(verbose=False)
        visitors.close_all()
        shutil.rmtree(root, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def serve(model: DemoModel, *, host: str, port: int | None, open_browser: bool, tell: Callable[[str], None]) -> None:
    """Serves until it is stopped (Ctrl-C, SIGTERM).

    Args:
        model: see `running`, and so are the others.
        host: likewise.
        port: likewise.
        open_browser: likewise.
        tell: takes what is to be said in the terminal.
    """
    ended = threading.Event()
    if host not in LOCAL_HOSTS:
        tell(
            f"warning: {host} lets other computers in. Scans that are dropped there leave them, unencrypted, and are "
            "restored on this one; there is no password. Without --host the page is for this computer alone."
        )
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with running(model, host=host, port=port, open_browser=open_browser) as address:
            tell(f"The demo is at {address} (Ctrl-C ends it). For research use only, not a medical device.")
            while not ended.wait(0.5):
                pass
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
