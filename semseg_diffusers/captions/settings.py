"""Settings of `semseg-diffusers caption`."""

from dataclasses import dataclass

from semseg_diffusers.utils.settings import Settings, option


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(Settings):
    """Write texts about images, classes and things into a copy of a prepared dataset, from their measured colours.

      semseg-diffusers caption --dataset data/camvid128 --output data/camvid128_texts

    Each row of `metadata.jsonl` gets `captions`, wordings of a text about the image, and `region_captions`: a list of
    {"class": name, "thing": number, "texts": wordings}. Cars, persons and other things are described one by one, by
    their number in the mask from left to right (connected parts); of other classes all pixels are, with the number -1.
    Nothing is said where no colour prevails. `caption.json` counts the colours. With `--captioner`, an image-to-text
    model of transformers writes the texts about images, and those about classes and things stay measured.
    """

    dataset: str = option(metavar="DIR", help="prepared folder")
    output: str = option(metavar="DIR", help="new folder")
    attributes: tuple[str, ...] = option(
        (), metavar="NAME", help="columns of text that describe an image, such as weather timeofday"
    )
    captioner: str | None = option(
        None,
        metavar="ID|DIR",
        help="image-to-text model of transformers with safetensors that writes the texts about images, such as "
        "Salesforce/blip-image-captioning-base",
    )
    captioner_prompt: str | None = option(
        None,
        metavar="TEXT",
        help="what the captioner is asked, if it answers in a chat (default: to describe the street in a short "
        "sentence); otherwise the start of each text",
    )
    colors_column: str | None = option(
        None,
        metavar="COLUMN",
        help="colours that are known, such as those of a simulator, in place of measured ones for all classes that it "
        'names: a list of {"class": name, "thing": number, "colors": [[red, green, blue, pixels], ...]} of each image',
    )
    classes: tuple[str, ...] = option(
        (), metavar="NAME", help="classes that are described, such as those whose colours a user will ask for "
        "(default: all)",
    )  # fmt: skip
    num_wordings: int = option(3, at_least=1, help="wordings of each text; fewer where there are fewer")
    min_area: int = option(64, at_least=1, help="pixels that a thing or a class needs to be described")
    white_balance: bool = option(True, help="remove the cast of the light, measured on the road, from all but the sky")
    seed: int = option(0, at_least=0, help="seed of the wordings")
    device: str | None = option(None, help="torch device of the captioner (default: GPU if any)")

    def __post_init__(self):
        super().__post_init__()
        if self.captioner is None and self.captioner_prompt is not None:
            raise ValueError("--captioner_prompt is what a captioner is asked: give --captioner as well, or neither.")
        if self.captioner is None and self.device is not None:
            raise ValueError("--device is that of a captioner: give --captioner as well, or neither.")
        if self.captioner is not None and self.attributes:
            raise ValueError(
                "--attributes are words of measured texts, and a captioner writes its own: leave out --attributes or "
                "--captioner."
            )
