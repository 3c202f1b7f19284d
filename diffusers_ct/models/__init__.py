"""Networks. They see tensors only: no HU, no files."""

from .unet_3d_ct import UNet3DCTModel, UNet3DCTOutput

__all__ = ["UNet3DCTModel", "UNet3DCTOutput"]
