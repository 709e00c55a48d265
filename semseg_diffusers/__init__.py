"""Grow a labelled driving dataset: photos from segmentation masks with diffusion models, plugged into diffusers.

Importing the package makes its classes known to diffusers, so that `DiffusionPipeline.from_pretrained` finds them by
the names that a saved `model_index.json` holds.
"""

import diffusers
from diffusers import pipelines as _diffusers_pipelines

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models import unet_mask_guided, unet_paper
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.models.unet_paper import PaperUNet2DModel
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_img2img import MaskGuidedImg2ImgPipeline
from semseg_diffusers.pipelines.pipeline_mask_guided_inpaint import MaskGuidedInpaintPipeline


__version__ = "0.1.0"
_PIPELINES = (MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline)
__all__ = [
    "LabelSet",
    "MaskGuidedDDPMPipeline",
    "MaskGuidedImg2ImgPipeline",
    "MaskGuidedInpaintPipeline",
    "MaskGuidedUNet2DModel",
    "PaperUNet2DModel",
]

# A saved pipeline names its own class in `diffusers`, and its network by the module's name in `diffusers.pipelines`.
# These names are a promise to every checkpoint: files here may move, the names may not.
for _class in (*_PIPELINES, MaskGuidedUNet2DModel, PaperUNet2DModel):
    setattr(diffusers, _class.__name__, _class)
for _module in (unet_mask_guided, unet_paper):
    setattr(_diffusers_pipelines, _module.__name__.split(".")[-1], _module)
