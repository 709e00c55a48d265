"""`semseg-diffusers labels`: export a label set as a legend image, an editor palette and a JSON file."""

import sys
from pathlib import Path

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.settings import LabelsSettings
from semseg_diffusers.utils.images import save_png


def run(settings: LabelsSettings) -> None:
    """Write the three files and print their names."""
    labels = LabelSet.from_preset(settings.preset) if settings.preset else LabelSet.from_json(settings.labels)
    name, output = settings.preset or Path(settings.labels).stem, Path(settings.output)
    legend = labels.legend(columns=settings.columns)
    output.mkdir(parents=True, exist_ok=True)
    save_png(output / "legend.png", legend)
    labels.save_palette(output / f"{name}.gpl")
    labels.save_json(output / "labels.json")
    sys.stdout.write(f"{labels.num_classes} classes: {output}/legend.png, {name}.gpl, labels.json\n")
