"""Fixtures every test may use. Nothing here reaches the network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real CT named by DIFFUSERS_CT_REAL_DATA; tests that need it skip without it."""
    folder = os.environ.get("DIFFUSERS_CT_REAL_DATA")
    if not folder:
        pytest.skip("set DIFFUSERS_CT_REAL_DATA to run tests on real CT")
    path = Path(folder).resolve()  # tests link to it from elsewhere
    if not path.is_dir():
        raise FileNotFoundError(f"DIFFUSERS_CT_REAL_DATA names {folder}, which is not a folder.")
    return path


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
