"""Grow a labelled driving dataset: images from segmentation masks with diffusion models, plugged into diffusers.

Pipelines and networks follow diffusers' own (`MaskGuidedDDPMPipeline.from_pretrained(folder)(mask).images`); each
stage of the work is a function of a settings object or of plain arguments:

- data: `prepare_dataset`, `check_prepared`, `load_pairs`, `write_toy_dataset`, `clean_painting`
- training: `train`, `change_classes`, `distill`; generation: `generate_dataset`
- enlarging: `MaskGuidedUpscalePipeline`, `consistency_psnr`
- features of images: `ImageBackbone`
- evaluation: `evaluate`, `filter_dataset`, `run_study`, `load_judge`, `fid`, `kid`
- sharing: `merge`, `convert`, `export_model`, `push_model`, `push_dataset`

Public names are imported on first use. Importing the package also makes its classes known to diffusers (`register`),
so that `DiffusionPipeline.from_pretrained` finds them by the names that a saved `model_index.json` holds.
"""

import importlib
import importlib.abc
import importlib.util
import sys
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from semseg_diffusers.backbones.image_backbone import ImageBackbone
    from semseg_diffusers.converters.convert import convert
    from semseg_diffusers.converters.settings import ConvertSettings
    from semseg_diffusers.data.check.check import check_prepared
    from semseg_diffusers.data.dataset import PairDataset, load_pairs
    from semseg_diffusers.data.label_mapping import LabelMapping
    from semseg_diffusers.data.labels import LabelSet
    from semseg_diffusers.data.prepare import prepare_dataset
    from semseg_diffusers.data.settings import PrepareSettings
    from semseg_diffusers.distillation.distill import distill
    from semseg_diffusers.distillation.settings import DistillationSettings
    from semseg_diffusers.evaluation.evaluate import evaluate
    from semseg_diffusers.evaluation.fidelity import fid, kid
    from semseg_diffusers.evaluation.filtering.filter import filter_dataset
    from semseg_diffusers.evaluation.segmentation.judge import load_judge
    from semseg_diffusers.evaluation.settings import EvaluationSettings, FilterSettings, StudySettings
    from semseg_diffusers.evaluation.study.study import run_study
    from semseg_diffusers.generation.generate import generate_dataset
    from semseg_diffusers.generation.settings import GenerationSettings
    from semseg_diffusers.growth.merge import merge
    from semseg_diffusers.hub.export import export_model
    from semseg_diffusers.hub.push import push_dataset, push_model
    from semseg_diffusers.hub.settings import ExportSettings
    from semseg_diffusers.masks.cleaning import clean_painting
    from semseg_diffusers.models.published.unet_id_channel import IdChannelUNet2DModel
    from semseg_diffusers.models.published.unet_paper import PaperUNet2DModel
    from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel
    from semseg_diffusers.models.unet_mask_control import MaskControlNetModel
    from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
    from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
    from semseg_diffusers.pipelines.pipeline_mask_guided_img2img import MaskGuidedImg2ImgPipeline
    from semseg_diffusers.pipelines.pipeline_mask_guided_inpaint import MaskGuidedInpaintPipeline
    from semseg_diffusers.pipelines.pipeline_mask_guided_upscale import MaskGuidedUpscalePipeline
    from semseg_diffusers.pipelines.upscaling import consistency_psnr
    from semseg_diffusers.toy.scenes import write_toy_dataset
    from semseg_diffusers.training.class_transfer import change_classes
    from semseg_diffusers.training.loop import train
    from semseg_diffusers.training.settings import TrainingSettings


__version__ = "0.2.0"

# Classes that saved pipelines name, by the module that defines them. A saved pipeline finds its own class in
# `diffusers`, and its network's module by its last name in `diffusers.pipelines`: files may move, these names may not.
_CLASSES = {
    "MaskGuidedDDPMPipeline": "pipelines.pipeline_mask_guided_ddpm",
    "MaskGuidedImg2ImgPipeline": "pipelines.pipeline_mask_guided_img2img",
    "MaskGuidedInpaintPipeline": "pipelines.pipeline_mask_guided_inpaint",
    "MaskGuidedUpscalePipeline": "pipelines.pipeline_mask_guided_upscale",
    "IdChannelUNet2DModel": "models.published.unet_id_channel",
    "MaskControlNetModel": "models.unet_mask_control",
    "MaskGuidedUNet2DModel": "models.unet_mask_guided",
    "PaperUNet2DModel": "models.published.unet_paper",
    "SDMUNet2DModel": "models.published.unet_sdm",
}
# The other public names, by the module that defines them, in the order of use.
_FUNCTIONS = {
    "LabelSet": "data.labels",
    "LabelMapping": "data.label_mapping",
    "PrepareSettings": "data.settings",
    "prepare_dataset": "data.prepare",
    "check_prepared": "data.check.check",
    "PairDataset": "data.dataset",
    "load_pairs": "data.dataset",
    "write_toy_dataset": "toy.scenes",
    "clean_painting": "masks.cleaning",
    "consistency_psnr": "pipelines.upscaling",
    "ImageBackbone": "backbones.image_backbone",
    "TrainingSettings": "training.settings",
    "train": "training.loop",
    "change_classes": "training.class_transfer",
    "DistillationSettings": "distillation.settings",
    "distill": "distillation.distill",
    "GenerationSettings": "generation.settings",
    "generate_dataset": "generation.generate",
    "EvaluationSettings": "evaluation.settings",
    "evaluate": "evaluation.evaluate",
    "fid": "evaluation.fidelity",
    "kid": "evaluation.fidelity",
    "load_judge": "evaluation.segmentation.judge",
    "FilterSettings": "evaluation.settings",
    "filter_dataset": "evaluation.filtering.filter",
    "StudySettings": "evaluation.settings",
    "run_study": "evaluation.study.study",
    "merge": "growth.merge",
    "ConvertSettings": "converters.settings",
    "convert": "converters.convert",
    "ExportSettings": "hub.settings",
    "export_model": "hub.export",
    "push_model": "hub.push",
    "push_dataset": "hub.push",
}
_EXPORTS = {**_CLASSES, **_FUNCTIONS}

__all__ = [*_EXPORTS, "register"]


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
    classes = {name: f"{module}:{name}" for name, module in _CLASSES.items()}
    modules = {module.rsplit(".", 1)[-1]: module for module in _CLASSES.values()}
    for target, sources in (("diffusers", classes), ("diffusers.pipelines", modules)):
        module = sys.modules.get(target)
        if module is not None and not hasattr(type(module), "_sources"):
            module.__class__ = type("Registered", (_LazyModule, type(module)), {"_sources": sources})


class _LazyModule(types.ModuleType):
    """Imports the attributes in `_sources`, `module` or `module:name` of this package, on first use."""

    _sources: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._sources:
            return super().__getattr__(name)  # type: ignore[misc]
        module, _, attribute = self._sources[name].partition(":")
        value = importlib.import_module(f"{__name__}.{module}")
        value = getattr(value, attribute) if attribute else value
        setattr(self, name, value)
        return value


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

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


register()
sys.meta_path.insert(0, _RegisterOnImport())
