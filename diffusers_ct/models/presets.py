"""Named sizes of the model families, one row each: s has about 3 million parameters, b about 12 million.

`diffusers-ct models` prints what each costs. The widths of a size are chosen so that its families have the same number
of parameters within 10 %. The fast family has its parameters on coarse grids and a narrow way through the fine ones.
"""

from difflib import get_close_matches
from typing import Any

from .unet_3d_ct import UNet3DCTModel

_CT_TRANSFORMER = {"conv_mode": "2.5d", "layers_per_block": 1, "attention_head_dim": 48}
_FAST = {
    "conv_mode": "2.5d", "layers_per_block": 1, "patch_size": (2, 2, 2), "refine_channels": 8, "refine_merge": "add",
    "downsample_strides": (2, 2, 2, 1, 2, 2, 1, 2, 2),
}  # fmt: skip

# Arguments of `UNet3DCTModel`; what is not named is its default.
PRESETS: dict[str, dict[str, Any]] = {
    "ct-unet3d-s": {"conv_mode": "3d", "block_out_channels": (32, 64, 96)},
    "ct-unet3d-b": {"conv_mode": "3d", "block_out_channels": (64, 128, 192)},
    "ct-unet25d-s": {"conv_mode": "2.5d", "block_out_channels": (48, 96, 144)},
    "ct-unet25d-b": {"conv_mode": "2.5d", "block_out_channels": (96, 192, 288)},
    "ct-unet25d-fast-s": {**_FAST, "block_out_channels": (32, 64, 96, 208)},
    "ct-unet25d-fast-b": {**_FAST, "block_out_channels": (64, 128, 192, 416)},
    "ct-transformer-s": {**_CT_TRANSFORMER, "block_out_channels": (48, 96, 144), "transformer_depth": (0, 0, 2)},
    "ct-transformer-b": {**_CT_TRANSFORMER, "block_out_channels": (80, 160, 240), "transformer_depth": (0, 0, 4)},
}


def preset_config(name: str, **changes: Any) -> dict[str, Any]:
    """Arguments of `UNet3DCTModel` of a preset, a new dict each time.

    Args:
        name: of `PRESETS`.
        **changes: arguments that differ from the preset; None is none.

    Raises:
        ValueError: if there is no such preset, naming all, the nearest first; for widths that are not those of its levels.
    """
    if name not in PRESETS:
        nearest = get_close_matches(name, PRESETS, n=len(PRESETS), cutoff=0.0)
        raise ValueError(f"There is no model {name!r}. Known are, nearest first: {', '.join(nearest)}.")
    changed = {key: value for key, value in changes.items() if value is not None}
    config = PRESETS[name] | changed
    widths, levels = config["block_out_channels"], len(PRESETS[name]["block_out_channels"])
    if min(widths, default=0) < 1 or (len(widths) != levels and "downsample_strides" not in changed):
        raise ValueError(
            f"`block_out_channels` must be {levels} positive numbers, one for each level of {name}, got {list(widths)}."
        )
    return config


def make_model(name: str, **changes: Any) -> UNet3DCTModel:
    """A new model of a preset; seed torch before, its weights are random.

    Args:
        name: of `PRESETS`.
        **changes: as of `preset_config`.

    Raises:
        ValueError: as `preset_config`, or if the arguments do not fit each other.
    """
    return UNet3DCTModel(**preset_config(name, **changes))
