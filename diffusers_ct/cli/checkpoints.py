"""Loading a checkpoint for a command, and naming it in what the command writes."""

import hashlib
from pathlib import Path
from typing import Any

COMPONENTS = ("unet", "condition_encoder", "classifier", "text_encoder")


def load_pipeline(model: str, revision: str | None) -> tuple[Any, str | None]:
    """A pipeline from a folder or the Hub, on the GPU where there is one; and which weights it has.

    Returns:
        The pipeline, and the commit that a Hub repository stood at, or the `fingerprint` of a folder.

    Raises:
        ValueError: with the reason in one line.
    """
    import torch
    from diffusers.utils import logging

    from .. import CTDiffusionPipeline
    from ..hub_errors import in_words

    logging.disable_progress_bar()  # of loading, so that a mistake is one line; that of sampling is another
    local = Path(model).is_dir()
    try:
        folder = model if local else CTDiffusionPipeline.download(model, revision=revision, use_safetensors=True)
        pipeline = CTDiffusionPipeline.from_pretrained(folder)
    except Exception as error:
        of_hub = None if local else in_words(error, model, revision=revision)
        if of_hub is None and not isinstance(error, (OSError, ValueError)):
            raise
        reason = of_hub or str(error).strip().splitlines()[0][:200]
        raise ValueError(f"No pipeline could be loaded from {model}: {reason}") from error
    if torch.cuda.is_available():
        pipeline.to("cuda")
    return pipeline, fingerprint(Path(folder)) if local else Path(folder).name  # the Hub's cache: snapshots/<commit>


def model_name(model: str) -> str:
    """The repository, or a local folder's own name: paths of a machine do not belong into files."""
    return Path(model).resolve().name if Path(model).exists() else model


def fingerprint(folder: Path) -> str | None:
    """SHA-256 (12 digits) of a local checkpoint's weights: which weights made the image."""
    weights = [f for part in COMPONENTS for f in sorted(folder.glob(f"{part}/*.safetensors"))]
    if not weights:
        return None
    digest = hashlib.sha256()
    for file in weights:
        digest.update(file.read_bytes())
    return f"sha256:{digest.hexdigest()[:12]}"
