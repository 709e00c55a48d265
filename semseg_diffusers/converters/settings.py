"""Settings of the command `convert`; imports nothing heavy, so that `--help` answers at once."""

import dataclasses

from semseg_diffusers.data.settings import LABEL_PRESETS, parse_size
from semseg_diffusers.utils.settings import Settings, option


# --from -> its own options
SOURCES = {
    "paper": ("weights", "sample_size", "num_train_timesteps"),
    "sdm": ("instance_edges", "num_head_channels", "sample_size", "num_train_timesteps"),
    "segmentation-guided-diffusion": ("num_classes",),
}


def _parse_sample_size(text: str | int) -> int | tuple[int, int]:
    """Return the size of images as networks record it: one number for squares."""
    size = parse_size(str(text))
    return size[0] if size[0] == size[1] else size


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSettings(Settings):
    """Convert a published checkpoint into a pipeline folder that loads, generates and can be pushed like any other.

    Pickles are opened with weights_only=True only: one that holds code is refused.
    """

    checkpoint: str = option(positional=True, help="the file, or the folder of segmentation-guided-diffusion")
    source: str = option(name="from", choices=tuple(SOURCES), help="code that made the checkpoint")
    output: str = option(metavar="DIR", help="pipeline folder to create")
    colormap: str | None = option(
        None,
        metavar="FILE",
        help=f"classes of its training data: colormap.json, labels.json or {', '.join(LABEL_PRESETS)} "
        "(default: numbers as names)",
    )
    weights: str | None = option(None, choices=("ema", "raw"), help="paper: which of two sets (default: ema)")
    instance_edges: bool = option(False, help="sdm: the last channel of the mask holds the edges between instances")
    num_head_channels: int | None = option(None, at_least=1, metavar="N", help="sdm: width of a head (default: 64)")
    sample_size: int | tuple[int, int] | None = option(
        None, metavar="HxW", help="paper, sdm: size of its images, e.g. 256x512", parse=_parse_sample_size
    )
    num_train_timesteps: int | None = option(
        None, at_least=1, metavar="N", help="paper, sdm: diffusion steps (default: 1000)"
    )
    num_classes: int | None = option(
        None, at_least=1, metavar="N", help="segmentation-guided-diffusion: number of classes with background"
    )
    overwrite: bool = option(False, help="replace a folder that this command made")

    def __post_init__(self):
        super().__post_init__()
        for name in sorted({name for names in SOURCES.values() for name in names}):
            if name not in SOURCES[self.source] and getattr(self, name) not in (None, False):
                raise ValueError(f"--{name} is no option of --from {self.source}.")
