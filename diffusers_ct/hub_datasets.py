"""Prepared datasets on the Hub: the card from the rows, the check that they may be published, the push."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from huggingface_hub import HfApi

from .card_rendering import CardError, render_card, with_metadata
from .deidentified_rows import check_nothing_identifying
from .hub_errors import hub_errors_in_words

_PARQUET_BYTES = 500 * 10**6


def push_dataset(
    dataset: DatasetDict,
    repo_id: str,
    *,
    licence: str,
    description: str,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Pushes a prepared dataset, of pairs or of single scans, as Parquet with a rendered card, in one commit; returns the
    commit's address. After an interruption the same call sends what is missing.

    Args:
        dataset: its splits.
        repo_id: "user/name"; made if it is not there.
        licence: of the data, as the Hub spells it.
        description: what they are, a sentence.
        private: of a repository that is made new.
        revision: branch to push to, made if it is not there.
        token: of the Hub; None takes the one logged in with.

    Raises:
        CardError: if a licence or description is missing.
        HubError: if the Hub does not take it.
        ValueError: if the rows were not de-identified by `diffusers-ct prepare`, or hold anything but the schema's columns,
            hashed keys and known conditions (`check_nothing_identifying`).
    """
    for rows in dataset.values():
        check_nothing_identifying(rows)
    card = render_dataset_card(dataset, repo_id=repo_id, licence=licence, description=description)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        for split, rows in dataset.items():
            # Several files: a reader that streams takes one each for its workers.
            parts = min(len(rows), max(1, math.ceil(rows.data.nbytes / _PARQUET_BYTES))) or 1
            for part in range(parts):
                shard = rows.shard(parts, part, contiguous=True)
                shard.to_parquet(str(Path(folder) / "data" / f"{split}-{part:05d}-of-{parts:05d}.parquet"))
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        api = HfApi(token=token)
        with hub_errors_in_words(repo_id, revision=revision, token=token):
            api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, repo_type="dataset", revision=revision,
                commit_message="Add CT dataset",
            )  # fmt: skip
        return str(commit)


def render_dataset_card(dataset: DatasetDict, *, repo_id: str, licence: str, description: str) -> str:
    """A dataset card from the rows themselves.

    Raises:
        CardError: listing all that is missing.
    """
    missing = [name for name, value in (("licence", licence), ("description", description)) if not value]
    if missing or not any(len(rows) for rows in dataset.values()):
        raise CardError(f"The dataset card would lack {', '.join(missing or ['any row'])}.")

    def distinct(column: str) -> list[Any]:
        return sorted({value for rows in dataset.values() for value in rows[column] if value is not None})

    sources = sorted({json.loads(text).get("source", "unknown") for text in distinct("provenance")})
    metadata = {
        "license": licence,
        "tags": ["diffusers-ct", "computed-tomography", "low-dose-ct"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"data/{s}-*"} for s, rows in dataset.items() if len(rows)],
            }
        ],
    }
    paired = all("low" in rows.column_names for rows in dataset.values())
    body = render_card(
        "dataset_card.md.jinja" if paired else "unpaired_dataset_card.md.jinja",
        repo_id=repo_id,
        description=description,
        splits=[(name, len(rows), len(set(rows["patient_key"]))) for name, rows in dataset.items() if len(rows)],
        doses=", ".join(f"{100 * dose:.3g} %" for dose in distinct("dose_fraction")) or "not stated",
        **(
            {"targets": ", ".join(f"`{target}`" for target in distinct("target"))}
            if paired
            else {"roles": ", ".join(distinct("dose"))}
        ),
        sources=", ".join(sources),
        licence=licence,
    )
    return with_metadata(metadata, body)
