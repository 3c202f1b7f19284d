"""`diffusers-ct demo` up to the page: what is refused before a model is loaded, and what the terminal is told."""

import importlib.util
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import diffusers_ct.cli as cli


def refused(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["diffusers-ct", "demo", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in message
    return message


def test_without_gradio_a_sentence_says_how_to_get_it(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gradio" else find(name, *a))
    assert 'pip install "diffusers-ct[demo]"' in refused(monkeypatch, capsys, "--model", "absent/model")


class TestWithGradio:
    @pytest.fixture(autouse=True)
    def gradio(self):
        pytest.importorskip("gradio", reason="the demo is an extra")

    def test_an_address_that_is_taken_and_a_model_that_is_none_are_told_in_one_line(
        self, monkeypatch, capsys, tmp_path
    ):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            message = refused(monkeypatch, capsys, "--model", "absent/model", "--port", port)
        assert f"127.0.0.1, port {port} cannot be listened at" in message and "--port" in message
        assert "No pipeline could be loaded" in refused(monkeypatch, capsys, "--model", tmp_path, "--no-open")

    def test_other_computers_are_let_in_with_a_warning_and_the_page_says_so(self):
        from diffusers_ct.demo.serving import serve
        from tests.demo.checkpoint import tiny_model

        told: list[str] = []
        pages: list[str] = []

        def tell(text: str) -> None:
            told.append(text)
            if text.startswith("The demo is at "):
                with urllib.request.urlopen(text.split()[4].replace("0.0.0.0", "127.0.0.1")) as answer:
                    pages.append(answer.read().decode())
                os.kill(os.getpid(), signal.SIGTERM)  # as a service manager ends it

        serve(tiny_model(), host="0.0.0.0", port=None, open_browser=False, tell=tell)
        assert "lets other computers in" in told[0] and "no password" in told[0] and len(told) == 2
        assert "This page runs on another computer" in pages[0] and "Not a medical device" in pages[0]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_the_server_is_private_and_leaves_nothing(self, monkeypatch):
        from diffusers_ct.demo import serving
        from tests.demo.checkpoint import tiny_model

        monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
        with serving.running(tiny_model()) as address:
            assert address.startswith("http://127.0.0.1:")
            folder = Path(os.environ["GRADIO_TEMP_DIR"])
            assert folder.stat().st_mode & 0o777 == 0o700 and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
            with urllib.request.urlopen(address) as answer:
                policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
            assert "default-src 'self'" in policy and "http" not in policy
            assert "Scans stay on this computer" in page and "fonts.googleapis" not in page
            secret = folder / "scan"
            secret.write_text("x")
            with urllib.request.urlopen(f"{address}gradio_api/file={secret}") as answer:
                assert answer.headers["Cache-Control"] == "no-store"
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{address}gradio_api/file={Path(__file__)}")
        assert not folder.exists() and "GRADIO_TEMP_DIR" not in os.environ
