"""The report in a real headless browser without network: a phone and a screen, light and dark."""

import numpy as np
import pytest

from diffusers_ct.evaluation import write_report
from diffusers_ct.evaluation.figures import overview, to_png
from tests.evaluation.example_result import OURS, example_result
from tests.headless_browser import BROWSER, look_at

pytest.importorskip("aiohttp", reason="speaks with the browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    truth = np.where(np.hypot((y - 48) / 0.8, x - 48) < 40, 40.0, -1000.0)
    low, restored = (truth + rng.normal(0, sd, truth.shape) for sd in (30, 8))
    slices = to_png(
        overview(low, restored, truth, np.abs(low - truth), low_title="low", full_title="full", difference=True), dpi=60
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    # A name that cannot be broken must not widen the page.
    summary = ["dose 25 %: found.", "W" * 30 + " is wide."]
    picture = [("a slice", "low dose, restored, full dose", slices)]
    return write_report(path, example_result(), title="Low-dose CT restoration", summary=summary, pictures=picture,
                        subject=OURS, worst=picture)  # fmt: skip


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)], ids=["phone, light", "screen, dark"])
def test_the_page_is_whole(page, width, dark, tmp_path):
    seen = look_at(page, width=width, dark=dark)
    (tmp_path / f"{width}.png").write_bytes(seen.screenshot)
    assert seen.screenshot.startswith(b"\x89PNG") and len(seen.screenshot) > 100_000
    assert seen.problems == []
    look = seen.look
    assert look["inner_width"] == width and look["scroll_width"] <= width and look["too_wide"] == []
    assert len(look["images"]) > 20 and min(look["images"]) > 0 and look["without_alt"] == 0
    assert look["scripts"] == 0 and look["broken_links"] == 0
    assert "Worst cases first" in look["text"] and "How this was made" in look["text"]
    assert look["background"] == ("rgb(18, 18, 18)" if dark else "rgb(255, 255, 255)")
    assert look["ink"] == ("rgb(234, 234, 234)" if dark else "rgb(26, 26, 26)")


def test_what_is_wrong_with_a_page_is_seen(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        '<a href="#nowhere">x</a><div style="width:700px">wide</div><img alt="" src="http://127.0.0.1:9/x.png">'
        "<script>console.error('wrong'); undefinedFunction()</script>"
    )
    seen = look_at(page, width=360)
    problems = "\n".join(seen.problems)
    for sign in ("request to http://127.0.0.1:9/x.png", "request failed", "console: ['wrong']", "exception"):
        assert sign in problems
    assert seen.look["scroll_width"] > 360 and seen.look["too_wide"] == ["DIV "]
    assert min(seen.look["images"]) == 0 and seen.look["without_alt"] == 1 and seen.look["broken_links"] == 1
