"""What `semseg-diffusers evaluate` writes, in small, for the tests of cards."""

from typing import Any


def evaluation_results(revision: str) -> dict[str, Any]:
    """Results of images that weights with this hash drew."""
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
