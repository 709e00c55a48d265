"""The notebooks: whole, small and true as they are committed; and they run from top to bottom (slow)."""

import base64
import copy
import importlib.util
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from docs.test_docs import command_of
from PIL import Image

from semseg_diffusers.cli import command_parser


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")
MOST_LINES = 35  # of a cell of code: what is seen at once

_spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
notebooks_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(notebooks_run)

# What makes a notebook short, of which only that it runs is asked: text of its cells -> text in its place.
SHORTER = {
    "02_train_on_toy_scenes": {
        "--num_train 600": "--num_train 60",
        "max_train_steps: 400": "max_train_steps: 20",
        "lr_warmup_steps: 30": "lr_warmup_steps: 2",
        "preview_steps: 100": "preview_steps: 10",
        "num_inference_steps=20": "num_inference_steps=2",
    },
    "03_sample_and_swap_schedulers": {
        "DDPMScheduler.from_config(default.config), 100)": "DDPMScheduler.from_config(default.config), 5)",
        "counts = (2, 4, 8, 20, 50)": "counts = (2, 4, 8)",
    },
    "05_evaluate_and_grow": {
        "--num_inference_steps 10": "--num_inference_steps 4",
        "study.max_train_steps=60": "study.max_train_steps=5",
    },
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def source_lines(cell: nbformat.NotebookNode) -> list[str]:
    """The lines of a cell, those that end in a backslash joined."""
    return cell.source.replace("\\\n", " ").splitlines()


def small_notebook(*sources: str) -> nbformat.NotebookNode:
    """A notebook of these cells, as if it had been run without saying anything."""
    cells = [nbformat.v4.new_code_cell(source, execution_count=i) for i, source in enumerate(sources, 1)]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebooks_run.METADATA)


def png(size: int) -> str:
    """A picture of noise, which compresses badly, as a notebook holds it."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# As they are committed -----------------------------------------------------------------------------------------------


@each_notebook
def test_notebook_was_run_whole_and_holds_nothing_that_it_must_not(path):
    assert notebooks_run.faults(read(path)) == []


@each_notebook
def test_notebook_starts_with_its_title_and_ends_with_what_to_read_next(path):
    cells = read(path).cells
    assert re.match(rf"# {int(path.stem[:2])}\. ", cells[0].source)
    assert "## Next" in cells[-1].source.splitlines()
    assert all(cell.source.count("\n") < MOST_LINES for cell in cells if cell.cell_type == "code")


@each_notebook
def test_pictures_of_a_notebook_are_whole(path):
    outputs = [output for cell in read(path).cells for output in cell.get("outputs", [])]
    pictures = [
        (kind, content)
        for output in outputs
        for kind, content in output.get("data", {}).items()
        if kind in ("image/png", "image/jpeg")
    ]
    assert len(pictures) >= 2
    for kind, content in pictures:
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        picture.load()
        assert f"image/{picture.format.lower()}" == kind


@each_notebook
def test_commands_of_a_notebook_exist_with_their_options(path):
    lines = [line for cell in read(path).cells for line in source_lines(cell) if line.startswith("!")]
    assert lines or path.stem.startswith("03")
    for line in lines:
        assert line.startswith("!{semseg} "), line
        name, words = command_of(line.replace("!{semseg}", "semseg-diffusers").split(" || ")[0])
        command_parser(name).parse_args(words)


@each_notebook
def test_links_of_a_notebook_lead_somewhere(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\[[^\]]*\]\(([^)]+)\)", text)
    assert len(targets) >= 3
    assert [target for target in targets if not (FOLDER / target).exists()] == []


def test_readme_names_every_notebook():
    assert sorted(set(re.findall(r"\((\d\d_\w+\.ipynb)\)", README))) == [path.name for path in NOTEBOOKS]
    assert len(NOTEBOOKS) == 5


# What `run.py` refuses and removes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cell: cell.update(execution_count=3), "was not run from top to bottom"),
        (lambda cell: cell.update(execution_count=None), "was not run from top to bottom"),
        (lambda cell: cell.outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="x")), "failed"),
        (lambda cell: cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="w")), "to stderr: w"),
        (lambda cell: cell.outputs.append(nbformat.v4.new_output("stream", text="in /srv/ann/run\n")), "/srv/ann/run"),
        (lambda cell: cell.update(source="open('/srv/ann/mask.png')"), "a path of a machine: /srv/ann/mask.png"),
        (lambda cell: cell.update(source=r"open('C:\ann\mask.png')"), r"a path of a machine: C:\\ann\\mask.png"),
        (
            lambda cell: cell.outputs.append(nbformat.v4.new_output("display_data", data={"image/png": png(160)})),
            "shows a picture of",
        ),
        (lambda cell: cell.outputs.append(nbformat.v4.new_output("stream", text="x" * 500_000)), "bytes; expected"),
        (lambda cell: cell.outputs.append({"output_type": "surprise"}), "is no valid notebook"),
    ],
    ids=[
        "order",
        "not run",
        "error",
        "stderr",
        "path",
        "path in source",
        "path of Windows",
        "picture",
        "size",
        "form",
    ],
)
def test_fault_is_found(spoil, message):
    notebook = small_notebook("1", "print('fine: a/b, https://host/path, 3 images/s')")
    assert notebooks_run.faults(notebook) == []
    spoil(notebook.cells[0])
    assert re.search(message, "\n".join(notebooks_run.faults(notebook)))


def test_tidy_leaves_text_and_the_smallest_picture():
    notebook = small_notebook("1")
    bar = "drawing:  40%|████      | 2/5 [00:00<00:00]"
    noisy = png(64)
    outputs = [
        nbformat.v4.new_output("stream", text=f"first\r\n{bar}\r\n\x1b[1mlast\x1b[0m\r\n"),
        nbformat.v4.new_output("stream", name="stderr", text=f"{bar}\n"),
        nbformat.v4.new_output("execute_result", data={"image/png": noisy, "text/plain": "<Image>"}),
    ]
    notebook.cells[0].update(outputs=copy.deepcopy(outputs), metadata={"execution": {"shell.execute_reply": "now"}})
    notebooks_run.tidy(notebook)
    text, picture = notebook.cells[0].outputs
    assert text.text == "first\nlast\n"
    assert list(picture.data) == ["text/plain", "image/jpeg"]
    assert len(picture.data["image/jpeg"]) < len(noisy)
    assert notebook.cells[0].metadata == {}
    before = copy.deepcopy(notebook)
    notebooks_run.tidy(notebook)
    assert notebook == before


# Run -----------------------------------------------------------------------------------------------------------------


def run_script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "run.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        pytest.param(
            f"!{sys.executable} -c 'raise SystemExit(3)'",
            "CalledProcessError",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="IPython 8 lets failing commands pass"),
        ),
    ],
    ids=["python", "command"],
)
def test_notebook_that_fails_is_not_written(source, message, tmp_path):
    path = tmp_path / "wrong.ipynb"
    nbformat.write(small_notebook(source), path)
    before = path.read_bytes()
    done = run_script(path)
    assert done.returncode == 1
    assert "error: wrong.ipynb" in done.stderr
    assert message in done.stderr
    assert path.read_bytes() == before


@pytest.mark.slow
@each_notebook
def test_notebook_runs_from_top_to_bottom_and_leaves_nothing_beside_it(path, tmp_path, monkeypatch):
    # In a copy of the checkout's place, so that whatever it wrote beside itself is seen.
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    notebook, copied = read(path), tmp_path / "notebooks" / path.name
    for printed, shorter in SHORTER.get(path.stem, {}).items():
        cells = [cell for cell in notebook.cells if printed in cell.source]
        assert cells, printed
        for cell in cells:
            cell.source = cell.source.replace(printed, shorter)
    nbformat.write(notebook, copied)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # A short path: sockets of processes that read data lie in it, and Linux takes 107 characters for one.
    with tempfile.TemporaryDirectory(prefix="nb-", dir="/tmp") as work:
        monkeypatch.setenv("TMPDIR", work)
        done = run_script(copied)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "notebooks").iterdir()] == [path.name]
    assert [cell.source for cell in read(copied).cells] == [cell.source for cell in notebook.cells]
