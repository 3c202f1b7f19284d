"""`diffusers-ct demo`: a page in the browser on which scans are restored and looked at."""

from typing import Annotated

import typer

from .checkpoints import load_pipeline, model_name

_EXAMPLES = """
Serves a page to this computer: drop a DICOM zip, NIfTI or MetaImage, choose dose, steps and samples, scroll through the
slices, compare, and download the result as a new DERIVED series.

    diffusers-ct demo --model outputs/quickstart/model/pipeline

    diffusers-ct demo --model user/repo --port 8000 --no-open

Nothing is sent anywhere. `--host 0.0.0.0` lets other computers in: scans dropped there leave them.
"""


def demo(
    model: Annotated[str, typer.Option(help="Folder of a pipeline that restores, or its repository on the Hub.")],
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub repository.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Others than 127.0.0.1 let other computers in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="The first free one from 7860 on without it.", min=1, max=65535)
    ] = None,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in the default browser.")
    ] = True,
) -> None:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError('The demo needs Gradio: pip install "diffusers-ct[demo]".')
    _check_free(host, port)

    from ..demo.serving import serve
    from ..demo.session import DemoModel

    pipeline, weights = load_pipeline(model, revision)
    serve(
        DemoModel(pipeline, model_name(model), weights),
        host=host,
        port=port,
        open_browser=open_browser,
        tell=lambda text: typer.echo(text, err=True),
    )


demo.__doc__ = _EXAMPLES


def _check_free(host: str, port: int | None) -> None:
    """Refuses an address that cannot be listened at, before a model is loaded."""
    import socket

    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port or 0))
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise ValueError(f"{where} cannot be listened at ({error.strerror}): give another --port or --host.") from error
