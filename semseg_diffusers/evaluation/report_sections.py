"""The numbers of an evaluation's page, a section per question, each with what it means and which direction is good.
Parts that are null in `results.json` are named as not measured; no equation stands behind it.
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from semseg_diffusers.data.pages.charts import Bars, bar_table, scale_mark, series_name, strip_table
from semseg_diffusers.data.pages.frame import (
    Section,
    bullets,
    exact,
    facts,
    is_finite,
    number,
    paragraph,
    percent,
    section,
    subheading,
    table,
    warning,
)
from semseg_diffusers.data.pages.pictures import named_color, picture_cards
from semseg_diffusers.evaluation.report_pictures import ReportPictures
from semseg_diffusers.evaluation.verdict import ratio, references_of, way_to_ceiling


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
        way = way_to_ceiling(*values)
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
