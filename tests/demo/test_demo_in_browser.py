"""The demo as a visitor uses it, in a real headless browser without network: from a zip of DICOM to a DERIVED series."""

import asyncio
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from diffusers_ct import read_volume
from diffusers_ct.physics import simulate_low_dose
from tests.headless_browser import BROWSER
from tests.io.synthetic import SECRETS, write_series

pytest.importorskip("gradio", reason="the demo is an extra")
pytest.importorskip("aiohttp", reason="speaks with the browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

from tests.demo.checkpoint import tiny_model  # noqa: E402
from tests.demo.driven_page import DrivenPage, drive  # noqa: E402

SIZE, PIXEL_MM = 160, 1.6


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A zip whose every name tells the patient's."""
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    x, y = np.meshgrid(axis, axis)
    body = np.where((x / 110.0) ** 2 + (y / 80.0) ** 2 < 1, 45.0, -1000.0)
    body[np.hypot(x - 45, y) < 25] = -850.0
    body[np.hypot(x + 45, y + 10) < 20] = 150.0
    body[np.hypot(x, y - 55) < 12] = 600.0
    noisy = simulate_low_dose(
        np.stack([body] * 3), spacing_mm=(3.0, PIXEL_MM, PIXEL_MM), dose_fraction=1.0, seed=1, source_noise="noise_free"
    )
    folder = tmp_path_factory.mktemp("study")
    files = write_series(
        folder / "series", np.rint(noisy), pixel_mm=(PIXEL_MM, PIXEL_MM), increment_mm=3.0, SliceThickness="3"
    )
    with zipfile.ZipFile(folder / "Quixote_Alonso.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"HIDALGO-1605/Quixote/{file.name}")
    return folder / "Quixote_Alonso.zip"


def test_from_a_zip_to_a_derived_series(study, tmp_path, capfd):
    from diffusers_ct.demo.serving import running

    wrong, downloads = tmp_path / "Quixote.txt", tmp_path / "downloads"
    wrong.write_text("no scan")
    picture = "document.querySelector('.ct-{}').src"
    shown = "document.querySelector('#ct-status').innerText"

    async def visit(page: DrivenPage) -> None:
        await page.until("document.querySelector('.ct-empty') && document.querySelector('#ct-drop input[type=file]')")
        await page.downloads_to(downloads)

        # 1. what is no scan is refused in a sentence
        await page.drop("#ct-drop input[type=file]", wrong)
        await page.until("document.querySelector('.ct-error')")
        assert "Traceback" not in await page.text() and "Quixote" not in await page.text()

        # 2. a scan is shown, and nobody's name
        await page.drop("#ct-drop input[type=file]", study)
        await page.until(f"{shown}.includes('3 slices of 160 x 160')")
        await page.until("document.querySelector('.ct').dataset.state === 'scan'")
        await page.screenshot(tmp_path / "scan_1280.png")

        # 3. the checkpoint is made for another kernel: refused, and gone on with by name
        await page.move("#ct-steps input[type=range]", 2)
        await page.move("#ct-samples input[type=range]", 2)
        await page.click("#ct-dose label:nth-of-type(3) input")
        await page.click("#ct-restore")
        await page.until(f"{shown}.includes('kernel is')")
        await page.click("#ct-overrides input[type=checkbox]")
        await page.click("#ct-restore")
        await page.until("document.querySelector('.ct').dataset.state === 'restored'")
        assert "not validated" in await page.evaluate(shown)

        # 4. slices, windows, and the border between the pictures
        before = [
            await page.evaluate(picture.format(name))
            for name in ("before", "after", "difference img", "uncertainty img")
        ]
        assert all(source.startswith("data:image/png") for source in before)
        await page.move(".ct-cut", 20)
        assert await page.evaluate("document.querySelector('.ct').style.getPropertyValue('--cut')") == "20%"
        await page.move("#ct-slice input[type=range]", 3)
        await page.until("document.querySelector('.ct-place').innerText.startsWith('slice 3 of 3')")
        await page.evaluate("document.querySelector('.ct-stage').focus()")
        await page.key("ArrowUp")
        await page.until("document.querySelector('.ct-place').innerText.startsWith('slice 2 of 3')")
        again = [
            await page.evaluate(picture.format(name))
            for name in ("before", "after", "difference img", "uncertainty img")
        ]
        assert again == before
        await page.click("#ct-window label:nth-of-type(3) input")
        await page.until(f"{picture.format('before')} !== {before[0]!r}")
        assert await page.evaluate(picture.format("difference img")) == before[2]
        await page.click("#ct-window label:nth-of-type(1) input")
        await page.until(f"{picture.format('before')} === {before[0]!r}")
        assert await page.evaluate("document.querySelector('.ct').style.getPropertyValue('--cut')") == "20%"

        # 5. the result
        await page.click("#ct-write")
        await page.until("document.querySelector('#ct-files a[href]')")
        await page.screenshot(tmp_path / "restored_1280.png")
        await page.click("#ct-files a[href]")
        for _ in range(300):
            if (downloads / "restored_dicom.zip").is_file():
                break
            await asyncio.sleep(0.1)
        await page.width(390)
        await page.screenshot(tmp_path / "restored_390.png")
        assert await page.evaluate("document.documentElement.scrollWidth") == 390
        text = await page.text()
        assert not [secret for secret in SECRETS.values() if secret.lower() in text.lower()]
        assert page.problems() == [], "\n".join(page.problems())

    with running(tiny_model(kernels=("D30f",))) as address:
        drive(address, visit)
    with zipfile.ZipFile(downloads / "restored_dicom.zip") as archive:
        archive.extractall(tmp_path / "result")
    assert sorted(p.name for p in (tmp_path / "result").iterdir()) == ["restored", "uncertainty"]
    header = pydicom.dcmread(next((tmp_path / "result" / "restored").iterdir()))
    assert header.ImageType[0] == "DERIVED" and "Exposure" not in header
    for part in (
        "residual diffusion",
        '"dose_fraction": 0.25',
        "num_inference_steps=2",
        "num_samples=2",
        "tiny",
        "medical device",
    ):
        assert part in header.DerivationDescription
    everything = b"".join(p.read_bytes() for p in (tmp_path / "result").rglob("*.dcm")).lower()
    assert not [secret for secret in SECRETS.values() if secret.lower().encode() in everything]
    assert read_volume(tmp_path / "result" / "restored").shape == (3, SIZE, SIZE)
    assert read_volume(tmp_path / "result" / "uncertainty").hu.max() > 0
    told = "".join(capfd.readouterr()).lower()
    assert "traceback" not in told and not [secret for secret in ("quixote", "hidalgo") if secret in told]
