"""Paired and unpaired CT: sources, the prepared dataset, patches for training."""

from .full_dose_slabs import FullDoseSlabs
from .manifest import verify_checksum
from .merge import merge_prepared
from .neighbouring_slices import NeighbouringSlices
from .online_simulation import DrawDose, OnlineSimulation
from .paired_ct import PairedCT, PairedCTConfig, load_paired_ct
from .patches import PatchDataset, check_patch_size, volume_view
from .prepare import PrepareReport, prepare_paired_ct, prepare_unpaired_ct
from .projection_halves import ProjectionHalves, SimulatedProjections, split_reconstructions
from .shards import DiskFullError
from .streaming import StreamingPatches
from .unpaired_ct import UnpairedCTConfig, load_unpaired_ct

__all__ = [
    "DiskFullError",
    "DrawDose",
    "FullDoseSlabs",
    "NeighbouringSlices",
    "OnlineSimulation",
    "PairedCT",
    "PairedCTConfig",
    "PatchDataset",
    "PrepareReport",
    "ProjectionHalves",
    "SimulatedProjections",
    "StreamingPatches",
    "UnpairedCTConfig",
    "check_patch_size",
    "load_paired_ct",
    "load_unpaired_ct",
    "merge_prepared",
    "prepare_paired_ct",
    "prepare_unpaired_ct",
    "split_reconstructions",
    "verify_checksum",
    "volume_view",
]
