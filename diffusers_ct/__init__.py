"""diffusers-ct: diffusion models for computed tomography in Diffusers' own shape.

Public names are imported on first use, so that the command line answers before torch is loaded; importing a model or
a pipeline registers the package's classes with diffusers (see `registration`).
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("diffusers-ct")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOME = {
    "CTVolume": "volume",
    "ScanConditions": "conditions",
    "ConditionVocabulary": "conditions",
    "ConditionError": "conditions",
    "CTReadError": "io",
    "read_volume": "io",
    "write_volume": "io",
    "to_ras_tensor": "io.tensor_form",
    "from_ras_tensor": "io.tensor_form",
    "simulate_low_dose": "physics",
    "make_phantom": "physics",
    "PairedCT": "data",
    "load_paired_ct": "data",
    "load_unpaired_ct": "data",
    "UNet3DCTModel": "models",
    "CTAdaptiveDDIMScheduler": "schedulers",
    "CTConsistencyScheduler": "schedulers",
    "ConditionEncoder": "models",
    "NoiseAwareClassifier": "models",
    "CTDiffusionPipeline": "pipelines",
    "CTDiffusionPipelineOutput": "pipelines",
    "CheckpointContract": "pipelines",
    "export_one_step": "pipelines.one_step_export",
}

__all__ = [
    "CTAdaptiveDDIMScheduler",
    "CTConsistencyScheduler",
    "CTDiffusionPipeline",
    "CTDiffusionPipelineOutput",
    "CTReadError",
    "CTVolume",
    "CheckpointContract",
    "ConditionEncoder",
    "ConditionError",
    "ConditionVocabulary",
    "NoiseAwareClassifier",
    "PairedCT",
    "ScanConditions",
    "UNet3DCTModel",
    "__version__",
    "export_one_step",
    "from_ras_tensor",
    "load_paired_ct",
    "load_unpaired_ct",
    "make_phantom",
    "read_volume",
    "simulate_low_dose",
    "to_ras_tensor",
    "write_volume",
]

if TYPE_CHECKING:
    from .conditions import ConditionError, ConditionVocabulary, ScanConditions
    from .data import PairedCT, load_paired_ct, load_unpaired_ct
    from .io import CTReadError, read_volume, write_volume
    from .io.tensor_form import from_ras_tensor, to_ras_tensor
    from .models import ConditionEncoder, NoiseAwareClassifier, UNet3DCTModel
    from .physics import make_phantom, simulate_low_dose
    from .pipelines import CheckpointContract, CTDiffusionPipeline, CTDiffusionPipelineOutput
    from .pipelines.one_step_export import export_one_step
    from .schedulers import CTAdaptiveDDIMScheduler, CTConsistencyScheduler
    from .volume import CTVolume


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
