"""`PairedCT`, the `datasets` builder of pairs from any of the three sources, and `load_paired_ct`, which opens them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ..physics import KERNELS, DoseSettings
from .dicom_trees import Problem
from .folders import existing_folder, is_hub_name, open_on_hub
from .manifest import SPLITS, SplitRule, check_dose_fraction, features
from .opening import open_rows
from .scans import check_patient_rule
from .sources import DEFAULT_REGIONS, ScanTask, plan_normal_dose, plan_pairs, plan_phantoms
from .workers import Workers


@dataclass(eq=False)
class PairedCTConfig(datasets.BuilderConfig):
    """What to make pairs from; exactly one of `pairs`, `normal_dose` and `phantoms` is given.

    Attributes:
        pairs: folder with full- and low-dose DICOM series.
        normal_dose: folder with normal-dose DICOM series, from which low doses are simulated.
        phantoms: number of phantoms.
        dose_fractions: of the routine dose, each in (0, 1). For `pairs` one number, which the caller must know.
        realizations: noise realisations for each dose fraction (simulated sources).
        seed: of the simulation; for phantoms the seed of the first one.
        regions: phantom regions, taken in turns, of "thorax", "abdomen", "pelvis", "shoulder", "head".
        shape: of the phantoms, (depth, height, width).
        spacing_mm: of the phantoms, (z, y, x).
        validation_fraction: of the patients.
        test_fraction: of the patients.
        split_by_patient: patient identifier (PatientID or Mayo case number; "phantom-3") -> split.
        salt: of the patient keys; keep it secret.
        matrix: (height, width), needed when the scans of the builder differ in it: one dataset has one matrix.
        i0: photons per ray at normal dose; None: from the noise of each scan under `normal_dose`, else (phantoms) the
            simulator's.
        kernel: name in `diffusers_ct.physics.KERNELS`, or the fields of a window; None as for `i0`.
        simulation: other fields of `diffusers_ct.physics.DoseSettings` that differ from its defaults, such as
            `electronic_variance`.
        patient_from_name: whose a NIfTI or MetaImage file under `normal_dose` is: a regular expression with one group,
            for its path below the folder.
        assume_hu: take the values of such a file as HU though no air is among them.
    """

    pairs: str | None = None
    normal_dose: str | None = None
    phantoms: int | None = None
    dose_fractions: tuple[float, ...] = ()
    realizations: int = 1
    seed: int = 0
    regions: tuple[str, ...] = DEFAULT_REGIONS
    shape: tuple[int, int, int] = (32, 256, 256)
    spacing_mm: tuple[float, float, float] = (2.0, 1.4, 1.4)
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    split_by_patient: Mapping[str, str] = field(default_factory=dict)
    salt: str | None = None
    matrix: tuple[int, int] | None = None
    i0: float | None = None
    kernel: str | Mapping[str, Any] | None = None
    simulation: Mapping[str, Any] = field(default_factory=dict)
    patient_from_name: str | None = None
    assume_hu: bool = False

    def check(self) -> None:
        """Refuses a combination that means nothing.

        Raises:
            ValueError: naming what to change.
        """
        given = [name for name in ("pairs", "normal_dose", "phantoms") if getattr(self, name) is not None]
        if len(given) != 1:
            got = ", ".join(f"`{name}`" for name in given) or "none"
            raise ValueError(f"Give exactly one of `pairs`, `normal_dose` and `phantoms`, got {got}.")
        if not self.dose_fractions:
            raise ValueError("`dose_fractions` must be given: no header tells the dose of a low-dose image reliably.")
        for fraction in self.dose_fractions:
            check_dose_fraction(fraction)
        if self.pairs is not None and (len(self.dose_fractions) != 1 or self.realizations != 1):
            raise ValueError(
                "Measured pairs have one dose and one noise (`dose_fractions`, `realizations`): prepare each dose by itself."
            )
        if self.phantoms is not None and not (min(self.shape) >= 1 and min(self.spacing_mm) > 0):
            raise ValueError(f"`shape` and `spacing_mm` must be positive, got {self.shape} and {self.spacing_mm}.")
        self._dose_settings()
        check_patient_rule(self.patient_from_name)
        for name in ("patient_from_name", "assume_hu"):
            if getattr(self, name) and self.normal_dose is None:
                raise ValueError(f"`{name}` is for NIfTI and MetaImage files under `normal_dose`.")
        if self.salt is None and self.phantoms is None:
            raise ValueError("`salt` must be given for scans of patients: a secret text that protects their keys.")

    def _dose_settings(self) -> DoseSettings:
        if self.i0 is not None and not 0 < self.i0 < float("inf"):
            raise ValueError(f"`i0` must be positive, got {self.i0}.")
        if isinstance(self.kernel, str) and self.kernel not in KERNELS:
            raise ValueError(f"Unknown `kernel` {self.kernel!r}: choose one of {', '.join(KERNELS)}.")
        known = {item.name for item in fields(DoseSettings)} - {"i0", "kernel"}
        if unknown := sorted(set(self.simulation) - known):
            raise ValueError(f"Unknown settings of the simulation {unknown}: choose of {sorted(known)}.")
        fixed = {name: value for name in ("i0", "kernel") if (value := getattr(self, name)) is not None}
        return DoseSettings.from_dict({**self.simulation, **fixed})

    def plan(self, workers: Workers | None = None) -> tuple[list[ScanTask], list[Problem]]:
        """Lists the scans to be made into rows, and what could not be used and why; `workers` read the headers."""
        self.check()
        settings = self._dose_settings()
        split_rule = SplitRule(self.validation_fraction, self.test_fraction, dict(self.split_by_patient))
        common = {
            "dose_fractions": self.dose_fractions,
            "realizations": self.realizations,
            "seed": self.seed,
            "split_rule": split_rule,
            "settings": settings,
        }
        if self.phantoms is not None:
            place = {"regions": self.regions, "shape": self.shape, "spacing_mm": self.spacing_mm}
            return plan_phantoms(self.phantoms, **common, **place), []  # type: ignore[arg-type]
        assert self.salt is not None  # by `check`
        if self.pairs is not None:
            return plan_pairs(
                Path(self.pairs),
                dose_fraction=self.dose_fractions[0],
                salt=self.salt,
                split_rule=split_rule,
                workers=workers,
            )
        return plan_normal_dose(
            Path(str(self.normal_dose)),
            salt=self.salt,
            patient_from_name=self.patient_from_name,
            assume_hu=self.assume_hu,
            i0=self.i0,
            kernel=None if self.kernel is None else settings.kernel,
            workers=workers,
            **common,  # type: ignore[arg-type]
        )


class PairedCT(datasets.GeneratorBasedBuilder):
    """Pairs of low- and full-dose CT as a `datasets` builder, used directly.

    ``PairedCT(phantoms=4, dose_fractions=(0.25,)).download_and_prepare()`` and ``.as_dataset()`` work as for any
    builder, and so do `as_streaming_dataset` (rows are made while they are read) and `num_proc`. For a folder that is
    kept, resumes after a crash and goes on past damaged scans, use `prepare_paired_ct`.

    Raises:
        ValueError: on preparation, if any scan cannot be used, or if matrices differ and `matrix` is not given.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = PairedCTConfig
    DEFAULT_WRITER_BATCH_SIZE = 1

    def _info(self) -> datasets.DatasetInfo:
        tasks, problems = self.config.plan()
        if problems:
            raise ValueError("\n".join(["Some scans cannot be used:", *map(str, problems)]))
        self._tasks = tasks
        matrices = sorted({task.matrix for task in tasks})
        if self.config.matrix is None and len(matrices) > 1:
            raise ValueError(f"The scans have different matrices; give `matrix` as one of {matrices}.")
        self._matrix = tuple(self.config.matrix or matrices[0])
        return datasets.DatasetInfo(description="Low- and full-dose CT pairs in HU.", features=features(self._matrix))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        tasks = [task for task in self._tasks if task.matrix == self._matrix]
        generators = []
        for split in SPLITS:
            here = [task for task in tasks if task.split == split]
            if here:
                generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"tasks": here}))
        return generators

    def _generate_examples(self, tasks: list[ScanTask]) -> Iterator[tuple[str, dict[str, Any]]]:
        for task in tasks:
            for row in task.rows(task.row_keys):
                yield row["scan_key"], row


def load_paired_ct(
    path: str | Path,
    split: str | None = None,
    *,
    matrix: tuple[int, int] | None = None,
    streaming: bool = False,
    unfinished: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """Opens a folder made by `prepare_paired_ct`, memory-mapped, or a pushed dataset by its Hub name.

    Args:
        path: the folder, or "owner/name" on the Hub. The Hub is not asked for a `Path`, nor for a name that can only be
            meant as a folder, such as "data/name" where a folder data is.
        split: "train", "validation" or "test"; without it all splits as a dict.
        matrix: (height, width), needed when the folder holds scans of several matrix sizes.
        streaming: gives iterable datasets, which read row after row; `StreamingPatches` cuts patches from them.
        unfinished: opens what is ready of a folder whose preparation has not ended.
        revision: branch, tag or commit of a dataset on the Hub. Without a network none can be asked for: the version that was
            used last is opened then.
        token: of the Hub; None takes the one logged in with.

    Raises:
        FileNotFoundError: if there is neither such a folder nor such a dataset on the Hub, or the folder is not finished.
        NotADirectoryError: if the path is a file.
        ValueError: if the split is empty or unknown, the folder holds unpaired scans, or `matrix` is needed and not
            given.
    """
    if not Path(path).exists() and is_hub_name(path):
        return open_on_hub(str(path), split=split, streaming=streaming, revision=revision, token=token)
    if revision is not None:
        raise ValueError(f"`revision` is for datasets on the Hub; {path} is none.")
    if split is not None and split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    folder = existing_folder(
        path,
        advice="make it with `diffusers-ct prepare`, or check its name; a dataset on the Hub is called owner/name.",
    )
    return open_rows(folder, split, kind="paired", matrix=matrix, streaming=streaming, unfinished=unfinished)
