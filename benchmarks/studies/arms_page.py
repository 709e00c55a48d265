"""The page of a study of arms: their table, their IoU by class, and what each generates from the same masks."""

from pathlib import Path

from PIL import Image

from semseg_diffusers.data.dataset import load_pairs, read_record
from semseg_diffusers.data.dataset_format import data_license
from semseg_diffusers.reports.render import BarRow, write_page


MASKS = 6  # rows of pictures, at even distances


def by_agreement(record: dict) -> list[tuple[str, dict]]:
    """The arms of a record, the best first."""
    return sorted(record["arms"].items(), key=lambda item: -item[1]["mean"]["mean_iou"])


def write_arms_page(path: Path, title: str, record: dict, dataset: str, runs: Path) -> None:
    """Write the page.

    Args:
        path: of the page.
        title: of the page.
        record: what `collect` returned.
        dataset: prepared folder, for masks and photos.
        runs: folder of the runs and their evaluations, for pictures.
    """
    arms, seeds = record["arms"], record["seeds"]
    rows = []
    for arm, values in by_agreement(record):
        of_seed = {one["seed"]: one for one in values["runs"]}
        ious = [of_seed[seed]["mean_iou"] if seed in of_seed else None for seed in seeds]
        training = values["runs"][0]["training"]
        means = [values["mean"][name] for name in ("mean_iou", "pixel_accuracy", "fid")]
        rows.append([arm.replace("_", " "), values["what"], *means, *ious, training["images"]])
    headers = ["arm", "what it is", "mean IoU", "pixel accuracy", "FID", *(f"mean IoU, seed {seed}" for seed in seeds)]
    ceiling, floor = record["ceiling"], record["floor"]
    first = next(iter(arms))  # whose images the floor is measured with
    bounds = (
        f"Real photos: mean IoU {ceiling['mean_iou']:.3f}, pixel accuracy {ceiling['pixel_accuracy']:.3f}. Images of "
        f"the arm {first}, held against masks of others: {floor['mean_iou']:.3f}, {floor['pixel_accuracy']:.3f}."
    )
    names = [arm.replace("_", " ") for arm in arms]
    classes = list(next(iter(arms.values()))["runs"][0]["iou"])
    bars = [BarRow(name, [_mean_iou(values, name) for values in arms.values()]) for name in classes]
    what = (
        f"Every arm: {record['budget_gflop']:,.0f} GFLOP of forward passes, batches of {record['batch']}, seeds "
        f"{', '.join(map(str, seeds))}; read on {record['num_masks']} masks of the validation split, one "
        f"image each, {record['generation']['scheduler']}, {record['generation']['num_inference_steps']} steps, "
        f"guidance {record['generation']['guidance_scale']:g}. So little training shows how fast an arm learns, not "
        "where it ends."
    )
    write_page(
        path,
        Path(__file__).with_name("arms.html.j2"),
        title=title,
        lead=what,
        record=record,
        bounds=bounds,
        headers=[*headers, "images seen"],
        rows=rows,
        classes=bars,
        names=names,
        images=_images(record, dataset, runs),
    )


def _mean_iou(values: dict, name: str) -> float | None:
    found = [one["iou"][name] for one in values["runs"] if one["iou"].get(name) is not None]
    return sum(found) / len(found) if found else None


def _images(record: dict, dataset: str, runs: Path) -> dict:
    pairs = load_pairs(dataset, "val")
    place_of = {stem: place for place, stem in enumerate(pairs.stems)}
    seed = record["seeds"][0]
    _, terms = data_license(read_record(dataset).get("format"), "these pictures")
    folders = {arm: runs / f"{arm}-{seed}-evaluation" / "generated" / "images" for arm in record["arms"]}
    folders = {arm: folder for arm, folder in folders.items() if folder.is_dir()}
    files = sorted(next(iter(folders.values())).iterdir())
    rows = []
    for row in range(MASKS):
        name = files[row * len(files) // MASKS].name
        pair = pairs[place_of[name.rsplit("_", 1)[0]]]
        photo = Image.fromarray(pair["image"].permute(1, 2, 0).numpy())
        made = [Image.open(folder / name) if (folder / name).exists() else None for folder in folders.values()]
        rows.append((pair["stem"], [pairs.labels.decode(pair["mask"].numpy()), photo, *made]))
    caption = f"seed {seed}, the same noise for every arm. {terms}"
    return {"headers": ["mask", "photo", *folders], "rows": rows, "caption": caption}
