"""A visitor's session without a page: what is dropped, restored, refused, written, and what is left."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from diffusers_ct import CTVolume, read_volume, write_volume
from diffusers_ct.demo.session import Choices, DemoModel, DemoSession
from diffusers_ct.demo.visitors import Visitors
from diffusers_ct.demo.words import StoppedError, facts_of, name_of, sentence_of, without_paths
from diffusers_ct.io import CTReadError, SeveralSeriesError
from diffusers_ct.pipelines import ContractError, RestorationStream
from diffusers_ct.pipelines.restoration_cost import DoesNotFitError
from diffusers_ct.volume import ScanSlices
from tests.demo.checkpoint import tiny_model, tiny_pipeline
from tests.io.synthetic import SECRETS, hu_of, write_series


@pytest.fixture
def session(tmp_path) -> DemoSession:
    return DemoSession(tmp_path / "private")


def zip_of(folder: Path, path: Path, inside: str = "HIDALGO-1605/Quixote") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{inside}/{file.relative_to(folder)}")
    return path


def as_read(hu: np.ndarray) -> np.ndarray:
    """What lies below the range of CT is read as air."""
    return np.where(hu < -1024.0, -1000.0, hu)


def silent(_: str) -> None: ...


def test_a_zip_becomes_a_derived_series_and_its_uncertainty_and_nothing_is_left(session, tmp_path):
    write_series(tmp_path / "in", hu_of())
    upload = zip_of(tmp_path / "in", tmp_path / "Quixote.zip")
    session.take([upload])
    assert not upload.exists()
    scan = session.read()
    assert not session.path.exists()  # read, and deleted
    told: list[str] = []
    model = tiny_model()
    done = session.restore(model, Choices(steps=2, samples=2, seed=3), told.append)
    assert done.hu.shape == done.uncertainty_hu.shape == scan.shape and done.uncertainty_hu.max() > 0
    assert told[-1].startswith("Restoring: 100 % (about ")
    stream = RestorationStream(model.pipeline, ScanSlices.of(scan), num_inference_steps=2, num_samples=2, seed=3)
    assert np.array_equal(done.hu, np.concatenate([slab.hu for slab in stream]))  # as `diffusers-ct restore` does
    (file,) = session.write("dicom", with_uncertainty=True)
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "out")
    restored, spread = (read_volume(tmp_path / "out" / name) for name in ("restored", "uncertainty"))
    assert (
        np.abs(restored.hu - as_read(np.rint(done.hu))).max() == 0.0
        and np.abs(spread.hu - done.uncertainty_hu).max() <= 0.06
    )
    np.testing.assert_allclose(restored.affine_lps, scan.affine_lps, atol=1e-6)
    headers = [pydicom.dcmread(next((tmp_path / "out" / name).iterdir())) for name in ("restored", "uncertainty")]
    assert headers[0].StudyInstanceUID == headers[1].StudyInstanceUID
    for part in ("seed=3", "num_samples=2", "model_id=tiny", "sha256:0123"):
        assert part in headers[0].DerivationDescription
    assert headers[0].ImageType[0] == "DERIVED" and "SourceImageSequence" in headers[0]
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*.dcm"))
    assert not [secret for secret in SECRETS.values() if secret.encode() in written]
    session.close()
    assert not (tmp_path / "private").exists()


def test_a_lower_dose_is_simulated_first_and_the_file_says_so(session, tmp_path):
    hu = np.random.default_rng(0).normal(40.0, 12.0, (2, 96, 96)).astype(np.float32)
    hu[:, np.hypot(*np.mgrid[-1:1:96j, -1:1:96j]) > 0.8] = -1000.0
    write_series(tmp_path / "in", hu, pixel_mm=(2.0, 2.0), Exposure="150")
    session.take(sorted((tmp_path / "in").iterdir()))
    scan = session.read()
    assert scan.conditions.tube_current_mas == 150.0
    done = session.restore(tiny_model(), Choices(dose_fraction=0.1, kernel="soft", i0=1e5, seed=5), silent)
    assert done.low.hu.std() > scan.hu.std() and done.low_name == "simulated 10 % dose"
    assert done.low.conditions.dose_fraction == 0.1 and done.low.conditions.tube_current_mas is None
    (file,) = session.write("dicom")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "out")
    header = pydicom.dcmread(next((tmp_path / "out" / "restored").iterdir()))
    assert "Exposure" not in header and "simulated through projections" in header.DerivationDescription
    told = header.DerivationDescription
    settings = json.loads(told[told.index("{") : told.rindex("}") + 1])
    assert settings["dose_fraction"] == 0.1 and settings["i0"] == 1e5 and settings["source_exposure_mas"] == 150.0
    # A checkpoint for other doses refuses it, as the dose is known.
    with pytest.raises(ContractError) as refused:
        session.restore(tiny_model(dose_fraction=(0.2, 0.3)), Choices(dose_fraction=0.1, kernel="soft", i0=1e5), silent)
    assert list(refused.value.outside) == ["dose_fraction"]


@pytest.mark.parametrize(("suffix", "file_format"), [(".nii.gz", "nii.gz"), (".mha", "mha"), (".nii", "dicom")])
def test_nifti_and_metaimage_come_and_go(session, tmp_path, suffix, file_format):
    volume = CTVolume.from_array(hu_of(), (2.0, 0.8, 0.8))
    session.take([Path(write_volume(volume, tmp_path / f"Quixote{suffix}"))])
    session.read()
    done = session.restore(tiny_model(), Choices(), silent)
    (file,) = session.write(file_format, with_uncertainty=True)  # of one sample there is none
    if file_format == "dicom":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(tmp_path / "out")
        file = tmp_path / "out" / "restored"
        assert pydicom.dcmread(next(file.iterdir())).ImageType[0] == "DERIVED"
    else:
        assert file.name == f"restored.{file_format}"
        assert session.write(file_format)[0] != file and not file.exists()  # only the last is kept
        (file,) = session.write(file_format)
        assert b"residual diffusion" in _unpacked(file)
    np.testing.assert_allclose(read_volume(file).hu, as_read(np.rint(done.hu) if file_format == "dicom" else done.hu))


def _unpacked(file: Path) -> bytes:
    import gzip

    return gzip.open(file).read() if file.name.endswith(".gz") else file.read_bytes()


def test_of_several_series_one_is_chosen(session, tmp_path):
    write_series(tmp_path / "in" / "a", hu_of(), description="thin")
    write_series(tmp_path / "in" / "b", hu_of((6, 32, 24)), description="Quixote thick")
    session.take([zip_of(tmp_path / "in", tmp_path / "both.zip")])
    with pytest.raises(SeveralSeriesError):
        session.read()
    names = [name_of(stack, k + 1) for k, stack in enumerate(session.stacks)]
    assert names == ["1. 6 slices of 32 x 24, original, * thick", "2. 4 slices of 32 x 24, original, thin"]
    assert session.read(stack=1).shape == (4, 32, 24)
    assert session.read(stack=0).shape == (6, 32, 24)  # kept, for another choice
    session.take([zip_of(tmp_path / "in" / "a", tmp_path / "one.zip")])
    assert session.stacks == [] and session.read().shape == (4, 32, 24)


def test_mistakes_are_sentences_in_the_page_s_words(session, tmp_path):
    for choices in (Choices(), Choices(samples=2)):
        with pytest.raises(ValueError, match="drop one first"):
            session.restore(tiny_model(), choices, silent)
    with pytest.raises(ValueError, match="drop one first"):
        session.read()
    with pytest.raises(ValueError, match="no result yet"):
        session.write("dicom")
    (tmp_path / "Quixote.mhd").write_text("x")
    with pytest.raises(ValueError, match=r"one \.mha file") as refused:
        session.take([tmp_path / "Quixote.mhd"])
    assert sentence_of(refused.value, session.path, None) == str(refused.value)
    assert not (tmp_path / "Quixote.mhd").exists()

    plain = hu_of() + 1500.0
    session.take([Path(write_volume(CTVolume.from_array(plain, (2.0, 0.8, 0.8)), tmp_path / "Quixote.nii.gz"))])
    with pytest.raises(CTReadError) as refused:
        session.read()
    sentence = sentence_of(refused.value, session.path, None)
    assert "“Take the values as HU though no air is among them”" in sentence
    assert "assume_hu" not in sentence and str(tmp_path) not in sentence
    session.read(assume_hu=True)
    with pytest.raises(ValueError, match="all the same") as refused:
        session.restore(tiny_model(), Choices(samples=2), silent)
    assert sentence_of(refused.value, session.path, None) == (
        "Samples of one step are all the same: take 2 “Steps” or more, or 1 “Samples”."
    )


def test_a_scan_outside_the_contract_is_refused_until_named(session, tmp_path):
    write_series(tmp_path / "in", hu_of(), ConvolutionKernel="BONE Quixote")
    session.take([zip_of(tmp_path / "in", tmp_path / "one.zip")])
    scan = session.read()
    model = tiny_model(kernels=("B30f",), slice_spacing_mm=(1.0, 2.0))
    with pytest.raises(ContractError) as refused:
        session.restore(model, Choices(), silent)
    assert list(refused.value.outside) == ["slice_spacing_mm", "kernels"]
    sentence = sentence_of(refused.value, session.path, scan)
    assert "kernel is 'BONE *', accepted are B30f" in sentence and "slice spacing [mm] is 2.5" in sentence
    assert "ignore_contract" not in sentence and "tick below" in sentence
    done = session.restore(model, Choices(ignore_contract=("slice_spacing_mm", "kernels")), silent)
    assert any("not validated" in text for text in done.sentences)


def test_no_name_of_a_file_or_a_patient_is_said(session, tmp_path):
    write_series(tmp_path / "in", hu_of(), BodyPartExamined="QUIXOTE HEAD")
    file = next((tmp_path / "in").iterdir())
    file.write_bytes(file.read_bytes()[:900])
    upload = zip_of(tmp_path / "in", tmp_path / "Quixote.zip", "HIDALGO 1605/Alonso Quixote")
    session.take([upload])
    with pytest.raises(CTReadError) as refused:
        session.read()
    assert "Quixote" in str(refused.value)  # the library names the file: the user's own
    sentence = sentence_of(refused.value, session.path, None)
    assert sentence.startswith("A file in it: the header of a CT image is cut off") and "Alonso" not in sentence
    assert "Quixote" not in sentence and "HIDALGO" not in sentence and str(tmp_path) not in sentence
    file.unlink()
    session.take([zip_of(tmp_path / "in", tmp_path / "again.zip")])
    facts = " ".join(facts_of(session.read(), session.notes))
    assert facts.startswith("3 slices of 32 x 24") and "kernel B30f" in facts and "quixote" not in facts.lower()
    unsafe = tmp_path / "unsafe.zip"
    with zipfile.ZipFile(unsafe, "w") as archive:
        archive.writestr("../Quixote.dcm", b"x")
    session.take([unsafe])
    with pytest.raises(CTReadError) as refused:
        session.read()
    assert "Quixote" not in sentence_of(refused.value, session.path, None)
    folder = tmp_path / "several"
    assert without_paths(f"{folder}/00001: cut off", folder) == "One of the files: cut off"


def test_what_is_no_mistake_of_the_user_s_is_told_without_its_text(session):
    told = sentence_of(KeyError("Quixote"), session.path, None)
    assert told.startswith("The program failed (KeyError)") and "Quixote" not in told
    assert "The memory is full" in sentence_of(MemoryError(), session.path, None)
    stopped = StoppedError("Stopped.")
    assert sentence_of(stopped, session.path, None) == "Stopped."


def test_what_does_not_fit_into_memory_is_refused_before_the_start(session, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_ct.pipelines.streaming.free_bytes", lambda device: 1000.0)
    session.take([Path(write_volume(CTVolume.from_array(hu_of(), (2.0, 0.8, 0.8)), tmp_path / "a.mha"))])
    session.read()
    with pytest.raises(DoesNotFitError) as refused:
        session.restore(tiny_model(), Choices(steps=2, samples=3), silent)
    sentence = sentence_of(refused.value, session.path, None)
    assert (
        "GiB are free" in sentence
        and "fewer “Samples” than 3" in sentence
        and "`" not in sentence.replace("`diffusers-ct restore --tile-size`", "")
    )


def test_stop_ends_a_restoration_and_another_scan_does_too(session, tmp_path):
    def drop() -> None:
        path = tmp_path / "scan.mha"
        session.take([Path(write_volume(CTVolume.from_array(hu_of(), (2.0, 0.8, 0.8)), path))])
        session.read()

    def stop_at(sentence: str, action) -> list[str]:
        told: list[str] = []

        def tell(text: str) -> None:
            told.append(text)
            if text.startswith(sentence):
                action()

        with pytest.raises(StoppedError):
            session.restore(tiny_model(), Choices(steps=8), tell)
        assert session.restored is None
        return told

    drop()
    assert not any("100 %" in text for text in stop_at("Restoring: 2", session.stop))
    session.ready()
    assert not any("100 %" in text for text in stop_at("Restoring: 2", drop))
    assert session.restore(tiny_model(), Choices(), silent) is session.restored


def test_a_checkpoint_that_synthesises_is_refused():
    pipe = tiny_pipeline(target="image")
    with pytest.raises(ValueError, match="needs one that restores"):
        DemoModel(pipe, "maker", None)


def test_visitors_are_apart_and_the_longest_idle_goes_first(tmp_path):
    visitors = Visitors(tmp_path, most=2)
    first, second = visitors.of("a"), visitors.of("b")
    assert visitors.of("a") is first and first is not second
    visitors.of("c")  # "b" was idle longest
    assert visitors.of("a") is first and len(list(tmp_path.iterdir())) == 2
    assert visitors.of("b") is not second
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in tmp_path.iterdir())
    visitors.close_all()
    assert list(tmp_path.iterdir()) == []
