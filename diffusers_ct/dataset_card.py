"""The card of a prepared dataset: rendered from its rows, and checked against them."""

import json
from collections.abc import Sequence
from typing import Any

from datasets import DatasetDict, concatenate_datasets

from . import __version__
from .card_rendering import CardError, lacking, render_card, take_apart, with_metadata
from .hub_audit import acquisition_of, population_of

COMMAND = "diffusers-ct card-dataset"
_METADATA = ("license", "pretty_name", "tags", "size_categories", "configs")
_SECTIONS = ("Use", "Data", "Patients and scanners", "Limits", "Citation")
_SOURCES = {
    "pairs": "measured low- and full-dose series",
    "normal_dose": "low doses simulated from normal-dose series",
    "phantom": "drawn phantoms (`diffusers_ct.make_phantom`)",
    "unpaired": "single scans",
}
_TARGETS = {
    "noise_free": "the phantom's truth",
    "same_scan": "a full dose that shares its noise with `low`",
    "normal_dose": "the image that `low` was simulated from",
}
# What a reader must know of each kind of reference.
_OF_TARGETS = {
    "noise_free": "Drawn, not patients: what a method does on phantoms says that it works as built, not that it helps a patient.",
    "same_scan": "`full` has noise of its own and shares it with `low`: no score against it can be perfect, and a method may be "
    "rewarded for keeping noise.",
    "normal_dose": "`low` is simulated from `full`, which has noise of its own: it is no truth, and what the simulation leaves "
    "out (scatter, motion, the reconstruction of a vendor) is not in `low`.",
}
_ALWAYS = (
    "Faces in head scans and text burnt into the pixels are not removed.",
    "Body part, age, sex and kernel are what the header said; they were not checked against the images.",
)
_NEVER_PATIENTS = ("A patient is a drawn phantom here; its age, sex and findings are drawn, too.",)
# https://huggingface.co/docs/hub/datasets-cards: names of sizes that the Hub knows
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def render_dataset_card(
    dataset: DatasetDict,
    *,
    repo_id: str,
    licence: str,
    description: str,
    limits: Sequence[str] = (),
    citation: str = "",
) -> str:
    """A dataset card from the rows themselves.

    Args:
        dataset: its splits.
        repo_id: "user/name".
        licence: of the data, as the Hub spells it.
        description: what they are, a sentence.
        limits: known ones, in sentences; those that follow from how the rows were made are told without asking.
        citation: of where the data come from.

    Raises:
        CardError: listing all that is missing.
    """
    missing = [name for name, value in (("licence", licence), ("description", description)) if not value]
    if missing or not any(len(rows) for rows in dataset.values()):
        raise CardError(f"The dataset card would lack {', '.join(missing or ['any row'])}.")
    paired = all("low" in rows.column_names for rows in dataset.values())

    def distinct(column: str) -> list[Any]:
        return sorted({value for rows in dataset.values() for value in rows[column] if value is not None})

    provenance = [json.loads(text) for text in distinct("provenance")]
    sources = sorted({str(made.get("source", "unknown")) for made in provenance})
    targets = distinct("target") if paired else []
    drawn = sources == ["phantom"]
    everything = concatenate_datasets(
        [rows.select_columns(["patient_key", "conditions", "spacing_mm", "noise_hu"]) for rows in dataset.values()]
    )
    body = render_card(
        "dataset_card.md.jinja",
        paired=paired,
        repo_id=repo_id,
        description=description,
        splits=_splits(dataset),
        doses=", ".join(f"{100 * dose:.3g} %" for dose in distinct("dose_fraction")) or "not stated",
        targets="; ".join(f"`{target}`, {_TARGETS[target]}" for target in targets),
        roles="" if paired else ", ".join(distinct("dose")),
        sources=", ".join(_SOURCES.get(source, source) for source in sources),
        versions=", ".join(sorted({str(made.get("package_version", "unknown")) for made in provenance})),
        licence=licence,
        population=population_of(everything),
        acquisition=[*acquisition_of(everything), ("matrix", _matrices(dataset))],
        limits=[*limits, *(_OF_TARGETS[target] for target in targets), *(_NEVER_PATIENTS if drawn else _ALWAYS)],
        citation=citation,
        package_version=__version__,
    )
    return with_metadata(_metadata(dataset, repo_id, licence, paired), body)


def check_dataset_card(card: str, repo_id: str, dataset: DatasetDict) -> None:
    """Refuses a card that lacks what a reader needs, or is of another repository or other rows.

    Raises:
        CardError: naming all that is missing.
    """
    metadata, text, sections = take_apart(card, command=COMMAND)
    if missing := lacking(metadata, _METADATA, sections, _SECTIONS):
        raise CardError(f"The dataset card lacks {', '.join(missing)}: render it with `{COMMAND}`.")
    if f"# {repo_id}\n" not in text:
        raise CardError(f"The card is not of {repo_id}: render it with `{COMMAND} --repo {repo_id}`.")
    for name, rows, patients in _splits(dataset):
        if f"| {name} | {rows} | {patients} |\n" not in text:
            raise CardError(
                f"The card is of other rows: the split {name} has {rows} rows of {patients} patients. Render it anew with "
                f"`{COMMAND}`."
            )


def _splits(dataset: DatasetDict) -> list[tuple[str, int, int]]:
    return [(name, len(rows), len(set(rows["patient_key"]))) for name, rows in dataset.items() if len(rows)]


def _matrices(dataset: DatasetDict) -> str:
    columns = ("full", "volume")
    sizes = {rows.features[c].shape[1:] for rows in dataset.values() for c in columns if c in rows.features}
    return ", ".join(f"{height} x {width}" for height, width in sorted(sizes))


def _metadata(dataset: DatasetDict, repo_id: str, licence: str, paired: bool) -> dict[str, Any]:
    count = sum(len(rows) for rows in dataset.values())
    files = [{"split": split, "path": f"data/{split}-*"} for split, rows in dataset.items() if len(rows)]
    return {
        "license": licence,
        "pretty_name": repo_id.split("/")[-1],
        "task_categories": ["image-to-image" if paired else "unconditional-image-generation"],
        "tags": ["diffusers-ct", "computed-tomography", "low-dose-ct", "medical"],
        "size_categories": [next((name for limit, name in _SIZES if count < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": files}],
    }
