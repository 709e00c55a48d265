"""Where the pages' blocks run: small data and untrained models under the names that the pages use."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from helpers.golden_weights import golden_values
from helpers.published_checkpoints import konz_folder, lightning, paper_weights, sdm_weights
from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel, MaskGuidedUpscalePipeline
from semseg_diffusers.data.label_mapping import map_ids, match_classes
from semseg_diffusers.data.prepare import prepare_dataset
from semseg_diffusers.data.settings import PrepareSettings
from semseg_diffusers.toy.scenes import draw_scene, write_toy_dataset


ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = ("configs", "examples", "train_accelerate.py")  # what lines of the pages name of the repository
SIZE = (128, 128)
TRAIN = 24
VAL = ("0016E5_08029", "0016E5_08099")  # named in docs/how_to/painting.md
LOOKS = {  # those of toy scenes
    "weather": ["clear", "overcast", "partly cloudy", "rainy"],
    "timeofday": ["dawn/dusk", "daytime", "night"],
}


def write_camvid(folder: Path, num_train: int = TRAIN) -> None:
    """CamVid in the SegNet form, of toy scenes: a car and a rider in each frame for validation."""
    labels = LabelSet.from_preset("camvid")
    mapping = match_classes(LabelSet.from_preset("bdd100k").names, labels)
    rare = {labels.label2id[name] for name in ("car", "rider")}
    names = {"val": list(VAL), "train": [f"0001TP_{number:06}" for number in range(num_train)]}
    for split in names:
        for part in (split, f"{split}annot"):
            (folder / part).mkdir(parents=True)
    seed = 0
    while any(names.values()):
        photo, ids, _ = draw_scene(seed, SIZE)
        ids = map_ids(ids, mapping)
        split = "val" if names["val"] and rare <= set(np.unique(ids)) else "train"
        if names[split]:
            name = f"{names[split].pop(0)}.png"
            photo.save(folder / split / name)
            Image.fromarray(np.where(ids == 255, 11, ids).astype(np.uint8)).save(folder / f"{split}annot" / name)
        seed += 1


def save_model(
    folder: Path, labels: LabelSet, size: int = SIZE[0], attributes=None, seed: int = 0, upscale_factor=None
) -> None:
    """An untrained network, as small as may be."""
    torch.manual_seed(seed)
    unet = MaskGuidedUNet2DModel(
        sample_size=size,
        num_classes=labels.num_classes,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        patch_size=2,
        stem_channels=4,
        attributes=attributes,
        upscale_factor=upscale_factor,
        **labels.to_config(),
    )
    pipeline = MaskGuidedDDPMPipeline if upscale_factor is None else MaskGuidedUpscalePipeline
    pipeline(unet, DDIMScheduler(prediction_type="v_prediction")).save_pretrained(folder)


def make_stock(folder: Path) -> Path:
    """All that pages take for granted: a source, two prepared datasets, models."""
    write_camvid(folder / "camvid")
    prepare_dataset(
        PrepareSettings(
            source=str(folder / "camvid"), output=str(folder / "data" / "camvid128"), format="camvid", resolution=SIZE
        )
    )
    write_toy_dataset(folder / "data" / "bdd128", num_train=4, num_val=2, size=(64, 64), seed=0)
    camvid, bdd = LabelSet.from_preset("camvid"), LabelSet.from_preset("bdd100k")
    save_model(folder / "runs" / "camvid128", camvid)
    for name in ("camvid128", "camvid128-turbo"):
        save_model(folder / "checkpoints" / name, camvid)
    save_model(folder / "checkpoints" / "camvid-upscaler", camvid, upscale_factor=4)
    save_model(folder / "runs" / "small", camvid, seed=1)
    save_model(folder / "runs" / "bdd128", bdd, 64, LOOKS)
    return folder


def lay_out(stock: Path, folder: Path, *names: str) -> None:
    """Copy parts of the stock into a folder, beside the files of the checkout."""
    for name in names:
        shutil.copytree(stock / name, folder / name)
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)


def edited_photo(folder: Path) -> None:
    """A photo, its mask and the mask edited, where docs/how_to/editing_photos.md looks for them."""
    labels = LabelSet.from_preset("camvid")
    split = folder / "data" / "camvid128" / "val"
    shutil.copy(split / "images" / f"{VAL[0]}.png", folder / "photo.png")
    ids = labels.encode(split / "masks" / f"{VAL[0]}.png")
    labels.decode(ids).save(folder / "mask.png")
    ids = ids.copy()
    ids[64:68, 64:68] = (ids[64:68, 64:68] + 1) % labels.num_classes
    labels.decode(ids).save(folder / "edited_mask.png")


def published(folder: Path) -> None:
    """Checkpoints in the layouts of other codebases, under the names of docs/how_to/converting.md."""
    labels = LabelSet.from_preset("paper")
    torch.save(paper_weights(), folder / "ema_model_epoch_550.ckpt")
    content = {**lightning(paper_weights(), paper_weights()), "hyper_parameters": {"path": Path("data")}}
    torch.save(content, folder / "model_epoch_550.ckpt")
    torch.save(lightning(paper_weights(), paper_weights())["state_dict"], folder / "weights.ckpt")
    torch.save(sdm_weights(), folder / "ema_0.9999_best.pt")
    konz_folder(folder / "ddpm-breast_mri-256-segguided", channels=1)
    colors = dict(zip(labels.names, map(list, labels.colors), strict=True))
    (folder / "colormap.json").write_text(json.dumps(colors))
    (folder / "classes.json").write_text(json.dumps({f"c{i}": [i, i, 0] for i in range(12)}))
    (folder / "masks").mkdir()
    labels.decode(golden_values("paper_unet_tiny")["label_map"][0]).save(folder / "masks" / "a.png")
