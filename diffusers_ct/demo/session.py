"""One visitor's scan: dropped, read, given a lower dose, restored, written. No Gradio in here.

What is dropped lies in a private folder under a name of ours, and is deleted once it has been read.
"""

import json
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..derivations import (
    header_number,
    notes_of_reading,
    notes_of_truncation,
    restoration_derivation,
    simulation_settings,
    source_without_dose,
)
from ..io import (
    DeidentificationKey,
    Derivation,
    SeriesSummary,
    SeveralSeriesError,
    list_series,
    open_volume_writer,
    read_volume,
)
from ..physics import simulate_scan
from ..physics.truncation import MEASURED_FIELD_MM
from ..pipelines import RestorationStream
from ..pipelines.restoration_cost import duration
from ..volume import CTVolume, ScanSlices
from .views import slice_view, top_of
from .words import StoppedError

FORMATS = {"DICOM (zip)": "dicom", "NIfTI (.nii.gz)": "nii.gz", "MetaImage (.mha)": "mha"}
STOPPED = "Stopped. Nothing was restored."
AS_IT_IS = "the scan"
_VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha")


@dataclass(frozen=True)
class DemoModel:
    """The checkpoint that the page restores with.

    Attributes:
        pipeline: of a restoration checkpoint.
        model_id: its name, as files say it.
        model_revision: its commit or hash.
    """

    pipeline: Any
    model_id: str
    model_revision: str | None

    def __post_init__(self) -> None:
        if self.pipeline.config.target != "residual":
            raise ValueError(f"{self.model_id}: this checkpoint synthesises; the demo needs one that restores.")
        self.pipeline.set_progress_bar_config(disable=True)


@dataclass(frozen=True)
class Choices:
    """What the visitor chose.

    Attributes:
        dose_fraction: of the scan's own dose, simulated before it is restored; None restores the scan as it is.
        steps: of sampling.
        samples: that are averaged.
        seed: of the noise.
        kernel: of the simulation; None takes it from the scan's noise.
        i0: photons per ray of the simulation; None takes them from the scan's noise.
        ignore_contract: promises of the checkpoint not to check.
    """

    dose_fraction: float | None = None
    steps: int = 1
    samples: int = 1
    seed: int = 0
    kernel: str | None = None
    i0: float | None = None
    ignore_contract: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Restored:
    """A result.

    Attributes:
        low: what was restored.
        low_name: what it is called.
        hu: of its shape.
        uncertainty_hu: likewise; None for one sample.
        uncertainty_top_hu: the upper end of its colours.
        derivation: how it was made.
        source: header of the scan that it was made from.
        sentences: what is to be told of it.
    """

    low: CTVolume
    low_name: str
    hu: np.ndarray
    uncertainty_hu: np.ndarray | None
    uncertainty_top_hu: float
    derivation: Derivation
    source: Any
    sentences: tuple[str, ...]


class DemoSession:
    """A visitor.

    Args:
        folder: private, made here and removed by `close`.

    Attributes:
        scan: what was read last; None before.
        notes: sentences on it.
        stacks: what the archive holds, if one of several has to be chosen.
        restored: the last result; None before.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self._folder = folder
        self._stop = threading.Event()
        self._reset()

    def _reset(self) -> None:
        self.scan: CTVolume | None = None
        self.notes: list[str] = []
        self.stacks: list[SeriesSummary] = []
        self.restored: Restored | None = None
        self.path = self._folder / "scan"

    def take(self, uploads: Sequence[Path]) -> None:
        """Moves what was dropped here, in place of what was here; its names, which may be a patient's, are not kept.

        Args:
            uploads: one archive, NIfTI, MetaImage or DICOM file, or the DICOM files of a series. They are gone afterwards.

        Raises:
            ValueError: for several files that cannot be one scan, and for headers without their voxels.
        """
        for old in self._folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self._reset()
        suffixes = [
            next((suffix for suffix in (*_VOLUME_SUFFIXES, ".mhd") if path.name.lower().endswith(suffix)), "")
            for path in uploads
        ]
        try:
            if ".mhd" in suffixes:
                raise ValueError("A .mhd file keeps its voxels in a second file: save the scan as one .mha file.")
            if len(uploads) > 1 and any(suffixes):
                raise ValueError("These are several scans: drop one NIfTI or MetaImage file at a time.")
            if len(uploads) == 1:
                self.path = self._folder / f"scan{suffixes[0]}"
                shutil.move(uploads[0], self.path)
                return
            self.path.mkdir()
            for number, path in enumerate(uploads, 1):
                shutil.move(path, self.path / f"{number:05d}")
        finally:
            for path in uploads:
                path.unlink(missing_ok=True)

    def read(self, *, stack: int | None = None, resample: bool = False, assume_hu: bool = False) -> CTVolume:
        """Reads what was taken; a scan that has been read alone is deleted from the disk.

        Args:
            stack: number in `stacks`, from 0, where there are several.
            resample: as in `read_volume`.
            assume_hu: likewise.

        Raises:
            SeveralSeriesError: with `stacks` set: read again with one of them.
            CTReadError, ValueError: why there is no scan.
        """
        self.scan, self.restored = None, None
        if not self.path.exists():
            raise ValueError("There is no scan: drop one first.")
        chosen = None if stack is None else self.stacks[stack]
        try:
            scan = read_volume(
                self.path,
                series_uid=None if chosen is None else chosen.series_uid,
                stack=chosen.stack if chosen is not None and chosen.stacks > 1 else None,
                resample=resample,
                assume_hu=assume_hu,
            )
        except SeveralSeriesError:
            self.stacks = [one for one in list_series(self.path) if one.kind != "localizer"]
            raise
        self.scan, self.notes = scan, notes_of_reading(scan)
        if not self.stacks:
            shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()
        return scan

    def restore(self, model: DemoModel, choices: Choices, tell: Callable[[str], None]) -> Restored:
        """Restores the scan, at a lower dose if that is chosen.

        Args:
            model: to do it with.
            choices: of the visitor.
            tell: takes what is being done, in words.

        Raises:
            StoppedError: if `stop` was called meanwhile.
            ContractError, DoesNotFitError, ValueError: as `simulate_scan` and `RestorationStream`.
        """
        scan = self.scan
        if scan is None:
            raise ValueError("There is no scan to restore: drop one first.")
        if choices.samples > 1 and choices.steps < 2:
            raise ValueError("Samples of one step are all the same: take 2 `steps` or more, or 1 `samples`.")
        derivation = restoration_derivation(
            model_id=model.model_id,
            model_revision=model.model_revision,
            num_inference_steps=choices.steps,
            num_samples=choices.samples,
            seed=choices.seed,
        )
        low, low_name, source, notes = scan, AS_IT_IS, scan.source, list[str]()
        if choices.dose_fraction is not None:
            tell(f"Simulating {100 * choices.dose_fraction:g} % of the dose ...")
            low, derivation, notes = _at_lower_dose(scan, choices, derivation)
            low_name = f"simulated {100 * choices.dose_fraction:g} % dose"
            source = source_without_dose(scan)
        self._check_stopped(scan)

        def told(done: int, total: int) -> None:
            self._check_stopped(scan)
            tell(f"Restoring: {100 * done / total:.0f} % ({estimate})")

        estimate = ""
        tell("Looking at the noise of the scan ...")
        stream = RestorationStream(
            model.pipeline,
            ScanSlices.of(low),
            num_inference_steps=choices.steps,
            num_samples=choices.samples,
            seed=choices.seed,
            ignore_contract=choices.ignore_contract,
            told=told,
        )
        tell("Measuring how long it will take ...")
        cost = stream.measure()
        estimate = f"about {duration(cost.seconds)} in all"
        tell(f"Restoring: {estimate}")
        self._check_stopped(scan)
        began = time.perf_counter()
        hu = np.empty(low.shape, dtype=np.float32)
        uncertainty_hu = np.empty(low.shape, dtype=np.float32) if choices.samples > 1 else None
        for slab in stream:
            hu[slab.z] = slab.hu
            if uncertainty_hu is not None:
                uncertainty_hu[slab.z] = slab.uncertainty_hu
        self._check_stopped(scan)
        sentences = [f"Restored in {duration(time.perf_counter() - began)}.", *notes]
        if stream.unchecked:
            sentences.append(f"Not checked, as the scan does not say: {', '.join(stream.unchecked)}.")
        if choices.ignore_contract:
            sentences.append("Parts of the checkpoint's contract were not checked: this result is not validated.")
        sentences += [f"Not used: {sentence}" for sentence in stream.left_out]
        top_hu = 1.0 if uncertainty_hu is None else top_of(uncertainty_hu)
        self.restored = Restored(low, low_name, hu, uncertainty_hu, top_hu, derivation, source, tuple(sentences))
        return self.restored

    def ready(self) -> None:
        """Forgets an earlier `stop`: to be called when a restoration is asked for."""
        self._stop.clear()

    def stop(self) -> None:
        """Ends a restoration that is waited for or under way, at its next evaluation of the network."""
        self._stop.set()

    def _check_stopped(self, scan: CTVolume) -> None:
        if self._stop.is_set() or self.scan is not scan:  # another was dropped meanwhile
            raise StoppedError(STOPPED)

    def view(self, number: int, *, window: str, difference_hu: float) -> dict[str, Any] | None:
        """One slice as the page shows it, see `slice_view`; None without a scan."""
        look: dict[str, Any] = {"window": window, "difference_hu": difference_hu}
        if self.restored is not None:
            done = self.restored
            return slice_view(
                done.low,
                number,
                **look,
                low_name=done.low_name,
                restored_hu=done.hu,
                uncertainty_hu=done.uncertainty_hu,
                uncertainty_top_hu=done.uncertainty_top_hu,
            )
        return None if self.scan is None else slice_view(self.scan, number, **look, low_name=AS_IT_IS)

    def write(self, file_format: str, *, with_uncertainty: bool = False) -> list[Path]:
        """Writes the result as a new DERIVED scan without the patient's identity, by the package's own writer.

        Args:
            file_format: "dicom" (a zip of one folder a series), "nii.gz" or "mha".
            with_uncertainty: also the standard deviation of the samples, if there are several.

        Returns:
            The files; they are this session's, and go with the next ones.

        Raises:
            ValueError: if there is nothing, or if it cannot be stored.
        """
        if self.restored is None:
            raise ValueError("There is no result yet: restore a scan first.")
        done = self.restored
        for old in self._folder.glob("result-*"):
            shutil.rmtree(old)
        folder = self._folder / f"result-{secrets.token_hex(8)}"
        folder.mkdir()
        parts: dict[str, tuple[np.ndarray, str, float | None]] = {"restored": (done.hu, "diffusers-ct restored", 1.0)}
        if with_uncertainty and done.uncertainty_hu is not None:
            parts["uncertainty"] = (done.uncertainty_hu, "diffusers-ct uncertainty (SD)", None)
        key = DeidentificationKey.random()  # of both, so that they stay in one study
        written = []
        for name, (hu, description, slope) in parts.items():
            path = folder / (name if file_format == "dicom" else f"{name}.{file_format}")
            with open_volume_writer(
                path,
                replace(ScanSlices.of(done.low), source=done.source),
                derivation=done.derivation,
                series_description=description,
                rescale_slope=slope,
                key=key,
            ) as writer:
                writer.write(hu)
            written.append(path)
        return [_zipped(folder / "restored_dicom.zip", written)] if file_format == "dicom" else written

    def close(self) -> None:
        """Stops, forgets the scan and removes its folder."""
        self.stop()
        self._reset()
        shutil.rmtree(self._folder, ignore_errors=True)


def _at_lower_dose(scan: CTVolume, choices: Choices, derivation: Derivation) -> tuple[CTVolume, Derivation, list[str]]:
    """The scan at a lower dose, the derivation of what is restored from it, and notes; as `diffusers-ct simulate`."""
    assert choices.dose_fraction is not None
    made = simulate_scan(
        scan,
        dose_fraction=choices.dose_fraction,
        seed=choices.seed,
        kernel=choices.kernel,
        i0=choices.i0,
        field_mm=header_number(scan, "DataCollectionDiameter") or MEASURED_FIELD_MM,
    )
    settings = simulation_settings(scan, made, dose_fraction=choices.dose_fraction, seed=choices.seed)
    # The header's mAs are those of the scan's own dose; what fraction of it this is, we know.
    conditions = replace(scan.conditions, dose_fraction=choices.dose_fraction, tube_current_mas=None)
    method = f"{derivation.method}, of a low dose simulated through projections"
    return (
        replace(made.volume, conditions=conditions),
        replace(derivation, method=method, conditions=json.dumps(settings)),
        notes_of_truncation(scan, made),
    )


def _zipped(path: Path, folders: Sequence[Path]) -> Path:
    """An archive of folders, which are removed."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for folder in folders:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"{folder.name}/{file.name}")
            shutil.rmtree(folder)
    return path
