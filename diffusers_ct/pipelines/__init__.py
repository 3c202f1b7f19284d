"""Pipelines: HU in, HU out."""

from .contract import CheckpointContract, ContractError
from .pipeline_ct_diffusion import CTDiffusionPipeline
from .pipeline_output import CTDiffusionPipelineOutput

__all__ = ["CTDiffusionPipeline", "CTDiffusionPipelineOutput", "CheckpointContract", "ContractError"]
