"""Options of `app`. Imports nothing heavy, so that `--help` is instant."""

from dataclasses import dataclass

from semseg_diffusers.app.hosts import name_of
from semseg_diffusers.generation.settings import DEFAULT_MODEL_HELP, DTYPE_NAMES
from semseg_diffusers.utils.settings import Settings, option


DEFAULT_UPSCALER = "checkpoints/camvid-upscaler"
DEFAULT_SEGMENTER = "checkpoints/camvid128-segmenter"
NO_OUTPUT = "off"
MAX_SEED = 2**31 - 1
MAX_GUIDANCE = 20.0


@dataclass(frozen=True, kw_only=True)
class Limits(Settings):
    """How much one visitor may ask for."""

    _group = "limits for visitors"
    max_size: int = option(4096, above=0, help="longer side of an uploaded image, in pixels")
    max_upload_mb: float = option(10.0, above=0, help="size of an uploaded file, in MB")
    max_steps: int = option(100, above=0, help="sampling steps")
    max_images: int = option(8, above=0, help="samples per request")
    queue_size: int = option(16, above=0, help="requests that may wait")


@dataclass(frozen=True, kw_only=True)
class ServerOptions(Settings):
    """Where the page is served."""

    _group = "web server"
    host: str = option("127.0.0.1", help="address to listen on")
    port: int = option(7860, at_least=1, at_most=65535, help="port to listen on")
    allowed_hosts: tuple[str, ...] = option(
        (), metavar="NAME", help="other names that the page answers to, such as that of a proxy before it"
    )
    open: bool = option(False, help="open the page in a browser")


@dataclass(frozen=True, kw_only=True)
class AppSettings(Limits, ServerOptions):
    """Paint masks in the browser, and generate images from them.

      semseg-diffusers app                                            # in a checkout: with a model that comes with it
      semseg-diffusers app --model runs/camvid128                     # http://127.0.0.1:7860
      semseg-diffusers app --model runs/camvid128 --masks data/camvid128/val/masks --output painted
      semseg-diffusers app --model runs/camvid128 --upscaler runs/upscaler       # large masks and images

    Pairs that are kept go to --output in the format of `generate`: `check`, `filter`, `merge` and `train` read it. The
    page is reachable from this machine only, unless --host says otherwise.
    """

    model: str | None = option(None, help=DEFAULT_MODEL_HELP)
    revision: str | None = option(None, help="branch, tag or commit of a Hub repo")
    variant: str | None = option(None, help="weights saved beside the model's own, as diffusers calls them")
    upscaler: str | None = option(
        None, metavar=f"DIR|ID|{NO_OUTPUT}",
        help="model of `train --upscale_factor`: masks are painted at its size, and each image is enlarged to it "
        f"after it was shown (default: {DEFAULT_UPSCALER}, if it is here and knows the model's classes)",
    )  # fmt: skip
    upscaler_revision: str | None = option(None, help="its branch, tag or commit on the Hub")
    output: str = option(
        "painted", metavar=f"DIR|{NO_OUTPUT}", help=f"dataset that the page may add to; {NO_OUTPUT} for none"
    )
    masks: str | None = option(None, metavar="DIR", help="masks to start from, and to cut objects from")
    segmenter: str | None = option(
        None, metavar=f"DIR|ID|{NO_OUTPUT}",
        help="network that suggests a mask for a photo, as of `segmenter` (default: "
        f"{DEFAULT_SEGMENTER}, if it is here and knows the model's classes)",
    )  # fmt: skip
    seed: int = option(0, at_least=0, at_most=MAX_SEED, help="seed that the page shows first")
    device: str | None = option(None, help="default: GPU if any")
    dtype: str = option("float32", choices=DTYPE_NAMES, help="of the weights")

    def __post_init__(self):
        super().__post_init__()
        if self.upscaler_revision is not None and self.upscaler in (None, NO_OUTPUT):
            raise ValueError("--upscaler_revision: only with --upscaler. Add it, or omit it.")
        for host in self.allowed_hosts:
            if "/" in host or not name_of(host):
                raise ValueError(f"--allowed_hosts {host!r}: expected a name such as paint.example.org, no URL.")
