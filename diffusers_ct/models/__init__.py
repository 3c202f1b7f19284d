"""Networks. They see tensors only: no HU, no files."""

from ..registration import register
from .condition_encoder import (
    ConditionEncoder,
    ConditionEncoderOutput,
    drop_fields_at_random,
    dropped_together,
    null_fields,
)
from .conditional_denoiser import ConditionalDenoiser
from .lora import lora_targets
from .noise_classifier import NoiseAwareClassifier, NoiseClassifierOutput
from .presets import PRESETS, make_model
from .saved_model import SavedModel, safetensors_alone, without_origin
from .text import encode_text
from .unet_3d_ct import UNet3DCTModel, UNet3DCTOutput

register()

__all__ = [
    "PRESETS",
    "ConditionEncoder",
    "ConditionEncoderOutput",
    "ConditionalDenoiser",
    "NoiseAwareClassifier",
    "NoiseClassifierOutput",
    "SavedModel",
    "UNet3DCTModel",
    "UNet3DCTOutput",
    "drop_fields_at_random",
    "dropped_together",
    "encode_text",
    "lora_targets",
    "make_model",
    "null_fields",
    "safetensors_alone",
    "without_origin",
]
