"""The page: its controls, how they lie, and what they call."""

from pathlib import Path
from typing import Any

import gradio as gr

from .handlers import Handlers
from .pictures import DIFFERENCE_RANGES_HU
from .session import FORMATS, DemoModel
from .views import LEGENDS, WINDOWS
from .visitors import Visitors
from .words import ASSUME_HU, I0, KERNEL, SAMPLES, STEPS, STRAIGHTEN

TITLE = "diffusers-ct: low-dose CT restoration"
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
_HERE = Path(__file__).parent
_DOSES = {"As it is": 1.0, "50 %": 0.5, "25 %": 0.25, "10 %": 0.1, "5 %": 0.05}
_KERNELS = {"from the scan's noise": "", "smooth": "smooth", "soft": "soft", "sharp": "sharp"}
_BANNER = (
    "<p><b>For research use only. Not a medical device:</b> nothing here may be used for diagnosis or treatment.</p>"
)
_LOCAL = (
    "<p>Scans stay on this computer; what was dropped is deleted once it is read, at the latest when the page ends.</p>"
)
_ELSEWHERE = (
    "<p><b>This page runs on another computer:</b> a scan that you drop leaves yours. Drop none that you may not hand "
    "out, and none with a patient's identity.</p>"
)


def build_page(model: DemoModel, visitors: Visitors, *, local: bool) -> gr.Blocks:
    """The page, to be launched with `THEME` and `page_css`.

    Args:
        model: to restore with.
        visitors: of the page.
        local: whether it is served to this computer alone.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            f"<h1>Low-dose CT restoration</h1>{_BANNER}{_LOCAL if local else _ELSEWHERE}",
            elem_id="ct-banner",
            apply_default_css=False,
        )
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                part = _controls(model)
            with gr.Column(scale=7, min_width=320):
                part |= _pictures()
                part |= _results()
        _connect(page, part, Handlers(model, visitors, part))
    return page


def page_css() -> str:
    """Style sheet of the page."""
    legends = "".join(f".ct-legend-{name} {{ background: {gradient}; }}\n" for name, gradient in LEGENDS.items())
    return (_HERE / "page.css").read_text(encoding="utf-8") + legends


def _controls(model: DemoModel) -> dict[str, Any]:
    """What is dropped and chosen."""
    part: dict[str, Any] = {}
    part["drop"] = gr.File(
        label="DICOM (zip or files), NIfTI, MetaImage",
        file_count="multiple",
        height=165,
        elem_id="ct-drop",
    )
    part["status"] = gr.HTML("", elem_id="ct-status", apply_default_css=False)
    part["series"] = gr.Dropdown(label="Series", choices=[], visible=False, elem_id="ct-series")
    part["dose"] = gr.Radio(
        label="Dose",
        info="As it is restores the scan itself. Below that, noise of a lower dose is first added to a normal-dose scan.",
        choices=list(_DOSES.items()),
        value=1.0,
        elem_id="ct-dose",
    )
    with gr.Row():
        part["steps"] = gr.Slider(1, 50, value=1, step=1, label=STEPS, min_width=190, elem_id="ct-steps")
        part["samples"] = gr.Slider(1, 16, value=1, step=1, label=SAMPLES, min_width=190, elem_id="ct-samples")
    gr.Markdown(
        "One step gives the estimate of least error. Several samples of 10 steps or more give mean and uncertainty, and "
        "take steps x samples times as long."
    )
    with gr.Accordion("More settings", open=False):
        part["seed"] = gr.Number(0, label="Seed of the noise", precision=0, minimum=0)
        part["straighten"] = gr.Checkbox(label=STRAIGHTEN, elem_id="ct-straighten")
        part["assume_hu"] = gr.Checkbox(label=ASSUME_HU, elem_id="ct-assume-hu")
        part["kernel"] = gr.Dropdown(label=KERNEL, choices=list(_KERNELS.items()), value="", elem_id="ct-kernel")
        part["i0"] = gr.Number(None, label=I0, info="At the scan's own dose; empty: from the scan's noise.", minimum=0)
    part["overrides"] = gr.CheckboxGroup(
        label="Do not check (the result is then not validated)", choices=[], visible=False, elem_id="ct-overrides"
    )
    with gr.Row():
        part["restore"] = gr.Button("Restore", variant="primary", interactive=False, elem_id="ct-restore")
        part["stop"] = gr.Button("Stop", variant="stop", visible=False, elem_id="ct-stop")
    revision = f" ({model.model_revision})" if model.model_revision else ""
    gr.Markdown(f"Model: `{model.model_id}`{revision}")
    return part


def _pictures() -> dict[str, Any]:
    """How the slices are looked at."""
    part: dict[str, Any] = {}
    part["window"] = gr.Radio(label="Window", choices=list(WINDOWS), value="Soft tissue", elem_id="ct-window")
    part["slice"] = gr.Slider(1, 2, value=1, step=1, label="Slice", interactive=False, elem_id="ct-slice")
    part["viewer"] = gr.HTML(
        None,
        html_template=(_HERE / "viewer.html").read_text(encoding="utf-8"),
        js_on_load=(_HERE / "viewer.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="ct-viewer",
    )
    part["limit"] = gr.Radio(
        label="Colours of the difference",
        choices=[(f"±{limit:g} HU", limit) for limit in DIFFERENCE_RANGES_HU],
        value=100.0,
        elem_id="ct-limit",
    )
    return part


def _results() -> dict[str, Any]:
    """What is taken home."""
    part: dict[str, Any] = {}
    with gr.Group():
        part["format"] = gr.Radio(
            label="Result: a new derived series, without the patient's identity",
            choices=list(FORMATS.items()),
            value="dicom",
            elem_id="ct-format",
        )
        part["with_uncertainty"] = gr.Checkbox(label="With the uncertainty, if there is one", value=True)
        part["write"] = gr.Button("Write the result", interactive=False, elem_id="ct-write")
        part["files"] = gr.File(
            label="Download", file_count="multiple", interactive=False, visible=False, elem_id="ct-files"
        )
    return part


def _connect(page: gr.Blocks, part: dict[str, Any], handlers: Handlers) -> None:
    """Which control calls what."""

    def parts(*names: str) -> list[Any]:
        return [part[name] for name in names]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    read = parts("status", "series", "slice", "viewer", "overrides", "restore", "write", "files")
    settings = parts("straighten", "assume_hu", "window", "limit")
    part["drop"].upload(handlers.drop, [part["drop"], *settings], [part["drop"], *read], concurrency_limit=2, **quiet)
    for name in ("series", "straighten", "assume_hu"):
        part[name].input(handlers.read_again, [part["series"], *settings], read, concurrency_limit=2, **quiet)
    for name in ("slice", "window", "limit"):
        part[name].change(
            handlers.show, parts("slice", "window", "limit"), part["viewer"], trigger_mode="always_last",
            concurrency_limit=4, **quiet,
        )  # fmt: skip
    part["restore"].click(
        handlers.restore,
        parts("dose", "steps", "samples", "seed", "kernel", "i0", "overrides", "slice", "window", "limit"),
        parts("status", "overrides", "restore", "stop", "viewer", "write", "files"),
        concurrency_limit=16,  # they wait for one worker
        **quiet,
    )
    part["stop"].click(handlers.stop, None, None, queue=False, **quiet)
    part["write"].click(handlers.write, parts("format", "with_uncertainty"), parts("status", "files"), **quiet)
    page.unload(handlers.close)
