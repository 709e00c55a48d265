"""Settings of `semseg-diffusers toy`."""

from dataclasses import dataclass

from semseg_diffusers.data.settings import parse_resolution
from semseg_diffusers.utils.settings import Settings, option


@dataclass(frozen=True, kw_only=True)
class ToySettings(Settings):
    """Generate street scenes with exact masks from a seed, as a prepared dataset.

    Layout, weather and light vary in the words of BDD100K, and so do the classes. The same seed gives the same scenes.
    """

    output: str = option(metavar="DIR", help="new dataset folder")
    num_train: int = option(256, help="training scenes")
    num_val: int = option(32, help="validation scenes")
    resolution: str = option("64", metavar="N|HxW", help="pixels, height first")
    seed: int = option(0, at_least=0, help="seed of the scenes")
    colors: bool = option(
        False, help="write the column colors: in what vehicles and houses were painted, for caption --colors_column"
    )
    overwrite: bool = option(False, help="replace a dataset at --output")

    def __post_init__(self):
        super().__post_init__()
        _ = self.size

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        size = parse_resolution(self.resolution)
        if size is None:
            raise ValueError("toy scenes have no native resolution; expected a number (64) or HxW (96x160).")
        return size
