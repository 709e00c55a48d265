"""What a wheel carries, and that it is enough: installed where nothing was, its command trains, draws and pushes."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import semseg_diffusers


ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
CANVAS = ("canvas.css", "canvas.html", "canvas.js", "raster.js")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "semseg_diffusers", source / "semseg_diffusers")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_carries_the_package_and_its_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = configparser.ConfigParser()
        scripts.read_string(
            archive.read(f"semseg_diffusers-{semseg_diffusers.__version__}.dist-info/entry_points.txt").decode()
        )
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "semseg_diffusers").rglob("*.py")}
    assert modules <= names
    texts = ("data/classes", "data/check/findings", "evaluation/architectures", "training/warnings")
    assert {f"semseg_diffusers/{name}.yaml" for name in texts} <= names
    assert {"semseg_diffusers/hub/templates/model_card.md", "semseg_diffusers/hub/templates/dataset_card.md"} <= names
    templates = {
        str(path.relative_to(ROOT)) for path in (ROOT / "semseg_diffusers" / "reports" / "templates").iterdir()
    }
    assert {"semseg_diffusers/reports/templates/base.html.j2"} < templates <= names
    assert {f"semseg_diffusers/app/canvas/{name}" for name in CANVAS} <= names
    assert not {name for name in names if name.startswith("tests")}
    assert scripts["console_scripts"]["semseg-diffusers"] == "semseg_diffusers.cli:main"


def test_wheel_trains_generates_and_pushes_from_an_empty_environment(wheel, hub, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install = [str(environment / "bin" / "python"), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*install, str(wheel)], check=True)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= hub.environment(tmp_path / "home")

    def call(*words: str) -> str:
        script = environment / "bin" / "semseg-diffusers"
        done = subprocess.run([str(script), *words], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("--version").split()[1] == semseg_diffusers.__version__
    call("toy", "--output", "scenes", "--resolution", "16", "--num_train", "4", "--num_val", "2")
    network = ("--block_out_channels", "8", "16", "--attention_levels", "0", "--stem_channels", "8")
    steps = ("--max_train_steps", "2", "--train_batch_size", "2", "--preview_steps", "0")
    call("train", "--dataset", "scenes", "--output_dir", "run", *network, "--norm_num_groups", "4", *steps)
    call("generate", "--model", "run", "--masks", "scenes/val/masks", "--output", "new", "--num_inference_steps", "2")
    assert len(list((tmp_path / "new" / "images").iterdir())) == 2
    assert "alice/from-a-wheel" in call("push", "--model", "run", "--repo_id", "alice/from-a-wheel")
    assert (tmp_path / "run" / "run.html").is_file()
