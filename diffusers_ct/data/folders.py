"""Folders that a user names: one that must be there, one to be made, or else the name of a dataset on the Hub."""

import re
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from huggingface_hub.errors import HfHubHTTPError

from ..hub_errors import why_not

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def existing_folder(path: str | Path, *, advice: str = "check its name.") -> Path:
    """The folder that must be there.

    Args:
        path: folder.
        advice: what to do if it is not there, for the message.

    Raises:
        FileNotFoundError: if there is nothing.
        NotADirectoryError: if it is a file.
    """
    folder = Path(path)
    refuse_file(folder)
    if not folder.exists():
        raise FileNotFoundError(f"There is no folder {path}: {advice}")
    return folder


def refuse_file(path: Path) -> None:
    """Refuses a file where a folder is meant.

    Raises:
        NotADirectoryError: if there is a file.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file: name a folder.")


def is_hub_name(path: str | Path) -> bool:
    """Whether a path that is not there can be meant as "owner/name" on the Hub.

    A name below a folder that is there (data/typo beside data/mine) is a slip of the pen, and so is what no owner on the
    Hub is called: the network is not asked for those.
    """
    return isinstance(path, str) and bool(_HUB_NAME.fullmatch(path)) and not Path(path.partition("/")[0]).exists()


def open_on_hub(
    name: str, *, split: str | None, streaming: bool, revision: str | None = None, token: str | None = None
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """Opens a dataset "owner/name" on the Hub, where no folder of this name is here.

    datasets (5) neither runs scripts of a repository nor opens pickles. Without a network it opens the version that was used last
    on this machine, so that a revision is not to be had then.

    Raises:
        FileNotFoundError: if it cannot be reached or opened; says that it may have been meant as a folder.
        ValueError: for a split that it does not have.
    """
    if revision is not None and (told := why_not(name, repo_type="dataset", revision=revision, token=token)):
        raise FileNotFoundError(f"Revision {revision!r} of {name} cannot be opened. {told}")
    try:
        return datasets.load_dataset(name, split=split, streaming=streaming, revision=revision, token=token)
    except (FileNotFoundError, ConnectionError, HfHubHTTPError, RuntimeError) as error:
        # datasets hides what the Hub has said
        reason = (
            why_not(name, repo_type="dataset", revision=revision, token=token)
            or f"{str(error).splitlines()[0].rstrip('.')}."
        )
        raise FileNotFoundError(
            f"{name} is neither a folder here nor a dataset on the Hub that can be opened. {reason} A folder is made with "
            "`diffusers-ct prepare`."
        ) from error
    except ValueError as error:
        raise ValueError(f"The dataset {name} on the Hub cannot be opened so: {str(error).splitlines()[0]}") from error
