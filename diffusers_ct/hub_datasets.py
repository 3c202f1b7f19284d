"""Pushing a prepared dataset: the check that it may be published, its rows as Parquet and its card, in one commit."""

import math
import tempfile
from pathlib import Path

from datasets import DatasetDict
from huggingface_hub import HfApi

from .dataset_card import check_dataset_card, render_dataset_card
from .deidentified_rows import check_nothing_identifying
from .hub_errors import hub_errors_in_words

_PARQUET_BYTES = 500 * 10**6


def push_dataset(
    dataset: DatasetDict,
    repo_id: str,
    *,
    licence: str = "",
    description: str = "",
    card: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Pushes a prepared dataset, of pairs or of single scans, as Parquet with a rendered card, in one commit; returns the
    commit's address. Rows of an earlier push are replaced. After an interruption the same call sends what is missing.

    Args:
        dataset: its splits.
        repo_id: "user/name"; made if it is not there.
        licence: of the data, as the Hub spells it; it and `description` are needed without a `card`.
        description: what they are, a sentence.
        card: from `render_dataset_card`, a text or a file.
        private: of a repository that is made new.
        revision: branch to push to, made if it is not there.
        token: of the Hub; None takes the one logged in with.

    Raises:
        CardError: if a licence or description is missing, or the card lacks something or is of other rows.
        HubError: if the Hub does not take it.
        ValueError: if the rows were not de-identified by `diffusers-ct prepare`, or hold anything but the schema's columns,
            hashed keys and known conditions (`check_nothing_identifying`).
    """
    for rows in dataset.values():
        check_nothing_identifying(rows)
    if card is None:
        text = render_dataset_card(dataset, repo_id=repo_id, licence=licence, description=description)
    elif licence or description:
        raise ValueError("The card has licence and description: leave out `licence` and `description`.")
    else:
        text = card.read_text(encoding="utf-8") if isinstance(card, Path) else card
    check_dataset_card(text, repo_id, dataset)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        for split, rows in dataset.items():
            # Several files: a reader that streams takes one each for its workers.
            parts = min(len(rows), max(1, math.ceil(rows.data.nbytes / _PARQUET_BYTES))) or 1
            for part in range(parts):
                shard = rows.shard(parts, part, contiguous=True)
                shard.to_parquet(str(Path(folder) / "data" / f"{split}-{part:05d}-of-{parts:05d}.parquet"))
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        api = HfApi(token=token)
        with hub_errors_in_words(repo_id, revision=revision, token=token):
            api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, repo_type="dataset", revision=revision,
                # shards of an earlier push, which may be of another number, would be read beside these
                delete_patterns="data/*", commit_message="Add CT dataset",
            )  # fmt: skip
        return str(commit)
