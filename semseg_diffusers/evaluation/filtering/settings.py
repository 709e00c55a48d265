"""Settings of `semseg-diffusers filter`."""

from dataclasses import dataclass

from semseg_diffusers.data.settings import ColumnOptions
from semseg_diffusers.utils.settings import Settings, option


REFERENCE_SPLIT = "val"


@dataclass(frozen=True, kw_only=True)
class FilterSettings(Settings):
    """How strictly images are filtered."""

    _group = "rule"
    tolerance_margin: float = option(
        1.25, above=0, help="a pixel becomes unknown if its loss exceeds the mean loss of its class this many times"
    )
    minimum_kept: float = option(
        0.6, at_least=0, at_most=1, metavar="SHARE", help="drop images that keep a smaller share of labelled pixels"
    )
    resample: bool = option(False, help="keep the best images of each mask only, more of them for harder masks")
    keep_unchecked: bool = option(
        False,
        help="keep labels of classes that are not in the real images or unknown to the network (default: they become "
        "unknown)",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FilterCommandSettings(FilterSettings, ColumnOptions):
    """Filter generated images: labels that a segmentation network does not confirm become unknown.

    A pixel becomes unknown if the network's loss exceeds --tolerance_margin times the mean loss of its class on real
    images (FreeMask). The output is a dataset as `generate` writes it, with filtered masks; filter.html shows what was
    removed, and dropped.jsonl lists dropped images with reasons. The same command resumes an interrupted run; the
    generated folder is not modified.

      semseg-diffusers filter --generated NEW --dataset DATA --segmenter FILTER --output FILTERED --judge JUDGE
    """

    generated: str = option(metavar="DIR", help="folder written by `generate`")
    dataset: str = option(help="real images: prepared folder or Hub dataset id")
    split: str = option("train", help="split of the mean class losses")
    reference_split: str = option(
        "", help=f"split of real images to compare with (default: {REFERENCE_SPLIT} if it exists); none: no comparison"
    )
    output: str = option(metavar="DIR", help="folder to create or resume")
    segmenter: str = option(help="network that filters: folder written by `segmenter`, or Hub id")
    segmenter_revision: str | None = option(None, help="branch, tag or commit of a segmenter on the Hub")
    segmenter_size: str | None = option(None, metavar="HxW", help="input size of the segmenter (default: its own)")
    judge: str | None = option(
        None, help="network that later evaluates the images or the gain: an error if it is the one that filters"
    )
    judge_revision: str | None = option(None, help="branch, tag or commit of a judge on the Hub")
    allow_same_network: bool = option(False, help="accept a judge that is the network that filters")
    class_losses: str | None = option(
        None, metavar="DIR", help="reuse the mean losses of a folder filtered with this segmenter and these images"
    )
    batch_size: int = option(8, at_least=1, help="images per forward pass")
    seed: int = option(0, help="of the example images on the page")
    device: str | None = option(None, help="torch device (default: GPU if available)")
    dtype: str = option("float32", choices=("float32", "float16", "bfloat16"), help="of the networks")

    def __post_init__(self):
        super().__post_init__()
        if self.judge is None and (self.judge_revision is not None or self.allow_same_network):
            raise ValueError("--judge_revision and --allow_same_network need --judge. Give it, or omit them.")
