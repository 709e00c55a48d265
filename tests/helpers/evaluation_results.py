"""Contents of `results.json` in small, for the tests of cards and of pages."""

import copy
from typing import Any

from semseg_diffusers.data.labels import LabelSet


def evaluation_results(revision: str) -> dict[str, Any]:
    """Return results of images that weights with this hash generated, with the old names of the distances."""
    row = {"mean_iou": 0.25, "pixel_accuracy": 0.5, "iou": {"road": 0.25}, "absent": ["sky"], "num_images": 4}
    return {
        "settings": {"dataset": "/home/someone/toy16", "generated": "new", "output": "evaluation", "split": "val",
                     "segmenter": "/home/someone/judge", "segmenter_size": None, "features": ["/home/someone/judge"],
                     "seed": 0},
        "commit": "4be1cdaeb204077e87d04438c0e4457972f7a3b9",
        "versions": {"semseg_diffusers": "0.1.0"},
        "resolution": [16, 16],
        "data": {"num_masks": 2, "num_generated": 4},
        "segmenter": {"name": "/home/someone/judge"},
        "generation": {"revision": revision, "scheduler": "DDIMScheduler", "guidance_scale": 3.0,
                       "num_inference_steps": 2, "seed": 0, "dtype": "float32", "height": 16, "width": 16},
        "agreement": {"real": {**row, "mean_iou": 0.5, "num_images": 2}, "generated": row,
                      "shuffled": {**row, "mean_iou": 0.125}},
        "fidelity": [{"features": {"name": "/home/someone/judge"}, "references": [
            {"reference": "val", "num_reference": 2, "n": 2, "generated": {"fid": 4.5, "kid": 0.5, "kid_std": 0.25},
             "floor": {"of": "train", "fid": 1.5, "kid": 0.125, "kid_std": 0.25}}]}],
    }  # fmt: skip


# Results with all parts -------------------------------------------------------------------------------------------

LABELS = LabelSet(("road", "sky", "car", "rider"), ((128, 64, 128), (70, 130, 180), (0, 0, 142), (255, 0, 0)))


def scores(mean_iou, accuracy, values, images, pixels, **more):
    iou = dict(zip(LABELS.names, values, strict=False))
    counts = {"num_images": images, "num_pixels": pixels}
    return {"mean_iou": mean_iou, "pixel_accuracy": accuracy, "iou": iou, "absent": ["rider"], **counts, **more}


def features(name, num_features):
    shape = {"num_features": num_features, "input_size": [98, 99]}
    return {"name": name, "revision": "sha256:ab", "architecture": "Dinov2Model", **shape}


def distances(reference, num_reference, of, fid, floor):
    kid, other = fid / 811, floor / 911
    return {
        "reference": reference,
        "num_reference": num_reference,
        "n": 61,
        "generated": {
            "frechet_distance": fid,
            "kernel_distance": kid,
            "kernel_distance_std": kid / 17,
            "kernel_distance_subset_size": 53,
        },
        "floor": {
            "of": of,
            "frechet_distance": floor,
            "kernel_distance": other,
            "kernel_distance_std": other / 13,
        },
    }


# Numbers all differ, so that each one found on the page is its own.
RESULTS = {
    "kind": "evaluation",
    "settings": {
        "model": "runs/street",
        "generated": None,
        "dataset": "data/street",
        "split": "val",
        "segmenter": "runs/judge",
        "features": ["org/dino", "file.pt"],
        "num_images_per_mask": 2,
        "seed": 7,
        "batch_size": 16,
        "guidance_scale": 3.25,
    },
    "seed": 7,
    "commit": "e1a6b80f",
    "versions": {"semseg_diffusers": "0.1.0", "torch": "2.13.0"},
    "started": "2026-11-24T07:00:00+00:00",
    "seconds": {"generation": 301.7, "total": 388.2},
    "resolution": [120, 136],
    "data": {
        "num_real": 103,
        "num_train": 369,
        "num_generated": 206,
        "num_masks": 101,
        "masks_without_labels": ["empty_mask"],
    },
    "generation": {"scheduler": "DPM", "num_inference_steps": 21, "seed": 5, "size": {"h": 120}},
    "segmenter": {
        "name": "runs/judge",
        "architecture": "Segformer",
        "num_parameters": 3716427,
        "input_size": [250, 252],
        "not_judged": ["wagon"],
        "validation": {"mean_iou": 0.4713, "step": 3200},
    },
    "agreement": {
        "real": scores(0.4523, 0.8441, [0.871, 0.932, 0.413], 103, 1625788),
        "generated": scores(
            0.3917, 0.8112, [0.762, 0.853, 0.0234], 206, 3251576, pixel_share={"road": 0.61, "sky": 0.37, "car": 0.02}
        ),
        "shuffled": scores(0.1231, 0.4319, [0.354, 0.265, 0.00176], 206, 3251000),
        "paper": scores(0.4411, 0.8637, [0.783, 0.874, 0.0445], 204, 3309568),
    },
    "fidelity": [
        {
            "features": features("org/dino", 386),
            "references": [
                {**distances("val", 103, "train", 40.04, 12.31), "note": "fewer images than features"},
                distances("train", 369, "val", 44.2, 12.9),
            ],
        },
        {
            "features": features("file.pt", 31),
            "references": [distances("val", 103, "train", 1.07, 0.62)],
        },
    ],
    "paper_metrics": {
        "fid_64": 1.063, "fid_64_floor": 0.218, "fid_64_missing": None, "ssim_paired": 0.3142, "ssim_unrelated": 0.2871
    },
    "diversity": [
        {
            "features": "org/dino",
            "within_masks": 0.2142,
            "between_masks": 0.6017,
            "real_between": 0.6631,
            "ratio": 0.356,
            "num_masks": 101,
            "samples_per_mask": 2,
        }
    ],
    "neighbours": [
        {
            "features": "org/dino",
            "reference": "train",
            "generated_median": 0.2013,
            "real_median": 0.1812,
            "threshold": 0.0511,
            "threshold_is": "1st percentile of real photos' distance to train",
            "num_closer": 3,
            "share_closer": 0.0146,
            "closest": [
                {"image": "a_0", "train_stem": "t1", "distance": 0.0307, "mirrored": True},
                {"image": "b_1", "train_stem": "t2", "distance": 0.0408, "mirrored": False},
            ],
        },
    ],
    "examples": {
        "rule": "mean IoU over the classes that the mask holds",
        "best": [{"image": "a_0", "stem": "a", "mean_iou": 0.713}],
        "worst": [{"image": "b_1", "stem": "b", "mean_iou": 0.0915}],
    },
    "notes": ["The Inception features were left out."],
}  # fmt: skip
MISSING = {
    **RESULTS,
    "generation": None,
    "segmenter": None,
    "agreement": None,
    "fidelity": [],
    "paper_metrics": None,
    "diversity": None,
    "neighbours": None,
    "examples": None,
    "commit": None,
    "notes": [],
}


def changed(**parts):
    """Return the results with values at paths, `agreement__real__mean_iou=0.4`."""
    results = copy.deepcopy(RESULTS)
    for path, value in parts.items():
        *outer, last = path.split("__")
        at = results
        for key in outer:
            at = at[int(key)] if isinstance(at, list) else at[key]
        at[last] = value
    return results
