"""Runs the notebooks from top to bottom and writes them back with their outputs, small and without noise.

`make notebooks`, or `python notebooks/run.py [NOTEBOOK ...]`. The kernel is this Python, whatever kernels are
registered, and asks nothing of the network. A notebook that fails, or holds what it must not (`faults`), is not
written.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image

from semseg_diffusers.pipelines.portable import write_text


FOLDER = Path(__file__).resolve().parent
SECONDS = 900  # that a cell may take on a busy machine
LARGEST_PICTURE = 60_000  # bytes
LARGEST_NOTEBOOK = 400_000  # bytes
JPEG_QUALITY = 85
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # of tqdm, where ipywidgets is not installed
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and cursor moves of a terminal
PROGRESS = re.compile(r"^.*\d%\|.*\|.*(\n|$)", flags=re.MULTILINE)  # what a bar of tqdm leaves
ABSOLUTE_PATH = re.compile(r"(?:(?<=[\s'\"=(:])|^)(?:/|~/|[A-Z]:\\)[\w.-]+[/\\][\w./\\-]+", flags=re.MULTILINE)


class ThisPython(KernelSpecManager):
    """Knows one kernel: the Python that runs this script."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002
        return KernelSpec(**get_kernel_dict())


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells, in place; a command of a cell (`!...`) that fails is an error too.

    Args:
        notebook: its outputs are replaced.
        folder: working folder of its kernel.

    Raises:
        CellExecutionError, CellTimeoutError, DeadKernelError: a cell failed, took too long, or ended the kernel.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython()),
        resources={"metadata": {"path": str(folder)}},
        timeout=SECONDS,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR", "--InteractiveShell.system_raise_on_error=True"],
    )
    with tempfile.TemporaryDirectory() as home:  # caches of the Hugging Face libraries
        client.execute(env={**os.environ, **OFFLINE, "HF_HOME": home})


def tidy(notebook: NotebookNode) -> None:
    """Leave of the outputs, in place, what a reader needs: pictures small, no bars, times, colours, versions."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = PROGRESS.sub("", ESCAPES.sub("", output.text.replace("\r\n", "\n")))
            elif "data" in output:
                keep_smallest_picture(output.data)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("text", "kept").strip()]


def keep_smallest_picture(data: NotebookNode) -> None:
    """Of the pictures that an output carries, and a JPEG of the first, keep the one of fewest bytes, in place."""
    pictures = {kind: data.pop(kind).replace("\n", "") for kind in ("image/png", "image/jpeg") if kind in data}
    if pictures:
        first = Image.open(io.BytesIO(base64.b64decode(next(iter(pictures.values())))))
        buffer = io.BytesIO()
        first.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
        pictures.setdefault("image/jpeg", base64.b64encode(buffer.getvalue()).decode())
        kind = min(pictures, key=lambda name: len(pictures[name]))
        data[kind] = pictures[kind]


def faults(notebook: NotebookNode) -> list[str]:
    """All that a notebook of this folder must not hold, each as a sentence; empty where it is as it should be."""
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as err:
        return [f"is no valid notebook: {err.message}"]
    found = []
    if len(nbformat.writes(notebook)) > LARGEST_NOTEBOOK:
        found.append(f"has {len(nbformat.writes(notebook)):,} bytes; expected at most {LARGEST_NOTEBOOK:,}")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"was not run from top to bottom: its cells have the numbers {counts}")
    for number, cell in enumerate(code, 1):
        text = cell.source
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number} failed: {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                found.append(f"cell {number} wrote to stderr: {output.text[:300]}")
            for kind, content in output.get("data", {}).items():
                if kind.startswith("image/") and len(content) * 3 / 4 > LARGEST_PICTURE:
                    size = f"{len(content) * 3 // 4:,} bytes; expected at most {LARGEST_PICTURE:,}"
                    found.append(f"cell {number} shows a picture of {size}")
            text += "\n" + output.get("text", "") + "\n" + output.get("data", {}).get("text/plain", "")
        found += [f"cell {number} names a path of a machine: {path}" for path in ABSOLUTE_PATH.findall(text)]
    return found


def run(path: Path, output: Path | None = None) -> str | None:
    """Run one notebook and write it.

    Args:
        path: the notebook; its kernel runs in its folder.
        output: file to write; the notebook itself by default.

    Returns:
        what is wrong with it, in which case nothing was written; None where all is well.
    """
    notebook = nbformat.read(path, as_version=4)
    try:
        execute(notebook, path.parent)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as err:
        return ESCAPES.sub("", str(err))
    tidy(notebook)
    if found := faults(notebook):
        return "\n".join(found)
    write_text(output or path, nbformat.writes(notebook) + "\n")
    return None


def main() -> int:
    """Run the notebooks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of this folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write there, and leave the notebooks as they are")
    args = parser.parse_args()
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in args.notebooks or sorted(FOLDER.glob("*.ipynb")):
        start = time.perf_counter()
        wrong = run(path.resolve(), None if args.output is None else args.output / path.name)
        seconds = time.perf_counter() - start
        if wrong is None:
            print(f"{path.name}: {seconds:.0f} s", flush=True)
        else:
            failed += 1
            print(f"error: {path.name} after {seconds:.0f} s, not written:\n{wrong}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
