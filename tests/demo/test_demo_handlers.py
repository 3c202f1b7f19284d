"""What the page's controls do, without a browser: series and boxes of reading, stopping, and a program that fails."""

import logging
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusers_ct import CTVolume, write_volume
from diffusers_ct.demo.visitors import Visitors
from tests.demo.checkpoint import tiny_model
from tests.io.synthetic import hu_of, write_series

pytest.importorskip("gradio", reason="the demo is an extra")

from diffusers_ct.demo.handlers import Handlers, status

PARTS = (
    "drop", "status", "series", "slice", "viewer", "overrides", "restore", "stop", "write", "files",
)  # fmt: skip
LOOK = ("Soft tissue", 100.0)
CHOICES = (1.0, 1, 1, 0, "", None, [], 1, *LOOK)
VISITOR = SimpleNamespace(session_hash="visitor")


@pytest.fixture
def handlers(tmp_path) -> Handlers:
    (tmp_path / "private").mkdir()
    return Handlers(tiny_model(), Visitors(tmp_path / "private"), {name: name for name in PARTS})


def dropped(handlers: Handlers, *files: Path, assume_hu: bool = False) -> dict:
    return handlers.drop([str(file) for file in files], False, assume_hu, *LOOK, VISITOR)


def test_one_of_several_series_is_chosen_by_a_name_without_its_uid(handlers, tmp_path):
    for name, depth in (("thin", 4), ("thick", 2)):
        write_series(tmp_path / "in" / name, hu_of((depth, 32, 24)), description=name, series_uid=f"1.2.840.{depth}")
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for file in sorted((tmp_path / "in").rglob("*")):
            archive.write(file, file.relative_to(tmp_path))
    update = dropped(handlers, tmp_path / "both.zip")
    assert update["drop"] is None and "choose one below" in update["status"] and update["viewer"] is None
    assert update["series"]["visible"] and "1.2.840" not in str(update)
    assert [label.split(",")[0] for label, _ in update["series"]["choices"]] == [
        "1. 4 slices of 32 x 24", "2. 2 slices of 32 x 24",
    ]  # fmt: skip
    update = handlers.read_again(1, False, False, *LOOK, VISITOR)
    assert "2 slices of 32 x 24" in update["status"] and update["viewer"]["place"].startswith("slice 2 of 2")
    assert update["slice"]["maximum"] == 2 and update["restore"]["interactive"]


def test_a_box_of_reading_reads_again_what_was_refused(handlers, tmp_path):
    plain = CTVolume.from_array(hu_of() + 1500.0, (2.0, 0.8, 0.8))
    update = dropped(handlers, Path(write_volume(plain, tmp_path / "plain.nii.gz")))
    assert "ct-error" in update["status"] and not update["restore"]["interactive"]
    update = handlers.read_again(None, False, True, *LOOK, VISITOR)
    assert "4 slices of 32 x 24" in update["status"] and update["viewer"]["before"].startswith("data:image/png")
    again = handlers.read_again(None, True, True, *LOOK, VISITOR)  # it has been read, and is gone from the disk
    assert list(again) == ["status"]
    assert handlers.show(1, "Bone", 50.0, VISITOR)["place"].startswith("slice 1 of 4")
    other = SimpleNamespace(session_hash="other")
    assert handlers.show(1, "Bone", 50.0, other) is None  # scans of visitors are apart
    handlers.close(VISITOR)
    assert handlers.show(1, "Bone", 50.0, VISITOR) is None


def restored(handlers: Handlers, *choices) -> list[dict]:
    return list(handlers.restore(*choices, VISITOR))


def test_restoring_ends_with_the_picture_or_with_a_sentence(handlers, tmp_path):
    dropped(handlers, Path(write_volume(CTVolume.from_array(hu_of(), (2.0, 0.8, 0.8)), tmp_path / "a.mha")))
    first, *_, last = restored(handlers, *CHOICES)
    assert not first["restore"]["interactive"] and first["stop"]["visible"]
    assert "Restored in" in last["status"] and last["viewer"]["after"] and last["write"]["interactive"]
    assert last["restore"]["interactive"] and not last["stop"]["visible"]
    files = handlers.write("nii.gz", True, VISITOR)["files"]["value"]
    assert [Path(file).name for file in files] == ["restored.nii.gz"] and Path(files[0]).is_file()
    *_, last = restored(handlers, 1.0, 1, 3, *CHOICES[3:])
    assert "ct-error" in last["status"] and "all the same" in last["status"] and last["write"]["interactive"]

    updates = handlers.restore(1.0, 50, 4, *CHOICES[3:], VISITOR)
    next(updates)
    handlers.stop(VISITOR)
    *_, last = updates
    assert "Stopped. Nothing was restored." in last["status"]
    *_, last = restored(handlers, *CHOICES)  # a stop holds for one restoration
    assert "Restored in" in last["status"]


def test_a_program_that_fails_says_so_and_logs_where_without_the_text(handlers, tmp_path, monkeypatch, caplog):
    name = "Quixote"  # the log has the lines of the program, not what they hold

    def fail(*_, **__):
        raise KeyError(name)

    monkeypatch.setattr("diffusers_ct.demo.session.read_volume", fail)
    (tmp_path / "Quixote.dcm").write_bytes(b"x")
    with caplog.at_level(logging.ERROR):
        update = dropped(handlers, tmp_path / "Quixote.dcm")
    assert "The program failed (KeyError)" in update["status"] and "Traceback" not in update["status"]
    assert "session.py" in caplog.text and "Quixote" not in caplog.text + update["status"]


def test_a_sentence_cannot_be_markup():
    assert "<b>" not in status(["<b>x</b> & y"]) and "&lt;b&gt;x&lt;/b&gt; &amp; y" in status(["<b>x</b> & y"])
    assert 'role="alert"' in status(["x"], "error") and status(["x", "y"]).count("<p>") == 2
