"""Networks. They see tensors only: no HU, no files."""

from ..registration import register
from .unet_3d_ct import UNet3DCTModel, UNet3DCTOutput

register()

__all__ = ["UNet3DCTModel", "UNet3DCTOutput"]
