"""The painter as a Hugging Face Space: with the model in `MODEL_ID`, else `model/` here, else one of a checkout.

python examples/space/app.py          # the same on this machine: http://127.0.0.1:7860
"""

import os
import sys
from pathlib import Path

from semseg_diffusers.cli import main
from semseg_diffusers.generation.settings import DEFAULT_MODELS


HERE = Path(__file__).resolve().parent
# A folder beside this file first, then those of a checkout.
FOLDERS = (HERE / "model", *(HERE.parent.parent / folder for folder in DEFAULT_MODELS))


def find_model() -> str:
    """Return the Hub id in `MODEL_ID`, else the first folder that exists."""
    if os.environ.get("MODEL_ID"):
        return os.environ["MODEL_ID"]
    found = next((folder for folder in FOLDERS if (folder / "model_index.json").is_file()), None)
    if found is None:
        sys.exit("error: set MODEL_ID to a model on the Hub, or put a run folder beside app.py, named model/.")
    return str(found)


if __name__ == "__main__":
    address = ["--host", "127.0.0.1"]
    if os.environ.get("SPACE_ID"):  # a Space is reached from outside, by its own name
        address = ["--host", "0.0.0.0", "--allowed_hosts", os.environ["SPACE_HOST"]]
    sys.exit(main(["app", "--model", find_model(), "--output", "off", *address, *sys.argv[1:]]))
