"""docs/editing_photos.md: its code runs as printed on a tiny run."""

import re
from pathlib import Path

import numpy as np
from diffusers import DDIMScheduler
from PIL import Image
from tiny_pipelines import BDD, SIZE, pipeline, random_ids, tiny_unet


ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "editing_photos.md").read_text(encoding="utf-8")


def test_code_of_the_page_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline(scheduler=DDIMScheduler()).save_pretrained("runs/camvid128")
    pipeline(tiny_unet(block_out_channels=(4, 8))).save_pretrained("runs/small")
    photo = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(photo).save("photo.png")
    ids = random_ids()[0].clone()
    BDD.decode(ids).save("mask.png")
    ids[8:10, 8:10] = (ids[8:10, 8:10] + 1) % 19
    BDD.decode(ids).save("edited_mask.png")
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
        assert names["image"].size == (SIZE, SIZE)
    changed = (np.asarray(Image.open("edited.png")) != photo).any(axis=-1)
    assert changed[8:10, 8:10].all()
    assert changed.sum() <= 10 * 10  # four pixels around
