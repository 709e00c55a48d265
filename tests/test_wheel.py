"""What a wheel carries: the package, its card template, its command."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
CANVAS = ("canvas.css", "canvas.html", "canvas.js", "raster.js")


@pytest.mark.slow
def test_wheel_carries_the_package_and_its_command(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "semseg_diffusers", source / "semseg_diffusers")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read("semseg_diffusers-0.1.0.dist-info/entry_points.txt").decode())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "semseg_diffusers").rglob("*.py")}
    assert modules <= names
    assert {"semseg_diffusers/model_card.md", "semseg_diffusers/dataset_card.md"} <= names
    assert "semseg_diffusers/data/pages/page.html" in names
    assert {f"semseg_diffusers/app/canvas/{name}" for name in CANVAS} <= names
    assert not {name for name in names if name.startswith("tests")}
    assert scripts["console_scripts"]["semseg-diffusers"] == "semseg_diffusers.cli:main"
