"""Names of colours by what people call them, measured in CIELAB.

The eleven basic colour terms of English (Berlin and Kay 1969), and beige. Hues are those of the colours that most
people gave these names in the colour survey of xkcd (Munroe 2010, CC0), which matplotlib carries; what is nearly grey,
and what is dark or light enough to have another name (brown, pink, beige), is decided by chroma and lightness.
"""

import functools

import numpy as np
from matplotlib.colors import to_rgb


HUES = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
NAMES = ("black", "grey", "white", "beige", "brown", *HUES)
WHITE_POINT = np.array([0.95047, 1.0, 1.08883])  # D65
SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # IEC 61966-2-1
# In CIELAB: lightness 0 to 100, chroma from 0 (grey) to about 130
MIN_CHROMA = 10  # less is grey
MAX_BEIGE_CHROMA = 35
BLACK, WHITE = 25, 75  # lightness of what is nearly grey
DARK, LIGHT = 31, 75  # lightness of "dark blue" and "light blue"
MIN_SHARE = 0.4  # of the pixels that have to have the name of a region's colour


def rgb_to_lab(image: np.ndarray) -> np.ndarray:
    """Convert sRGB (..., 3) uint8 to CIELAB (..., 3): lightness, green to red, blue to yellow (CIE 15:2004)."""
    levels = np.asarray(image) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    ratios = linear @ SRGB_TO_XYZ.T / WHITE_POINT
    x, y, z = np.moveaxis(
        np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def hue_angle(lab: np.ndarray) -> np.ndarray:
    """Return the hue of CIELAB colours (..., 3) in degrees."""
    return np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360


@functools.cache
def _hues() -> np.ndarray:
    rgb = np.array([to_rgb(f"xkcd:{name}") for name in HUES])
    return hue_angle(rgb_to_lab((255 * rgb).round().astype(np.uint8)))  # (7,)


def name_colors(lab: np.ndarray) -> np.ndarray:
    """Return the index in `NAMES` of the name of each colour (..., 3) in CIELAB."""
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    distances = np.abs((hue_angle(lab)[..., None] - _hues() + 180) % 360 - 180)  # (..., 7)
    hue = np.array(HUES)[distances.argmin(axis=-1)]
    is_warm = (hue == "orange") | (hue == "yellow")
    rules = (
        ((chroma < MIN_CHROMA) & (lightness >= WHITE), "white"),
        ((chroma < MIN_CHROMA) & (lightness >= BLACK), "grey"),
        ((chroma < MIN_CHROMA) | (lightness < 8), "black"),
        (is_warm & (lightness >= 60) & (chroma < MAX_BEIGE_CHROMA), "beige"),
        (is_warm & (lightness < np.where(hue == "orange", 58, 50)), "brown"),
        ((hue == "red") & (lightness >= 68), "pink"),
        ((hue == "pink") & (lightness < 50), "purple"),
    )
    indices = np.select(
        [condition for condition, _ in rules], [NAMES.index(name) for _, name in rules], default=len(NAMES)
    )
    return np.where(indices < len(NAMES), indices, NAMES.index("red") + distances.argmin(axis=-1))


def region_color(lab: np.ndarray) -> tuple[str, str] | None:
    """Return the name of the colour that prevails in pixels (N, 3) in CIELAB, and the same with "dark" or "light".

    None where no name has `MIN_SHARE` of the pixels.

    Example:
        >>> region_color(rgb_to_lab(np.array([[10, 20, 90], [12, 24, 98], [200, 200, 200]], dtype=np.uint8)))
        ('blue', 'dark blue')
    """
    found = name_colors(lab)
    counts = np.bincount(found, minlength=len(NAMES))
    winner = int(counts.argmax())
    if counts[winner] < MIN_SHARE * len(found):
        return None
    name, lightness = NAMES[winner], np.median(lab[found == winner, 0])
    if name in ("grey", "red", "green", "blue", "purple", "brown"):
        shade = "dark " if lightness < DARK and name != "brown" else "light " if lightness >= LIGHT else ""
        return name, f"{shade}{name}"
    return name, name
