"""The pictures that an evaluation's page shows, and the map of where a segmentation network errs.
No equation stands behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.inputs import ImageSet
from semseg_diffusers.evaluation.metrics import without_classes
from semseg_diffusers.evaluation.verdict import findings, fraction_of_ceiling, ratio, references_of
from semseg_diffusers.reports.charts import Bars, bar_table, scale_mark, series_name, strip_table
from semseg_diffusers.reports.evaluation_text import results_commands
from semseg_diffusers.reports.figures import color_list, named_color, picture_cards, picture_table
from semseg_diffusers.reports.html import (
    NOTHING,
    Section,
    bullets,
    commands,
    exact,
    facts,
    is_finite,
    number,
    page,
    paragraph,
    percent,
    section,
    settings_table,
    subheading,
    table,
    warning,
    write_page,
)
from semseg_diffusers.utils.images import to_image


RIGHT = (240, 240, 240)  # near white: what is right needs no attention
UNKNOWN = ((200, 200, 200), (165, 165, 165))  # stripes: no class has those
NO_CLASS = (0, 0, 0)  # wrong, and the network named no class of the label set
STRIPE = 3  # pixels


@dataclass(frozen=True)
class GridRow:
    """One mask, the real photo it belongs to, and the images made from it."""

    stem: str
    mask: Image.Image
    real: Image.Image | None
    samples: Sequence[Image.Image]


@dataclass(frozen=True)
class ExamplePictures:
    """One generated image with its mask and how it was read; `mistakes` is made by `error_map`."""

    mask: Image.Image
    generated: Image.Image
    prediction: Image.Image
    mistakes: Image.Image
    real: Image.Image | None = None


@dataclass(frozen=True)
class PairPictures:
    """A generated image and the training photo that lies closest to it."""

    generated: Image.Image
    train: Image.Image


@dataclass(frozen=True)
class ReportPictures:
    """All pictures of a page; each part may be missing.

    Args:
        labels: gives classes their order and colours on the page.
        grid: mask, real photo and samples, row by row.
        examples: by `image` of the entries in `results["examples"]`.
        closest: by `image` and `train_stem` of the entries in the `closest` of `results["neighbours"]`.
    """

    labels: LabelSet | None = None
    grid: Sequence[GridRow] = ()
    examples: Mapping[str, ExamplePictures] = field(default_factory=dict)
    closest: Mapping[tuple[str, str], PairPictures] = field(default_factory=dict)


def error_map(prediction: np.ndarray | torch.Tensor, mask: np.ndarray | torch.Tensor, labels: LabelSet) -> Image.Image:
    """Show where a prediction differs from its mask.

    Right pixels are near white; wrong ones take the colour of the class that was predicted (black where the network
    named none of the label set); pixels that the mask does not know are striped grey.

    Args:
        prediction: class ids (H, W), `labels.ignore_index` where no class was named.
        mask: class ids (H, W).
        labels: of both.

    Returns:
        P-mode picture, hard edges kept wherever it is resized.

    Raises:
        ValueError: where the two differ in size, or hold other ids.

    Example:
        >>> labels = LabelSet(("road", "sky"), ((128, 64, 128), (70, 130, 180)))
        >>> error_map(np.array([[0, 1]]), np.array([[0, 0]]), labels).convert("RGB").getpixel((1, 0))
        (70, 130, 180)
    """
    prediction, mask = (ids.cpu().numpy() if isinstance(ids, torch.Tensor) else ids for ids in (prediction, mask))
    if prediction.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction and mask must both be (H, W); got {prediction.shape} and {mask.shape}.")
    labels.check_ids(prediction, source="the prediction")
    labels.check_ids(mask)
    table = np.zeros((256, 3), dtype=np.uint8)
    table[:] = NO_CLASS
    table[: labels.num_classes] = labels.colors
    picture = table[prediction]  # (H, W, 3)
    picture[prediction == mask] = RIGHT
    rows, columns = np.indices(mask.shape)
    stripes = np.asarray(UNKNOWN, dtype=np.uint8)[(rows + columns) // STRIPE % 2]  # (H, W, 3)
    unknown = mask == labels.ignore_index
    picture[unknown] = stripes[unknown]
    return _with_palette(picture)


def _with_palette(picture: np.ndarray) -> Image.Image:
    """RGB (H, W, 3) of at most 256 colours to a P-mode picture."""
    colors, ids = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    result = Image.fromarray(ids.reshape(picture.shape[:2]).astype(np.uint8), mode="P")
    result.putpalette(colors.astype(np.uint8).tobytes())
    return result


SETS = {  # in the order of the columns: worst, measured, best
    "shuffled": ("wrong masks (floor)", "generated images against the masks of others"),
    "generated": ("generated", "generated images against the masks they were made from"),
    "real": ("real photos (ceiling)", "real photos against their masks, at the same resolution"),
}
MEASURES = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}


def not_measured(results: Mapping[str, Any], reason: str = "") -> Markup:
    hint = " The notes at the end say what was left out and why." if results.get("notes") else ""
    return paragraph(f"Not measured{': ' + reason if reason else ''}.{hint}")


# Agreement -----------------------------------------------------------------------------------------------------------


def agreement_section(results: Mapping[str, Any], pictures: ReportPictures) -> Section:
    title, rows = "Agreement with the masks", results.get("agreement") or {}
    if not rows.get("generated"):
        return section(title, not_measured(results))
    explained = paragraph(
        "A segmentation network that was trained on real photos reads the images; its reading is compared with the "
        "masks, pixel by pixel, over the whole set at once. This says whether things stand where the mask has them, "
        "not how good the pictures look. Both measures run from 0 to 1, higher is better."
    )
    measured = []
    for key, name in MEASURES.items():
        values = [(rows.get(each) or {}).get(key) for each in SETS]
        way = fraction_of_ceiling(*values)
        measured.append([name, scale_mark(*values), *values, None if way is None else 100 * way])
    keys = [series_name(name, color) for name, color in (("floor", 2), ("generated", 1), ("ceiling", 0))]
    headers = ["measure", "0 to 1", *keys, "of the way, %"]
    counts = {
        text[0]: f"{text[1]}: {number(rows[name].get('num_images'))} images, "
        f"{number(rows[name].get('num_pixels'))} labelled pixels"
        for name, text in SETS.items()
        if rows.get(name)
    }
    overall = table(headers, measured, "Of the way: 0 is the floor, 100 the ceiling.", drawing=1)
    return section(title, explained, overall, facts(counts), _classes(results, pictures), *_left_out(results))


def _classes(results: Mapping[str, Any], pictures: ReportPictures) -> Markup:
    rows, labels = results["agreement"], pictures.labels
    shown = [name for name in ("real", "generated", "shuffled") if rows.get(name)]
    shares = rows["generated"].get("pixel_share") or {}
    known = [] if labels is None else labels.names
    measured = dict.fromkeys(name for row in shown for name in rows[row].get("iou") or {})
    ordered = [name for name in known if name in measured] + [name for name in measured if name not in known]
    colors = {} if labels is None else dict(zip(labels.names, labels.colors, strict=True))
    bars = [
        Bars(
            named_color(name, colors.get(name)),
            [(rows[row].get("iou") or {}).get(name) for row in shown],
            [100 * shares[name] if is_finite(shares.get(name)) else None] if shares else [],
        )
        for name in ordered
    ]
    return bar_table(
        bars,
        [{"real": "real", "generated": "generated", "shuffled": "wrong masks"}[row] for row in shown],
        caption="IoU of each class that the masks hold, 0 to 1. A class that is small in the masks has a rough value.",
        maximum=1.0,
        more=["pixels, %"] if shares else [],
    )


def _left_out(results: Mapping[str, Any]) -> list[Markup]:
    absent = results["agreement"]["generated"].get("absent") or []
    not_judged = (results.get("segmenter") or {}).get("not_judged") or []
    without = results["data"].get("masks_without_labels") or []
    texts = []
    if absent:
        texts.append(f"In no mask, so not in the mean: {', '.join(absent)}.")
    if not_judged:
        texts.append(f"Not judged, because the segmentation network does not know them: {', '.join(not_judged)}.")
    if without:
        texts.append(f"Masks without a single labelled pixel, so not scored: {', '.join(without)}.")
    return [paragraph(text) for text in texts]


# Fidelity, diversity, memorised photos -------------------------------------------------------------------------------


def fidelity_section(results: Mapping[str, Any]) -> Section:
    title = "Likeness to real photos"
    if not references_of(results):
        return section(title, not_measured(results))
    explained = paragraph(
        "Distances between the set of generated images and a set of real photos, in the features of a network; lower "
        "is better, 0 is the same distribution. FID depends on the number of images, KID does not and may fall "
        "slightly below 0. The floor is what as many other real photos reach: the best to hope for, so there is no "
        "ceiling. Compare numbers only where features, reference and number of images are the same."
    )
    blocks = [explained]
    for entry in results["fidelity"]:
        blocks += _distances(entry)
    return section(title, *blocks)


def _distances(entry: Mapping[str, Any]) -> list[Markup]:
    """FID and KID in the features of one network."""
    features, references = entry["features"], entry.get("references") or []
    size = features.get("num_features")
    blocks = [subheading(f"{features['name']}, {number(size)} features")]
    blocks += [warning(note) for note in dict.fromkeys(row.get("note") for row in references) if note]
    fid, kid, subsets = [], [], {}
    for reference in references:
        value, floor = reference.get("generated") or {}, reference.get("floor") or {}
        name = f"{number(reference.get('num_reference'))} of {reference['reference']}"
        sides = [name, reference.get("n"), exact(floor.get("of"))]
        fid.append([*sides, floor.get("fid"), value.get("fid"), ratio(value.get("fid"), floor.get("fid"))])
        if value.get("kid_subset_size"):
            subsets[f"{value['kid_subset_size']:,}"] = True
        spread = (floor.get("kid"), floor.get("kid_std"), value.get("kid"), value.get("kid_std"))
        kid.append([*sides, *spread, ratio(value.get("kid"), floor.get("kid"))])
    blocks.append(table(["FID to", "images", "floor is", "floor", "generated", "times the floor"], fid))
    headers = ["KID to", "images", "floor is", "floor", "±", "generated", "±", "times the floor"]
    drawn = (
        f"KID from subsets of {' and '.join(subsets)} images; ± is its standard deviation over them."
        if subsets
        else ""
    )
    return [*blocks, table(headers, kid, drawn)]


def diversity_section(results: Mapping[str, Any]) -> Section:
    title, rows = "Diversity", results.get("diversity") or []
    if not rows:
        per_mask = results["settings"].get("num_images_per_mask")
        reason = "one image a mask was made, and seeds are compared from two on" if per_mask == 1 else ""
        return section(title, not_measured(results, reason))
    explained = paragraph(
        "How much images differ that were made from the same mask with different seeds, against images of different "
        "masks: cosine distances between features. A ratio of 0 means that the seed changes nothing, 1 that the mask "
        "decides nothing. Neither end is good; a set for training should keep both."
    )
    headers = ["features", "same mask", "different masks", "ratio", "different real photos", "masks", "images a mask"]
    keys = ("within_masks", "between_masks", "ratio", "real_between", "num_masks", "samples_per_mask")
    return section(title, explained, table(headers, [[str(row["features"]), *map(row.get, keys)] for row in rows]))


def neighbours_section(results: Mapping[str, Any], pictures: ReportPictures) -> Section:
    title, ways = "Memorised photos", results.get("neighbours")
    if not ways:
        return section(title, not_measured(results))
    explained = paragraph(
        "The distance from each image to the training photo nearest to it, against the same for real photos that were "
        "not trained on. Images that lie closer than unseen photos do may be copies: look at the pairs. Frames of one "
        "video resemble each other, so the comparison counts, not the distance; about one image in a hundred lies "
        "below the threshold by chance, and more where it is of fewer than a hundred photos."
    )
    return section(title, explained, *(block for found in ways for block in _nearest(found, pictures)))


def _nearest(found: Mapping[str, Any], pictures: ReportPictures) -> list[Markup]:
    """Distances and closest pairs by the features of one network, or by pixels."""
    distances = found.get("distances") or {}
    measured = {
        "Median distance": f"generated {number(found.get('generated_median'))}, "
        f"real photos {number(found.get('real_median'))}",
        "Threshold": f"{number(found.get('threshold'))}: {found.get('threshold_is')}",
        "Closer than that": f"{number(found.get('num_closer'))} of the images ({percent(found.get('share_closer'))})",
    }
    blocks = [subheading(f"By {found['features']}, against {found['reference']}"), facts(measured)]
    if distances:
        named = {"real photos": distances["real"], "generated": distances["generated"]}
        caption = "Distance to the nearest training photo, a tick an image; dashed: the threshold."
        blocks.append(strip_table(named, caption, mark=found.get("threshold"), unit="images"))
    closest = found.get("closest") or []
    if closest:
        blocks.append(subheading("Closest pairs, with their distance"))
    cards, without = [], []
    for pair in closest:
        text = f"{pair['image']} (generated), {pair['train_stem']} (training photo): {number(pair['distance'])}"
        text += ", mirrored" if pair.get("mirrored") else ""
        shown = pictures.closest.get((pair["image"], pair["train_stem"]))
        if shown is None:
            without.append(text)
        else:
            cards.append((text, {"generated image": shown.generated, "training photo": shown.train}))
    blocks += [picture_cards(cards)] if cards else []
    blocks += [bullets(without)] if without else []
    return blocks


# The paper's metrics -------------------------------------------------------------------------------------------------


def paper_section(results: Mapping[str, Any]) -> Section:
    paper, rows = results.get("paper_metrics") or {}, results.get("agreement") or {}
    explained = paragraph(
        "For comparison with the paper only. Its FID is consistent only with the 64 features of Inception's first "
        "pooling layer, which see edges and colours but no objects. Its SSIM compares an image with the one real "
        "photo of its mask, place by place, though many photos fit a mask. Its IoU takes the network's reading of "
        "the real photo for the truth, so what the network misreads in both counts as right."
    )
    read = rows.get("paper") or {}
    measured = [
        ["FID, 64 features", "lower", paper.get("fid_64_floor"), paper.get("fid_64"), None],
        [
            "SSIM with the photo of the mask (-1 to 1)",
            "higher",
            None,
            paper.get("ssim_paired"),
            paper.get("ssim_unrelated"),
        ],
        ["mean IoU against the reading of the photo (0 to 1)", "higher", None, read.get("mean_iou"), None],
        ["pixel accuracy against the reading of the photo (0 to 1)", "higher", None, read.get("pixel_accuracy"), None],
    ]
    blocks = [explained, table(["measure", "better", "floor", "generated", "real photos of other masks"], measured)]
    if paper.get("fid_64") is None:
        blocks.append(
            paragraph(f"FID with 64 features was not measured: {paper.get('fid_64_missing') or 'see the notes'}.")
        )
    if read:
        counted = f"{number(read.get('num_images'))} images, {number(read.get('num_pixels'))} pixels"
        absent = f" Never read in the photos: {', '.join(read['absent'])}." if read.get("absent") else ""
        values = [[name, value] for name, value in (read.get("iou") or {}).items()]
        blocks.append(
            table(["class", "IoU"], values, f"Against the reading of the photo, by class; {counted}.{absent}")
        )
    else:
        blocks.append(
            paragraph("The paper's IoU was not measured: no mask is that of a photo in which a class is read.")
        )
    return section("The paper's metrics", *blocks)


def write_report(path: str | Path, results: Mapping[str, Any], pictures: ReportPictures) -> None:
    """Write the page of an evaluation.

    Args:
        path: the HTML file; its folder is made where missing.
        results: what `results.json` holds; parts that are null are named as not measured.
        pictures: masks, photos and samples to show; each part may be missing.
    """
    settings = results["settings"]
    model = settings.get("model") or settings.get("generated") or "generated images"
    sections = [
        _summary(results),
        *_grid(pictures),
        agreement_section(results, pictures),
        fidelity_section(results),
        diversity_section(results),
        neighbours_section(results, pictures),
        *_examples(results, pictures),
        paper_section(results),
        _how(results),
        *([section("Notes", bullets(results["notes"]))] if results.get("notes") else []),
    ]
    html = page(f"Evaluation of {model}", sections, lead=_lead(results), footer=_footer(results))
    write_page(path, html)


def _size(resolution: Sequence[int] | None) -> str:
    return NOTHING if resolution is None else f"{resolution[0]} × {resolution[1]} pixels (height × width)"


# What it says --------------------------------------------------------------------------------------------------------


def _lead(results: Mapping[str, Any]) -> str:
    data, settings = results["data"], results["settings"]
    images, masks = data.get("num_generated"), data.get("num_masks")
    source = f"{settings.get('dataset')} (split {settings.get('split')})"
    return (
        f"{number(images)} images drawn from {number(masks)} masks of {source}, compared with their masks and with "
        f"real photos. Every number stands beside what real photos reach and what chance reaches."
    )


def _summary(results: Mapping[str, Any]) -> Section:
    found = findings(results)
    says = bullets(Markup("<strong>{}.</strong> {}").format(*each) for each in found)
    data, generation, judge = results["data"], results.get("generation") or {}, results.get("segmenter") or {}
    about = {
        "Images": f"{number(data.get('num_generated'))} generated, {number(data.get('num_real'))} real photos of the "
        f"split, {number(data.get('num_train'))} training photos",
        "Resolution": _size(results.get("resolution")),
    }
    sampler = [
        exact(generation[key]) + unit
        for key, unit in (("variant", " weights"), ("scheduler", ""), ("num_inference_steps", " steps"))
        if generation.get(key) is not None
    ]
    if generation.get("guidance_scale") is not None:
        sampler.append(f"guidance {exact(generation['guidance_scale'])}")
    about["Sampler"] = ", ".join(sampler) or "not known: the images were not made by this package"
    seeds = f"{exact(results.get('seed'))} for the evaluation"
    if generation.get("seed") is not None:
        seeds += f", {exact(generation['seed'])} for the images"
    about["Seeds"] = seeds
    if judge:
        about["Masks read by"] = f"{judge.get('name')}, {_validation(judge.get('validation'))}"
    if results.get("fidelity"):
        about["Photos compared by"] = ", ".join(str(entry["features"]["name"]) for entry in results["fidelity"])
    return section("What it says", says if found else not_measured(results), facts(about))


def _validation(record: Mapping[str, Any] | None) -> str:
    score = (record or {}).get("mean_iou")
    if not is_finite(score):
        return "no validation score of its own is known: the ceiling says how well it reads these photos"
    return f"whose mean IoU on its own validation photos is {number(float(score))}"


def _grid(pictures: ReportPictures) -> list[Section]:
    if not pictures.grid:
        return []
    most = max(len(row.samples) for row in pictures.grid)
    headers = ["mask", "real photo", *(f"sample {index + 1}" if most > 1 else "sample" for index in range(most))]
    rows = [
        (row.stem, [row.mask, row.real, *row.samples, *[None] * (most - len(row.samples))]) for row in pictures.grid
    ]
    masks = [row.mask for row in pictures.grid]
    classes = [] if pictures.labels is None else [color_list(*_classes_in(masks, pictures.labels))]
    explained = paragraph("The mask is all that the model saw; the real photo is the one the mask was drawn on.")
    return [section("Pictures", explained, picture_table(headers, rows), *classes)]


# Examples ------------------------------------------------------------------------------------------------------------


def _classes_in(masks: Sequence[Image.Image], labels: LabelSet) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names and colours of what these masks show, unknown last."""
    found = {color for mask in masks for _, color in mask.convert("RGB").getcolors(mask.width * mask.height)}
    known = zip((*labels.names, "unknown"), (*labels.colors, labels.ignore_color), strict=True)
    shown = [(name, color) for name, color in known if color in found]
    return [name for name, _ in shown], [color for _, color in shown]


def _examples(results: Mapping[str, Any], pictures: ReportPictures) -> list[Section]:
    examples = results.get("examples") or {}
    if not examples.get("best") and not examples.get("worst"):
        return []
    blocks = [
        paragraph(
            f"Chosen by a rule, not by eye: {examples.get('rule')}. Mistakes: near white where the reading is right, "
            "else the colour of the class that was read (black: none of these); striped where the mask is "
            "unknown, or of a class that is not judged."
        )
    ]
    for kind in ("worst", "best"):
        rows, without = [], []
        for entry in examples.get(kind) or []:
            text, shown = (
                f"{entry['image']}, mean IoU {number(entry['mean_iou'])}",
                pictures.examples.get(entry["image"]),
            )
            if shown is None:
                without.append(text)
            else:
                rows.append((text, [shown.mask, shown.generated, shown.prediction, shown.mistakes, shown.real]))
        blocks.append(subheading({"worst": "Worst", "best": "Best"}[kind]))
        headers = ["mask", "generated", "reading", "mistakes", "real photo"]
        blocks += [picture_table(headers, rows)] if rows else []
        blocks += [bullets(without)] if without else []
    return [section("Worst and best images", *blocks)]


# Settings ------------------------------------------------------------------------------------------------------------


def _how(results: Mapping[str, Any]) -> Section:
    seconds = results.get("seconds") or {}
    taken = ", ".join(f"{name} {number(value)} s" for name, value in seconds.items())
    made = {
        "Started": exact(results.get("started")),
        "Time": taken or NOTHING,
        "Commit": exact(results.get("commit")),
        "Versions": ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items()),
    }
    model = results["settings"].get("model") or (results.get("generation") or {}).get("model") or "MODEL"
    again = commands(results_commands(results, model, separator=" \\\n  "))
    blocks = [facts(made), subheading("To give it again"), again]
    tables = {
        "Settings": results["settings"],
        "Images": results.get("generation"),
        "Segmenter": results.get("segmenter"),
    }
    for entry in results.get("fidelity") or []:
        tables[f"Features: {entry['features']['name']}"] = entry["features"]
    for title, values in tables.items():
        blocks.append(subheading(title))
        blocks.append(settings_table(values) if values else paragraph("Not recorded."))
    return section("How this was made", *blocks)


def _footer(results: Mapping[str, Any]) -> str:
    version = (results.get("versions") or {}).get("semseg_diffusers")
    made = f"semseg-diffusers {version}" if version else "semseg-diffusers"
    return f"Written by {made}. All numbers in full: results.json beside this page."


GRID_ROWS = 8  # masks, at even distances
GRID_SAMPLES = 4  # images of a mask, at most


def collect_pictures(
    results: dict[str, Any],
    real: ImageSet,
    train: ImageSet | None,
    generated: ImageSet,
    predictions: torch.Tensor,
) -> ReportPictures:
    """Read the pictures that the results speak of.

    Args:
        results: what `results.json` holds.
        real, train, generated: the sets.
        predictions: (N, H, W) ids that the segmentation network read from the generated images.
    """
    labels = generated.labels
    photo_of = {stem: place for place, stem in enumerate(real.stems)}
    samples_of: dict[str, list[int]] = {}
    for place, stem in enumerate(generated.stems):
        samples_of.setdefault(stem, []).append(place)
    place_of = {name: place for place, name in enumerate(generated.names)}
    stems = list(samples_of)
    count = min(GRID_ROWS, len(stems))

    def photo(stem: str) -> Image.Image | None:
        return to_image(real.image(photo_of[stem])) if stem in photo_of else None

    grid = [
        GridRow(
            stem=stem,
            mask=labels.decode(generated.mask(samples_of[stem][0])),
            real=photo(stem),
            samples=[to_image(generated.image(place)) for place in samples_of[stem][:GRID_SAMPLES]],
        )
        for stem in (stems[row * len(stems) // count] for row in range(count))
    ]
    examples = {}
    for entry in (*results["examples"]["best"], *results["examples"]["worst"]):
        place = place_of[entry["image"]]
        mask, prediction = generated.mask(place), predictions[place]
        judged = without_classes(mask, labels.names, results["segmenter"]["not_judged"], labels.ignore_index)
        examples[entry["image"]] = ExamplePictures(
            mask=labels.decode(mask),
            generated=to_image(generated.image(place)),
            prediction=labels.decode(prediction),
            mistakes=error_map(prediction, judged, labels),
            real=photo(entry["stem"]),
        )
    closest = {}
    if results["neighbours"] is not None and train is not None:
        train_place = {stem: place for place, stem in enumerate(train.stems)}
        for found in results["neighbours"]:
            for pair in found["closest"]:
                closest[pair["image"], pair["train_stem"]] = PairPictures(
                    generated=to_image(generated.image(place_of[pair["image"]])),
                    train=to_image(train.image(train_place[pair["train_stem"]])),
                )
    return ReportPictures(labels=labels, grid=grid, examples=examples, closest=closest)
