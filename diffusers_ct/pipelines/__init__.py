"""Pipelines: HU in, HU out."""

from .contract import CheckpointContract, ContractError
from .pipeline_ct_diffusion import CTDiffusionPipeline
from .pipeline_output import CTDiffusionPipelineOutput
from .restoration_cost import DoesNotFitError, RestorationCost
from .streaming import RestorationStream, RestoredSlab

__all__ = [
    "CTDiffusionPipeline",
    "CTDiffusionPipelineOutput",
    "CheckpointContract",
    "ContractError",
    "DoesNotFitError",
    "RestorationCost",
    "RestorationStream",
    "RestoredSlab",
]
