"""Data for studies: toy scenes, and more of them in the form of a generated folder."""

import contextlib
import io
import json
import shutil
from pathlib import Path

from semseg_diffusers import cli
from semseg_diffusers.data.dataset_format import METADATA_FILE
from semseg_diffusers.toy.scenes import write_toy_dataset


def write_scenes_as_generated(folder: Path, count: int, size: int, seed: int = 5) -> Path:
    """Write toy scenes in the layout of `generate`: perfect synthetic images."""
    source = folder.with_name(f"{folder.name}-source")
    write_toy_dataset(source, num_train=count, num_val=0, size=(size, size), seed=seed)
    shutil.move(source / "train", folder)
    shutil.move(source / "labels.json", folder / "labels.json")
    shutil.rmtree(source)
    return folder


def shuffle_masks(folder: Path) -> Path:
    """Give each image the mask of another."""
    paths = sorted((folder / "masks").iterdir())
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[7:] + contents[:7], strict=True):
        path.write_bytes(content)
    return folder


def change_rows(folder: Path, **values) -> Path:
    """Set columns in the first row of a folder's metadata."""
    path = folder / METADATA_FILE
    first, *others = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in ({**first, **values}, *others)))
    return folder


def study(*words, expect: int = 0) -> str:
    """Run `semseg-diffusers study` in this process; return its output, or its error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["study", *map(str, words)])
    assert code == expect, err.getvalue()
    return out.getvalue() if expect == 0 else err.getvalue()
