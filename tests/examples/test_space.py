"""The Space: its card is one that Spaces read, its page is served, and a missing checkpoint is a sentence."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

SPACE = Path(__file__).parents[2] / "examples" / "space"


def start(**variables: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DIFFUSERS_CT_MODEL", "GRADIO_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(SPACE.parents[1]), environment.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, SPACE / "app.py"], env=environment | variables, stderr=subprocess.PIPE, text=True
    )


def test_the_card_and_the_requirements_agree_with_the_package():
    _, front, text = (SPACE / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    constraints = (SPACE.parents[1] / "constraints.txt").read_text().splitlines()
    assert card["sdk"] == "gradio" and f"gradio=={card['sdk_version']}" in constraints
    assert (SPACE / card["app_file"]).is_file() and card["license"] == "apache-2.0"
    assert len(card["short_description"]) <= 60  # what the Hub takes
    assert "not a medical device" in text and "DIFFUSERS_CT_MODEL" in text
    assert "diffusers-ct[demo]" in (SPACE / "requirements.txt").read_text().splitlines()


def test_without_a_checkpoint_it_says_what_to_set(tmp_path):
    for variables, words in (({}, "set the variable DIFFUSERS_CT_MODEL"),
                             ({"DIFFUSERS_CT_MODEL": str(tmp_path)}, "No pipeline could be loaded")):  # fmt: skip
        process = start(**variables)
        message = process.communicate(timeout=250)[1]
        assert process.returncode == 1 and words in message and "Traceback" not in message


@pytest.mark.slow  # two more processes that import torch; what it serves is tested as `demo`
def test_the_page_is_served_until_the_space_is_stopped(tmp_path):
    pytest.importorskip("gradio", reason="the demo is an extra")
    from tests.demo.checkpoint import save_tiny

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "tmp").mkdir()
    process = start(
        DIFFUSERS_CT_MODEL=str(save_tiny(tmp_path / "model")),
        GRADIO_SERVER_PORT=str(port),
        TMPDIR=str(tmp_path / "tmp"),
    )
    try:
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                    page = answer.read().decode()
                break
            except urllib.error.URLError:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.2)
        assert "Not a medical device" in page and len(list((tmp_path / "tmp").glob("diffusers-ct-demo-*"))) == 1
    finally:
        process.send_signal(signal.SIGTERM)
        message = process.communicate(timeout=250)[1]
    assert process.returncode == 0 and f"http://127.0.0.1:{port}/" in message
    assert list((tmp_path / "tmp").glob("diffusers-ct-demo-*")) == []
