"""Paired low- and full-dose CT: sources, the prepared dataset, patches for training."""

from .manifest import verify_checksum
from .paired_ct import PairedCT, PairedCTConfig, load_paired_ct
from .patches import PatchDataset, volume_view
from .prepare import PrepareReport, prepare_paired_ct

__all__ = [
    "PairedCT",
    "PairedCTConfig",
    "PatchDataset",
    "PrepareReport",
    "load_paired_ct",
    "prepare_paired_ct",
    "verify_checksum",
    "volume_view",
]
