"""Grow a labelled driving dataset: photos from segmentation masks with diffusion models, plugged into diffusers.

Importing the package makes its classes known to diffusers, so that `DiffusionPipeline.from_pretrained` finds them by
the names that a saved `model_index.json` holds.
"""

import diffusers
from diffusers import pipelines as _diffusers_pipelines

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models import unet_id_channel, unet_mask_control, unet_mask_guided, unet_paper, unet_sdm
from semseg_diffusers.models.unet_id_channel import IdChannelUNet2DModel
from semseg_diffusers.models.unet_mask_control import MaskControlNetModel
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.models.unet_paper import PaperUNet2DModel
from semseg_diffusers.models.unet_sdm import SDMUNet2DModel
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_img2img import MaskGuidedImg2ImgPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_inpaint import MaskGuidedInpaintPipeline


__version__ = "0.1.0"
_PIPELINES = (MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline)
_NETWORKS = (IdChannelUNet2DModel, MaskControlNetModel, MaskGuidedUNet2DModel, PaperUNet2DModel, SDMUNet2DModel)
__all__ = [
    "IdChannelUNet2DModel",
    "LabelSet",
    "MaskControlNetModel",
    "MaskGuidedDDPMPipeline",
    "MaskGuidedImg2ImgPipeline",
    "MaskGuidedInpaintPipeline",
    "MaskGuidedUNet2DModel",
    "PaperUNet2DModel",
    "SDMUNet2DModel",
]

# A saved pipeline names its own class in `diffusers`, and its network by the module's name in `diffusers.pipelines`.
# These names are a promise to every checkpoint: files here may move, the names may not.
for _class in (*_PIPELINES, *_NETWORKS):
    setattr(diffusers, _class.__name__, _class)
for _module in (unet_id_channel, unet_mask_control, unet_mask_guided, unet_paper, unet_sdm):
    setattr(_diffusers_pipelines, _module.__name__.split(".")[-1], _module)
