"""Loads a segmentation network of a folder or the Hub together with the settings of its image processor.
Weights are safetensors only: a pickle may run code. What is missing comes with the option and the file to bring."""

import os
from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from semseg_diffusers.evaluation.segmentation import torchvision_deeplab
from semseg_diffusers.evaluation.segmentation.preprocessing import PROCESSOR_FILE
from semseg_diffusers.utils.hub_errors import HubError, check_name, hub_errors


@dataclass(frozen=True)
class Source:
    """Where a network lies, and which option named it."""

    name: str  # folder or Hub id
    revision: str | None
    option: str

    @classmethod
    def of(cls, name: str | os.PathLike, revision: str | None, option: str) -> "Source":
        """Check the name.

        Raises:
            ValueError: there is no such folder, and it is no id of the Hub; or a folder with a revision.
        """
        name = os.fspath(name)
        try:
            check_name(name)
        except ValueError as err:
            raise ValueError(f"{option}: {err}") from err
        if revision is not None and os.path.isdir(name):
            raise ValueError(f"{option} '{name}' is a folder here and has no revision '{revision}'.")
        return cls(name, revision, option)

    def load(self, loader: Any, what: str, **options: Any) -> Any:
        """Call `loader.from_pretrained`; what goes wrong says which file is wanted, and by which option.

        Raises:
            HubError: the Hub, or the way to it, failed.
            ValueError: a file is missing, or is not what it should be.
        """
        action = f"{self.option}: loading {what} of '{self.name}'"
        bring = (
            f"Without a connection, give {self.option} a folder that holds config.json, model.safetensors and "
            f"{PROCESSOR_FILE}, such as `semseg-diffusers segmenter` writes."
        )
        try:
            with hub_errors(action, self.name, revision=self.revision):
                return loader.from_pretrained(self.name, revision=self.revision, **options)
        except HubError as err:
            raise HubError(f"{err} {bring}") from err
        except (OSError, ValueError) as err:
            first = str(err).strip().splitlines()[0]
            raise ValueError(f"{action}: {first} {bring}") from err

    def config(self) -> PreTrainedConfig:
        torchvision_deeplab.register()
        return self.load(AutoConfig, "config.json")

    def processor(self) -> dict[str, Any]:
        """Return the settings of the image processor, its defaults filled in."""
        return self.load(AutoImageProcessor, PROCESSOR_FILE).to_dict()

    def network(self, loader: Any = AutoModelForSemanticSegmentation, **options: Any) -> PreTrainedModel:
        """Return the network, from safetensors."""
        return self.load(
            loader, "the weights (model.safetensors; pickles are not read)", use_safetensors=True, **options
        )
