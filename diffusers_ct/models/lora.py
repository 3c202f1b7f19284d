"""Where low-rank adapters go in a network of this package, for PEFT's `LoraConfig(target_modules=...)`."""

from torch import nn


def lora_targets(model: nn.Module, rank: int) -> list[str]:
    """Names of the convolutions and linear layers that an update of this rank is cheaper than.

    `UNet3DCTModel.add_adapter(peft.LoraConfig(r=rank, target_modules=lora_targets(unet, rank)))` adds them; a new adapter
    changes nothing. Thin layers, such as those of the full-resolution branch, and 1 x 1 x 1 convolutions are left as they are.

    Args:
        model: without adapters.
        rank: of the update, at most half of a layer's smaller number of channels.

    Raises:
        ValueError: if no layer is wide enough.

    References:
        Hu et al. 2022, "LoRA", arXiv:2106.09685, section 4.1.
    """
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv3d | nn.Linear)
        and min(layer.weight.shape[:2]) >= 2 * rank
        and tuple(layer.weight.shape[2:4]) != (1, 1)  # PEFT (0.21) takes these for planar and cannot merge them
    ]
    if rank < 1 or not names:
        raise ValueError(f"`rank` must be positive and at most half the width of some layer, got {rank}.")
    return names
