"""Names of colours by what people call them, measured in CIELAB.

The eleven basic colour terms of English (Berlin and Kay 1969), beige, and turquoise for what is between green and
blue. Hues are those of the colours that most people gave these names in the colour survey of xkcd (Munroe 2010, CC0),
which matplotlib carries; what is nearly grey, and what is dark or light enough to have another name (brown, pink,
beige, the pale blue of a sky), is decided by chroma and lightness. The cast of the light is removed before, under the
grey-world assumption (Buchsbaum 1980, "A spatial processor model for object colour perception") for nearly grey points
alone (Huo et al. 2006, "Robust automatic white balance algorithm using gray color points in images").
"""

import functools

import numpy as np
from matplotlib.colors import to_rgb


HUES = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
SURVEY_NAMES = (*HUES, "light blue")  # greener than blue: without it, half of what is called so would be turquoise
NAMES = ("black", "grey", "white", "beige", "brown", *HUES)
WHITE_POINT = np.array([0.95047, 1.0, 1.08883])  # D65
SRGB_TO_XYZ = np.array(  # IEC 61966-2-1
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# In CIELAB: lightness 0 to 100, chroma from 0 (grey) to about 130
MIN_CHROMA = 10  # less is grey
MAX_BEIGE_CHROMA = 35
MAX_PALE_CHROMA = 20  # of light turquoise that people call pale blue
MAX_CAST = 6  # less than MIN_CHROMA, so that a colour does not become grey, nor grey a colour, by much
BLACK, WHITE = 25, 75  # lightness of what is nearly grey
DARK, LIGHT = 31, 75  # lightness of "dark blue" and "light blue"
MIN_SHARE = 0.35  # of the pixels that have to have the name of a region's colour
VEHICLE_BLACK = 0.5  # weight of black pixels of vehicles, many of which are windows, tyres and shade


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


def balance_white(lab: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Remove the cast that its light gives an image (H, W, 3) in CIELAB, as measured on its ground (H, W) bool.

    Roads are grey: what most of the ground has in common of a* and b* is the light's, and is subtracted, at most
    `MAX_CAST`. Where half of the ground has a colour (gravel, the lamps of a night), nothing is. Lightness stays.
    """
    found = lab[ground]  # (N, 3)
    grey = found[np.hypot(found[:, 1], found[:, 2]) < MIN_CHROMA]
    if 2 * len(grey) <= len(found):
        return lab
    lightness, cast = np.split(np.median(grey, axis=0), [1])
    cast *= MAX_CAST / max(float(np.linalg.norm(cast)), MAX_CAST)
    # A light that scales X, Y and Z shifts a* and b* by lightness + 16; brighter than the ground, images are clipped
    share = np.minimum((lab[..., :1] + 16) / (lightness + 16), 1)  # (H, W, 1)
    return lab - share * np.array([0, *cast])


@functools.cache
def _hues() -> np.ndarray:
    rgb = np.array([to_rgb(f"xkcd:{name}") for name in SURVEY_NAMES])
    return hue_angle(rgb_to_lab((255 * rgb).round().astype(np.uint8)))  # (9,)


def name_colors(lab: np.ndarray) -> np.ndarray:
    """Return the index in `NAMES` of the name of each colour (..., 3) in CIELAB."""
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    angle = hue_angle(lab)
    distances = np.abs((angle[..., None] - _hues() + 180) % 360 - 180)  # (..., 9)
    hue = np.array([name.removeprefix("light ") for name in SURVEY_NAMES])[distances.argmin(axis=-1)]
    is_warm = (hue == "orange") | (hue == "yellow")
    rules = (
        ((chroma < MIN_CHROMA) & (lightness >= WHITE), "white"),
        ((chroma < MIN_CHROMA) & (lightness >= BLACK), "grey"),
        ((chroma < MIN_CHROMA) | (lightness < 8), "black"),
        (is_warm & (lightness >= 60) & (chroma < MAX_BEIGE_CHROMA), "beige"),
        (is_warm & (lightness < np.where(hue == "orange", 58, 50)), "brown"),
        ((hue == "red") & (lightness >= 68), "pink"),
        ((hue == "pink") & (lightness < 50) & (angle < 180), "red"),  # wine
        ((hue == "pink") & (lightness < 50), "purple"),
        ((hue == "turquoise") & (lightness >= LIGHT) & (chroma < MAX_PALE_CHROMA), "blue"),
        *((hue == name, name) for name in HUES),
    )
    return np.select([condition for condition, _ in rules], [NAMES.index(name) for _, name in rules])


def region_color(lab: np.ndarray, is_vehicle: bool = False) -> tuple[str, str] | None:
    """Return the name of the colour that prevails in pixels (N, 3) in CIELAB, and the same with "dark" or "light".

    None where no name has `MIN_SHARE` of the pixels, of which black ones count less where they belong to a vehicle.

    Example:
        >>> region_color(rgb_to_lab(np.array([[10, 20, 90], [12, 24, 98], [200, 200, 200]], dtype=np.uint8)))
        ('blue', 'dark blue')
    """
    found = name_colors(lab)
    counts = np.bincount(found, minlength=len(NAMES)).astype(float)
    if is_vehicle:
        counts[NAMES.index("black")] *= VEHICLE_BLACK
    winner = int(counts.argmax())
    if counts[winner] < MIN_SHARE * counts.sum():
        return None
    name, lightness = NAMES[winner], np.median(lab[found == winner, 0])
    if name in ("grey", "red", "green", "turquoise", "blue", "purple", "brown"):
        shade = "dark " if lightness < DARK and name != "brown" else "light " if lightness >= LIGHT else ""
        return name, f"{shade}{name}"
    return name, name
