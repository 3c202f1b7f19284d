"""What a folder or repository brings is data: before anything of it is loaded, it must name no code and hold no pickles.

diffusers takes a Python file beside the weights for a component, or a class that is imported already, where model_index.json
names one and it is told to trust it. Here classes of three libraries are taken, whatever the caller trusts.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..hub_errors import hub_errors_in_words
from ..models import safetensors_alone

INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "diffusers_ct", "transformers")
_NETWORKS = ("unet", "condition_encoder", "classifier", "text_encoder")
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_OF_REQUESTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def data_alone(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` or `download`, so that nothing of a repository is run.

    Raises:
        ValueError: if code or pickles are asked for.
    """
    for name in ("trust_remote_code", "custom_pipeline"):
        if arguments.get(name):
            raise ValueError(f"`{name}` is not taken: no code of a repository is run. What loads here needs none.")
    return safetensors_alone(arguments)


def check_index_on_hub(repo_id: str, arguments: dict[str, Any]) -> None:
    """`check_index` of a repository, before anything else of it is downloaded.

    Raises:
        HubError: if the Hub does not give it.
        ValueError: if it is no pipeline, or one that needs code.
    """
    asked = {name: arguments[name] for name in _OF_REQUESTS if arguments.get(name) is not None}
    with hub_errors_in_words(repo_id, revision=asked.get("revision"), token=asked.get("token")):
        try:
            index = hf_hub_download(repo_id, INDEX, **asked)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise  # nothing was asked of the Hub
            raise ValueError(f"{repo_id} is no pipeline: it has no {INDEX}.") from error
    check_index(Path(index).parent, repo_id, given=arguments)


def check_index(folder: Path, source: str, *, given: Collection[str]) -> None:
    """Refuses a pipeline that names code which is not of diffusers, transformers or this package.

    Args:
        folder: with model_index.json.
        source: its name, for the message.
        given: components that the caller brings, which are not loaded.

    Raises:
        ValueError: naming what it is.
    """
    file = folder / INDEX
    if not file.is_file():
        raise ValueError(f"{source} is no pipeline: it has no {INDEX}.")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The {INDEX} of {source} is damaged: it is no JSON.") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ValueError(f"{source} asks for a pipeline class of its own: no code of a repository is run.")
    for name, value in index.items():
        if not isinstance(value, list) or name.startswith("_") or name in given or value == [None, None]:
            continue
        library, class_name = value if len(value) == 2 else (None, None)
        # the Auto classes of transformers follow a configuration to code in the repository
        if library not in _LIBRARIES or not isinstance(class_name, str) or class_name.startswith("Auto"):
            raise ValueError(
                f"{source} asks for {library}.{class_name} as its {name}: classes of {', '.join(_LIBRARIES)} are loaded, "
                "no code from elsewhere."
            )
        if (folder / name / f"{library}.py").exists():
            raise ValueError(
                f"{source} brings code for its {name} ({name}/{library}.py): no code of a repository is run."
            )


def check_weights(folder: Path, source: str, *, given: Collection[str]) -> None:
    """Refuses a pipeline one of whose networks has pickled weights and no safetensors.

    Raises:
        ValueError: if there is one.
    """
    for name in _NETWORKS:
        if name in given or not (folder / name).is_dir():
            continue
        kinds = {file.suffix for file in (folder / name).iterdir()}
        if kinds & _PICKLES and ".safetensors" not in kinds:
            raise not_all_safetensors(source)


def not_all_safetensors(source: str) -> ValueError:
    """For a repository that holds pickles, or not all that its networks need."""
    return ValueError(
        f"{source} has no safetensors for some of its networks, and weights are loaded from these alone, for a pickle can run "
        "code. Ask its author to save it anew with `save_pretrained`."
    )
