"""The demo as a Hugging Face Space: the checkpoint comes from the variable DIFFUSERS_CT_MODEL.

DIFFUSERS_CT_MODEL=user/repo python examples/space/app.py   # or a folder of a pipeline
"""

import os
import sys

MODEL, REVISION = "DIFFUSERS_CT_MODEL", "DIFFUSERS_CT_REVISION"


def main() -> None:
    model = os.environ.get(MODEL, "").strip()
    if not model:
        sys.exit(
            f"error: set the variable {MODEL} to a restoration checkpoint: a repository on the Hub (user/repo), or a folder. "
            "In a Space: Settings, Variables."
        )

    from diffusers_ct.cli.checkpoints import load_pipeline, model_name
    from diffusers_ct.demo.serving import serve
    from diffusers_ct.demo.session import DemoModel

    try:
        pipeline, weights = load_pipeline(model, os.environ.get(REVISION) or None)
        served = DemoModel(pipeline, model_name(model), weights)
    except ValueError as error:
        sys.exit(f"error: {error}")
    # A Space is reached from outside its container, which the environment says; elsewhere the page is for this computer.
    serve(
        served,
        host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        open_browser=False,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )


if __name__ == "__main__":
    main()
