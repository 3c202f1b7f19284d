"""Cards rendered from what was measured, and pushing models and datasets to the Hub."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from datasets import Dataset, DatasetDict
from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from . import __version__
from .conditions import ScanConditions
from .data.manifest import DEIDENTIFICATION, SPLITS, TARGETS, hashed_key
from .evaluation.benchmark import COLUMNS, BenchmarkResult
from .pipelines import CheckpointContract, CTDiffusionPipeline

_REPORTED = ("psnr_full", "ssim_full", "rmse_body_hu", "bias_body_hu")
_COLUMNS = (
    "scan_key", "patient_key", "split", "dose_fraction", "low", "full", "noise_hu", "spacing_mm", "affine_lps", "target",
    "conditions", "provenance", "checksum",
)  # fmt: skip
_HASH = re.compile(r"[0-9a-f]{20}")  # of `hashed_key`
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9_]{1,40}")
_TECHNICAL = re.compile(r"[A-Za-z0-9][\w .,+:()\\-]{0,63}")
# Words of BodyPartExamined (PS3.16 annex L and what vendors write): the one text of a row that is typed at the scanner.
_BODY = re.compile(
    r"(ABDOMEN|ABD|ABDO|ADRENAL|ANKLE|AORTA|ARM|AXILLA|BACK|BLADDER|BODY|BONE|BRAIN|BREAST|BRONCHUS|CARDIAC|CAROTID|CERVIX|"
    r"CHEST|COLON|CORONARY|ARTERY|C|T|L|S|CSPINE|TSPINE|LSPINE|SSPINE|CTSPINE|TLSPINE|LSSPINE|SPINE|CERVICAL|THORACIC|LUMBAR|"
    r"SACRUM|COCCYX|EAR|ELBOW|ESOPHAGUS|EXTREMITY|EYE|FACE|FACIAL|FEMUR|FINGER|FOOT|FOREARM|GALLBLADDER|HAND|HEAD|HEART|HIP|"
    r"HUMERUS|IAC|INTESTINE|JAW|KIDNEY|KNEE|LARYNX|LEG|LIVER|LOWER|UPPER|LUNG|MANDIBLE|MAXILLA|MEDIASTINUM|NECK|NOSE|ORBIT|"
    r"PANCREAS|PAROTID|PARTIAL|PARTIALBODY|PELVIS|PELV|PHANTOM|PROSTATE|RADIUS|RENAL|RIB|SCAPULA|SHOULDER|SINUS|SKULL|SPLEEN|STERNUM|"
    r"STOMACH|THIGH|THORAX|THYROID|TIBIA|TOE|TRACHEA|TRUNK|ULNA|URETER|UTERUS|VESSEL|WHOLE|WHOLEBODY|WRIST|TO|AND|"
    r"CHESTABDOMEN|ABDOMENPELVIS|CHESTABDPELVIS|HEADNECK|NECKCHEST|TEMPORAL|PITUITARY|DENTAL)S?"
)


class CardError(ValueError):
    """A card lacks what a reader needs to trust it."""


def render_model_card(
    pipeline: CTDiffusionPipeline,
    *,
    repo_id: str,
    licence: str,
    benchmark: BenchmarkResult,
    method: str,
    dataset_name: str,
    dataset_split: str,
    command: str,
    training_config: Mapping[str, Any],
    limits: Sequence[str],
) -> str:
    """A model card from the checkpoint's contract and the benchmark; nothing in it is typed by hand.

    Args:
        pipeline: whose contract is shown.
        repo_id: "user/name".
        licence: of the weights, as the Hub spells it, such as "apache-2.0".
        benchmark: the tables.
        method: this model's row in them.
        dataset_name: what it was measured on.
        dataset_split: of it; never the training split.
        command: that made the numbers.
        training_config: settings of the run.
        limits: known failure modes, in sentences.

    Raises:
        CardError: listing all that is missing.
    """
    contract = pipeline.contract
    missing = []
    if contract is None:
        missing.append("a contract in the pipeline (what it was trained on)")
    else:
        missing += [
            f"the contract's {k}" for k in ("training_data", "training_data_licence") if not getattr(contract, k)
        ]
    for name, value in (
        ("licence", licence), ("dataset_name", dataset_name), ("dataset_split", dataset_split), ("command", command),
        ("training_config", training_config), ("limits", limits),
    ):  # fmt: skip
        if not value:
            missing.append(f"`{name}`")
    rows = [row for row in benchmark.rows if row["method"] == method]
    if not rows:
        missing.append(f"a row {method!r} in the benchmark")
    if missing:
        raise CardError(f"The model card would lack {', '.join(missing)}.")
    if dataset_split == "train":
        raise CardError("A model is not judged on its training split: name a held-out split.")
    assert contract is not None
    results = [
        EvalResult(
            task_type="image-to-image",
            dataset_type=dataset_name,
            dataset_name=f"{dataset_name}, {row['group']}",
            dataset_split=dataset_split,
            metric_type=column,
            metric_name=COLUMNS[column][0],
            metric_value=round(float(row[column]), 4),
            metric_args={"convention": column.split("_")[-1] if column.startswith(("psnr", "ssim")) else "full, body"},
        )
        for row in rows
        for column in _REPORTED
        if row.get(column) is not None
    ]
    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["diffusers-ct", "computed-tomography", "low-dose-ct", "medical", "dicom"],
    )
    metadata = data.to_dict() | {"model-index": eval_results_to_model_index(repo_id.split("/")[-1], results)}
    body = _render(
        "model_card.md.jinja",
        repo_id=repo_id,
        what="Restores low-dose CT (HU in, HU out) by residual diffusion.",
        contract=contract,
        promises=_promises(contract),
        dataset_name=dataset_name,
        dataset_split=dataset_split,
        command=command,
        tables=benchmark.to_markdown(),
        limits=list(limits),
        training_config=sorted((k, v) for k, v in training_config.items() if v is not None and "dir" not in k),
        package_version=benchmark.facts.get("package_version", __version__),
        git_revision=benchmark.facts.get("git_revision"),
    )
    return _with_metadata(metadata, body)


def push_dataset(
    dataset: DatasetDict,
    repo_id: str,
    *,
    licence: str,
    description: str,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Pushes a prepared dataset as Parquet with a rendered card, in one commit; returns the commit's address.

    Raises:
        CardError: if a licence or description is missing.
        ValueError: if the rows were not de-identified by `prepare_paired_ct`, or hold anything but the schema's columns,
            hashed keys and known conditions (`check_nothing_identifying`).
    """
    for rows in dataset.values():
        check_nothing_identifying(rows)
    card = render_dataset_card(dataset, repo_id=repo_id, licence=licence, description=description)
    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        for split, rows in dataset.items():
            rows.to_parquet(str(Path(folder) / "data" / f"{split}-00000-of-00001.parquet"))
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        return str(
            api.upload_folder(
                repo_id=repo_id, folder_path=folder, repo_type="dataset", commit_message="Add paired CT dataset"
            )
        )


def render_dataset_card(dataset: DatasetDict, *, repo_id: str, licence: str, description: str) -> str:
    """A dataset card from the rows themselves.

    Raises:
        CardError: listing all that is missing.
    """
    missing = [name for name, value in (("licence", licence), ("description", description)) if not value]
    if missing or not any(len(rows) for rows in dataset.values()):
        raise CardError(f"The dataset card would lack {', '.join(missing or ['any row'])}.")

    def distinct(column: str) -> list[Any]:
        return sorted({value for rows in dataset.values() for value in rows[column]})

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
    body = _render(
        "dataset_card.md.jinja",
        repo_id=repo_id,
        description=description,
        splits=[(name, len(rows), len(set(rows["patient_key"]))) for name, rows in dataset.items() if len(rows)],
        doses=", ".join(f"{100 * dose:.3g} %" for dose in distinct("dose_fraction")),
        targets=", ".join(f"`{target}`" for target in distinct("target")),
        sources=", ".join(sources),
        licence=licence,
    )
    return _with_metadata(metadata, body)


def check_nothing_identifying(rows: Dataset) -> None:
    """Refuses rows that were not de-identified by the preparation, or hold more than it writes.

    Verified in every row: the columns and their types; that keys have the form of keyed hashes, and those of phantoms are
    the ones of their seed; that all text is a technical term or a name of a condition, the body part one of known words; that
    no age is above 90; that provenance names this package's allow-list, and no path or person. Taken on trust: that keys of
    patients were made with a secret salt, and what the pixels show.

    Raises:
        ValueError: naming the column.
    """
    if extra := sorted(set(rows.column_names) ^ set(_COLUMNS)):
        raise ValueError(f"Only the columns of the paired-CT schema are pushed; these differ: {', '.join(extra)}.")
    for column in ("low", "full"):
        if getattr(rows.features[column], "dtype", None) != "int16":
            raise ValueError(f"`{column}` does not hold volumes of int16 HU: prepare the data anew.")
    for column in ("dose_fraction", "noise_hu", "spacing_mm", "affine_lps"):
        kind = rows.features[column]
        if not str(getattr(getattr(kind, "feature", kind), "dtype", "")).startswith("float"):
            raise ValueError(f"`{column}` does not hold numbers: prepare the data anew.")
    light = rows.select_columns(["scan_key", "patient_key", "split", "target", "checksum", "conditions", "provenance"])
    for row in light.with_format(None):
        _check_keys(row)
        _check_conditions(json.loads(row["conditions"]))
        _check_provenance(row["provenance"], row["patient_key"])


def _check_keys(row: Mapping[str, Any]) -> None:
    for column in ("scan_key", "patient_key"):
        if not _HASH.fullmatch(row[column]):
            raise ValueError(f"A value of `{column}` is no salted hash: prepare the data anew.")
    if row["split"] not in SPLITS or row["target"] not in TARGETS or not _CHECKSUM.fullmatch(row["checksum"]):
        raise ValueError(
            "`split`, `target` or `checksum` holds what the preparation does not write: prepare the data anew."
        )


def _check_conditions(conditions: Mapping[str, Any]) -> None:
    if extra := sorted(set(conditions) - set(ScanConditions().to_dict())):
        raise ValueError(f"`conditions` holds fields beyond `ScanConditions`: {', '.join(extra)}.")
    if conditions.get("text") is not None:
        raise ValueError("`conditions` holds a free text, which may name the patient: set its `text` to None.")
    for name, value in conditions.items():
        if name in ("findings", "findings_absent"):
            known = all(isinstance(one, str) and _NAME.fullmatch(one) for one in value)
        elif name == "contrast_phase":
            known = value is None or bool(_NAME.fullmatch(str(value)))
        elif name == "body_part":
            known = value is None or all(_BODY.fullmatch(word) for word in re.findall(r"[^\W\d_]+", str(value)))
        else:
            known = not isinstance(value, str) or bool(_TECHNICAL.fullmatch(value))
        if not known:
            raise ValueError(
                f"`{name}` of the `conditions` is no term known here, and may name the patient: set it to None."
            )
    if (conditions.get("age_years") or 0) > 90:
        raise ValueError("`age_years` of the `conditions` is above 90: ages above 89 are one group, stored as 90.")


def _check_provenance(text: str, patient_key: str) -> None:
    if any(mark in text for mark in ("/", "\\\\", "^", "@")):
        raise ValueError("`provenance` holds what looks like a path or a name: prepare the data anew.")
    provenance = json.loads(text)
    if provenance.get("deidentification") != DEIDENTIFICATION:
        raise ValueError(
            "`provenance` does not say that the row was de-identified by this package: prepare the data anew with "
            "`diffusers-ct prepare`. Data from elsewhere are not pushed."
        )
    if provenance.get("source") == "phantom" and patient_key != hashed_key("phantom", provenance.get("phantom_seed")):
        raise ValueError(
            "A row is said to be a phantom, but its `patient_key` is not that of its seed: prepare the data anew."
        )
    if any(len(one) > 64 for one in _strings(provenance)):
        raise ValueError("`provenance` holds a long text: prepare the data anew.")


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def _promises(contract: CheckpointContract) -> list[tuple[str, str]]:
    shown = []
    for name in ("hu_range", *CheckpointContract.checkable()):
        value = getattr(contract, name)
        if not value:
            text = "not stated"
        elif isinstance(value[0], str):
            text = ", ".join(value)
        elif name == "volume_shape":
            text = " x ".join(map(str, value))
        else:
            text = f"{value[0]:.4g} to {value[1]:.4g}"
        shown.append((f"`{name}`", text))
    return shown


def _render(template: str, **values: Any) -> str:
    source = files("diffusers_ct").joinpath("card_templates", template).read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=False, autoescape=False)
    return environment.from_string(source).render(**values)


def _with_metadata(metadata: Mapping[str, Any], body: str) -> str:
    import yaml

    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n\n{body}"
