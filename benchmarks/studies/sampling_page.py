"""The page of `sampling.py`: a table for each group of arms, and images from the same masks and noise; and the two
sheets of images in docs/results/sampling.md."""

from pathlib import Path

from PIL import Image

from semseg_diffusers.data.dataset import PairDataset, read_record
from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.reports.render import write_page
from semseg_diffusers.utils.images import image_grid, written_beside


MASKS = 4  # rows of pictures in each group, at even distances
SHEETS = {  # name -> arms beside each other
    "steps": ("dpm_20", "dpm_50", "sde_10", "sde_20", "sde_50", "ddpm_20", "ddpm_250", "ddpm_1000"),
    "guidance": ("sde_scale_1.5", "sde_20", "sde_scale_3", "sde_interval_0.2_1", "sde_guide_2_0", "sde_guide_2_0.5"),
}


def write_sampling_page(path: Path, record: dict, pairs: PairDataset, dataset: str, output: Path) -> None:
    """Write the page.

    Args:
        path: of the page.
        record: what `sampling.json` holds.
        pairs: masks and photos.
        dataset: prepared folder, for the terms of its pictures.
        output: folder of the arms, for their pictures.
    """
    real, floor = record["real"], record["floor"]
    lead = (
        f"Every arm: the same {record['num_masks']} masks of the split {record['split']} (the dearest, half of them), "
        "one image each, from the same noise. Differences are paired, with the 95 % interval of resampled masks. KID "
        "is to all photos of the split, by features of the judge where no other network was given, which know classes "
        "more than looks; detail and contrast are shares of the photos' own."
    )
    bounds = (
        f"Real photos of the masks: mean IoU {real['mean_iou']:.3f}, accuracy {real['accuracy']:.3f}. As many "
        f"training photos: KID {floor['kid']:.3f}."
    )
    groups = []
    for name in dict.fromkeys(arm["group"] for arm in record["arms"].values()):
        arms = {key: arm for key, arm in record["arms"].items() if arm["group"] == name}
        headers, rows = _table(arms, record["references"])
        groups.append(
            {
                "name": name,
                "headers": headers,
                "rows": rows,
                "image_headers": ["mask", "photo", *(arm["what"] for arm in arms.values())],
                "images": _rows(arms, pairs, output),
            }
        )
    _, terms = data_license(read_record(dataset).get("format"), "these pictures")
    caption = f"Seed {record['seed']}, the same noise for every arm. {terms}"
    template = Path(__file__).with_name("sampling.html.j2")
    write_page(path, template, lead=lead, record=record, bounds=bounds, groups=groups, caption=caption)


def _table(arms: dict[str, dict], references: list[str]) -> tuple[list[str], list[list]]:
    headers = ["arm", "GFLOP", "masks", "mean IoU", "accuracy", *(f"IoU against {name}" for name in references)]
    rows = []
    for arm in arms.values():
        differences = []
        for name in references:
            found = arm["against"].get(name, {}).get("mean_iou")
            text = found and f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
            differences.append(text or "–")
        values = [arm["gflop"], arm["masks"], arm["mean_iou"], arm["accuracy"]]
        rows.append([arm["what"], *values, *differences, *(arm[name] for name in ("kid", "detail", "contrast"))])
    return [*headers, "KID", "detail", "contrast"], rows


def write_sheets(record: dict, pairs: PairDataset, output: Path) -> None:
    """Write `NAME.jpg` for each of SHEETS into the folder of the arms: masks | photos | what was drawn."""
    for name, chosen in SHEETS.items():
        arms = {arm: record["arms"][arm] for arm in chosen if arm in record["arms"]}
        rows = [cells for _, cells in _rows(arms, pairs, output)][1:]  # three show as much
        headers = ["mask", "photo", *(_short(arm) for arm in arms.values())]
        with written_beside(output / f"{name}.jpg") as temporary:
            image_grid(rows, headers).convert("RGB").save(temporary, "jpeg", quality=82, optimize=True)


def _short(arm: dict) -> str:
    return (
        arm["what"].replace("away from a weaker network", "autoguidance").replace(" 2M", "").replace(", ancestral", "")
    )


def _rows(arms: dict[str, dict], pairs: PairDataset, output: Path) -> list[tuple[str, list[Image.Image]]]:
    """Name of a mask, then mask, photo and images of the arms, of masks that every arm has drawn."""
    place_of = {stem: place for place, stem in enumerate(pairs.stems)}
    masks = sorted((output / "masks" / "half").iterdir())
    rows = []
    for row in range(MASKS):
        stem = masks[row * len(masks) // MASKS].stem
        pair = pairs[place_of[stem]]
        photo = Image.fromarray(pair["image"].permute(1, 2, 0).numpy())
        drawn = [Image.open(output / name / "images" / f"{stem}_0.png") for name in arms]
        rows.append((stem, [pairs.labels.decode(pair["mask"].numpy()), photo, *drawn]))
    return rows
