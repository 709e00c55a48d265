"""Settings of the commands `push` and `export`; imports nothing heavy, so that `--help` answers at once."""

import dataclasses

from semseg_diffusers.data.settings import LABEL_PRESETS
from semseg_diffusers.utils.settings import Settings, option


RESULTS_HELP = "results.json that `evaluate` wrote for this model, for its card"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushSettings(Settings):
    """Publish a model or a dataset on the Hugging Face Hub, with its card; the same command resumes or updates it.

    The token comes from HF_TOKEN or `hf auth login`, never from an option.
    """

    model: str | None = option(None, metavar="RUN", help="run folder, or a folder that save_pretrained wrote")
    dataset: str | None = option(None, metavar="DIR", help="folder that prepare, toy or generate wrote")
    repo_id: str = option(metavar="USER/NAME", help="repository on the Hub; created if necessary")
    private: bool = option(False, help="create a private repository (default: that of the Hub, public)")
    revision: str | None = option(None, metavar="BRANCH", help="branch, created if necessary (default: main)")
    commit_message: str | None = option(None, metavar="TEXT", help="title of the commit")
    results: tuple[str, ...] = option((), metavar="FILE", help=RESULTS_HELP)
    dry_run: bool = option(False, help="list what would be sent and print the card; needs no token and no connection")

    def __post_init__(self):
        super().__post_init__()
        if (self.model is None) == (self.dataset is None):
            raise ValueError(f"expected one of --model and --dataset; got {'both' if self.model else 'neither'}.")
        if self.dataset is not None and self.results:
            raise ValueError("--results belongs to a model's card: use it with --model.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetOptions:
    """Options of the image on an exported model's card: masks and samples of each."""

    _group = "the card's image"

    masks: str | None = option(None, metavar="DIR", help="masks to choose from (default: no image)")
    generator: str | None = option(
        None, metavar="DIR|ID", help="for upscalers: the model whose images the image shows enlarged"
    )
    mask_labels: str | None = option(
        None,
        metavar="PRESET|FILE",
        help=f"label set of the masks, if it is not the model's: {', '.join(LABEL_PRESETS)}, or a JSON file",
    )
    num_masks: int = option(16, at_least=1, help="masks on the image")
    samples: int = option(4, at_least=1, help="samples of each mask")
    seed: int = option(0, help="seed that chooses the masks, and of the samples")
    batch_size: int = option(8, at_least=1, help="images a forward pass")
    device: str | None = option(None, help="device that generates the samples (default: GPU if any)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(SheetOptions, Settings):
    """Export a trained model as a folder to share, with a card that shows its results and samples.

    Weights are stored in half precision. The folder loads like any other; `push` publishes it, with code files.

      semseg-diffusers export --model RUN --output checkpoints/streets --results evaluation/results.json --masks DIR
    """

    model: str = option(metavar="RUN", help="run folder, or a folder that save_pretrained wrote")
    output: str = option(metavar="DIR", help="folder to create; the card names it as it is given here")
    dtype: str = option("float16", choices=("float16", "bfloat16", "float32"), help="precision of the stored weights")
    text_encoder_id: str | None = option(
        None, metavar="ID", help="store this id of the model's text encoder on the Hub, and its commit, instead of "
        "its weights, which must be the same",
    )  # fmt: skip
    results: tuple[str, ...] = option((), metavar="FILE", help=RESULTS_HELP)
    overwrite: bool = option(False, help="replace a folder that this command made")

    def __post_init__(self):
        super().__post_init__()
        given = self.given(("mask_labels", "num_masks", "samples", "seed"))
        if given and self.masks is None:
            raise ValueError(f"{', '.join(given)}: only with --masks. Set it, or omit them.")
