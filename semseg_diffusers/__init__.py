"""Grow a labelled driving dataset: images from segmentation masks with diffusion models, plugged into diffusers.

Public names are imported on first use. Importing the package also makes its classes known to diffusers (`register`),
so that `DiffusionPipeline.from_pretrained` finds them by the names that a saved `model_index.json` holds.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from semseg_diffusers.data.labels import LabelSet
    from semseg_diffusers.models.published.unet_id_channel import IdChannelUNet2DModel
    from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel
    from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel
    from semseg_diffusers.models.unet_mask_control import MaskControlNetModel
    from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
    from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
    from semseg_diffusers.pipelines.pipeline_mask_guided_img2img import MaskGuidedImg2ImgPipeline
    from semseg_diffusers.pipelines.pipeline_mask_guided_inpaint import MaskGuidedInpaintPipeline


__version__ = "0.1.0"

# Classes that saved pipelines name, by the module that defines them. A saved pipeline finds its own class in
# `diffusers`, and its network's module by its last name in `diffusers.pipelines`: files may move, these names may not.
_NETWORKS = {
    "IdChannelUNet2DModel": "models.published.unet_id_channel",
    "MaskControlNetModel": "models.unet_mask_control",
    "MaskGuidedUNet2DModel": "models.unet_mask_guided",
    "PaperUNet2DModel": "models.published.unet_paper",
    "SDMUNet2DModel": "models.published.unet_sdm",
}
_PIPELINES = {
    "MaskGuidedDDPMPipeline": "pipelines.pipeline_mask_guided_ddpm",
    "MaskGuidedImg2ImgPipeline": "pipelines.pipeline_mask_guided_img2img",
    "MaskGuidedInpaintPipeline": "pipelines.pipeline_mask_guided_inpaint",
}
_EXPORTS = {**_NETWORKS, **_PIPELINES, "LabelSet": "data.labels"}

__all__ = [*sorted(_EXPORTS), "register"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Make the package's networks and pipelines attributes of diffusers, where saved pipelines are looked up.

    Importing the package does this by itself: at once if diffusers is imported already, else when it is imported. The
    attributes `diffusers.MaskGuidedDDPMPipeline`, `diffusers.pipelines.unet_mask_guided`, ... import their module on
    first use, so registering costs nothing.
    """
    classes = {name: (module, name) for name, module in {**_NETWORKS, **_PIPELINES}.items()}
    modules = {module.rsplit(".", 1)[-1]: (module, None) for module in _NETWORKS.values()}
    for target, names in (("diffusers", classes), ("diffusers.pipelines", modules)):
        if target in sys.modules:
            _add_lazy_attributes(sys.modules[target], names)


def _add_lazy_attributes(module: Any, names: dict[str, tuple[str, str | None]]) -> None:
    base = type(module)
    if getattr(base, "_semseg_diffusers", False):
        return

    class Registered(base):
        _semseg_diffusers = True

        def __getattr__(self, name: str) -> Any:
            if name not in names:
                return super().__getattr__(name)
            source, attribute = names[name]
            value = importlib.import_module(f"{__name__}.{source}")
            value = value if attribute is None else getattr(value, attribute)
            setattr(self, name, value)
            return value

    module.__class__ = Registered


class _RegisterOnImport(importlib.abc.MetaPathFinder):
    """Calls `register` as soon as diffusers is imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname not in ("diffusers", "diffusers.pipelines"):
            return None
        sys.meta_path.remove(self)  # for the search below
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module: Any) -> None:
            load(module)
            register()

        spec.loader.exec_module = load_and_register
        return spec


register()
sys.meta_path.insert(0, _RegisterOnImport())
