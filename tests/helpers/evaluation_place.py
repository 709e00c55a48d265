"""A place to evaluate in: photos that show each class in its colour, a judge that has learned them, a tiny model."""

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from semseg_diffusers import cli
from semseg_diffusers.data.dataset_format import finish_dataset, make_split, save_pair
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline


SIZE = 32
LABELS = LabelSet(
    ("road", "sky", "car", "person", "pole"),
    ((128, 64, 128), (70, 130, 180), (0, 0, 142), (220, 20, 60), (153, 153, 153)),
)
SEEN = 4  # classes that masks hold: there is no pole


def draw_pair(seed: int) -> tuple[Image.Image, np.ndarray]:
    """A photo of coloured blocks with a little noise, and its ids (SIZE, SIZE); some are unknown."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, SEEN, (4, 4), dtype=np.uint8).repeat(SIZE // 4, 0).repeat(SIZE // 4, 1)
    photo = np.asarray(LABELS.colors, np.int64)[ids] + generator.integers(-9, 10, (SIZE, SIZE, 3))
    ids = ids.copy()
    ids[:2] = 255
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8)), ids


class Place:
    """Data set, judge and model in one folder.

    Args:
        folder: to make them in.
    """

    def __init__(self, folder: Path):
        self.dataset, self.segmenter, self.model = folder / "data", folder / "segmenter", folder / "model"
        rows = {}
        for split, seeds in (("train", range(100, 124)), ("val", range(8))):
            place = make_split(self.dataset, split)
            rows[split] = [save_pair(place, f"scene{seed:03}", *draw_pair(seed), LABELS) for seed in seeds]
        finish_dataset(self.dataset, rows, LABELS, {"format": "test"})
        self.command(
            *("segmenter", "--dataset", self.dataset, "--output", self.segmenter, "--architecture", "segformer-mini"),
            *("--max_train_steps", 80, "--validation_steps", 40, "--device", "cpu"),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet = MaskGuidedUNet2DModel(
                sample_size=SIZE,
                num_classes=LABELS.num_classes,
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                norm_num_groups=4,
                **LABELS.to_config(),
            )
        MaskGuidedDDPMPipeline(unet, DDIMScheduler(clip_sample=False)).save_pretrained(self.model)

    @staticmethod
    def command(*words, expect: int = 0) -> str:
        """Run a command here; returns what it printed, or its error."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([str(word) for word in words])
        assert code == expect, err.getvalue()
        return out.getvalue() if expect == 0 else err.getvalue()

    def options(self, output: Path, **changes) -> list[str]:
        """Words of `evaluate`, with the judge's encoder for features; a change to None leaves an option away."""
        options = {
            "dataset": self.dataset,
            "segmenter": self.segmenter,
            "features": self.segmenter,
            "output": output,
            "device": "cpu",
            **changes,
        }
        return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]

    def evaluate(self, output: Path, expect: int = 0, **changes) -> str:
        return self.command("evaluate", *self.options(output, **changes), expect=expect)

    def val_copy(self, folder: Path, change=lambda image: image, shift: int = 0) -> Path:
        """The photos of the split as another program would write them: changed, or under the names of others."""
        folder.mkdir(parents=True)
        paths = sorted((self.dataset / "val" / "images").iterdir())
        for path, other in zip(paths, paths[shift:] + paths[:shift], strict=True):
            change(Image.open(other)).save(folder / path.name)
        return folder

    def data_copy(self, folder: Path) -> Path:
        return shutil.copytree(self.dataset, folder)
