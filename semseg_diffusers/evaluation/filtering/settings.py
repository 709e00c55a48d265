"""What a filtered data set depends on beside its images and networks; `filter.json` holds all of it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FilterSettings:
    """How strictly images are filtered.

    Raises:
        ValueError: a number out of its range.
    """

    tolerance_margin: float = 1.25  # FreeMask's; above so many times the mean loss of its class, a pixel is unknown
    minimum_kept: float = 0.6  # share of its labelled pixels below which an image is dropped
    resample: bool = False  # keep more images of the harder masks
    keep_unchecked: bool = False  # keep the labels of classes for which there is no threshold

    def __post_init__(self):
        if not (math.isfinite(self.tolerance_margin) and self.tolerance_margin > 0):
            raise ValueError(f"--tolerance_margin {self.tolerance_margin}; wanted a number above 0, such as 1.25.")
        if not 0 <= self.minimum_kept <= 1:
            raise ValueError(f"--minimum_kept {self.minimum_kept}; wanted a share from 0 to 1.")
