"""A slip of the pen in a folder's name is told at once; the network is asked only for what can be a name on the Hub."""

import datasets
import pytest

from diffusers_ct.data import load_paired_ct, load_unpaired_ct
from diffusers_ct.data.folders import existing_folder, is_hub_name


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Names that the Hub was asked for; the working folder has a folder `data`."""
    names = []

    def load_dataset(name, **options):
        names.append(name)
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return names


@pytest.mark.parametrize("name", ["data/typo", "typo", "./a/b", "../a", "/a/b", "~/a", "a/b/c", "a/b/", "a\\b", "-a/b"])
def test_what_can_only_be_a_folder_never_asks_the_hub(asked, name):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .* make it with `diffusers-ct prepare`"):
        load_paired_ct(name, "train")
    assert not is_hub_name(name) and not asked


def test_a_path_object_never_asks_the_hub(asked, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder owner/name"):
        load_paired_ct(tmp_path.__class__("owner/name"))
    assert not asked


def test_what_may_be_either_names_both(asked):
    with pytest.raises(
        FileNotFoundError, match=r"owner/name is neither a folder here nor .* on the Hub .* `diffusers-ct prep"
    ):
        load_paired_ct("owner/name", "train")
    assert asked == ["owner/name"]


def test_no_network_reads_as_either_too(asked, monkeypatch):
    def unreachable(name, **options):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(FileNotFoundError, match=r"neither a folder here .*not in this machine's cache"):
        load_paired_ct("owner/name")


def test_unpaired_scans_are_opened_from_folders_alone(asked):
    with pytest.raises(
        FileNotFoundError, match="There is no folder owner/name: make it with `diffusers-ct prepare --unp"
    ):
        load_unpaired_ct("owner/name")
    assert not asked


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"")
    for opened in (existing_folder, load_paired_ct, load_unpaired_ct):
        with pytest.raises(NotADirectoryError, match=r"x.nii.gz is a file: name a folder"):
            opened(tmp_path / "x.nii.gz")
    assert existing_folder(tmp_path) == tmp_path
