"""Imports point one way, and a file beside the weights on the Hub needs nothing of ours."""

import ast
import re
import sys
from pathlib import Path

import pytest
from diffusers.utils.dynamic_modules_utils import get_relative_imports


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "semseg_diffusers"
MODULES = sorted(PACKAGE.rglob("*.py"))
HUB_FILES = sorted([*PACKAGE.glob("models/**/unet_*.py"), *PACKAGE.glob("pipelines/[!_]*.py")])
HUB_LIBRARIES = {"torch", "numpy", "PIL", "diffusers"}

# Each layer may import itself and the layers before it; models and pipelines are Hub files and import nothing of ours.
# What is not named here (growth, app, converters, hub.export, the command line) is on top and may import all.
LAYERS = (
    *("utils", "backbones", "labels", "data", "reports", "masks", "toy", "hub"),
    *("training", "generation", "evaluation"),
)
ALLOWED = {"models": {"models"}, "pipelines": {"pipelines"}}
ALLOWED |= {layer: {*LAYERS[: i + 1], "models", "pipelines"} for i, layer in enumerate(LAYERS)}
ALLOWED["utils"] = {"utils"}
ALLOWED["backbones"] = {"utils", "backbones"}
ALLOWED["generation"] -= {"training"}
ALLOWED["evaluation"] -= {"training"}


def layer_of(module: str) -> str:
    """Return the layer of a dotted module name: "semseg_diffusers.data.labels" -> "labels"."""
    parts = module.split(".")[1:]
    if parts[:2] in (["data", "labels"], ["data", "settings"]):
        return "labels"
    if parts[:2] == ["hub", "export"]:
        return "export"
    return parts[0] if parts else ""


def imports_of(source: str, package: str) -> set[str]:
    """Return the absolute names of all that a source imports, functions' own imports included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def wrong_imports(module: str, source: str, package: str) -> list[str]:
    """Return what a module imports of ours against the one-way rule."""
    allowed = ALLOWED.get(layer_of(module))
    if allowed is None:
        return []
    ours = {name for name in imports_of(source, package) if re.match(r"semseg_diffusers(\.|$)", name)}
    # `from semseg_diffusers.data import labels` is an import of data.labels, not of data.
    ours -= {name for name in ours if any(other.startswith(f"{name}.") for other in ours)}
    return sorted(name for name in ours if layer_of(name) not in allowed)


def name_of(path: Path) -> tuple[str, str]:
    """Return the dotted names of a file's module and of the package it is in."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = ".".join(parts[:-1])
    return (package if parts[-1] == "__init__" else ".".join(parts)), package


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module, package = name_of(path)
    assert wrong_imports(module, path.read_text(), package) == []


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_hub_files_import_public_libraries_and_files_beside_them_only(path):
    names = imports_of(path.read_text(), "beside")
    beside = {f"{name.split('.')[1]}.py" for name in names if name.startswith("beside.")}
    libraries = {name.split(".")[0] for name in names} - {"beside"}
    assert libraries - HUB_LIBRARIES - sys.stdlib_module_names == set()
    assert beside <= {file.name for file in path.parent.glob("*.py")}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("pipelines/pipeline_*.py")), ids=lambda path: path.name)
def test_a_pipeline_imports_itself_all_that_its_shared_files_import(path):
    # Of a local folder, diffusers copies the files that pipeline.py names, and not those that they name in turn.
    direct = set(get_relative_imports(path))
    assert {name for shared in direct for name in get_relative_imports(path.parent / f"{shared}.py")} <= direct


def test_every_hub_file_is_found():
    names = {path.name for path in HUB_FILES}
    networks = {"unet_id_channel.py", "unet_mask_control.py", "unet_mask_guided.py", "unet_paper.py", "unet_sdm.py"}
    assert networks | {"pipeline_mask_guided_ddpm.py"} <= names


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("semseg_diffusers.models.a", "import semseg_diffusers.data", ["semseg_diffusers.data"]),
        ("semseg_diffusers.models.a", "from ..data.labels import LabelSet", ["semseg_diffusers.data.labels.LabelSet"]),
        ("semseg_diffusers.data.labels", "def f():\n    from .dataset import a", ["semseg_diffusers.data.dataset.a"]),
        ("semseg_diffusers.data.a", "from semseg_diffusers import hub", ["semseg_diffusers.hub"]),
        (
            "semseg_diffusers.training.a",
            "from ..generation import b",
            ["semseg_diffusers.generation.b"],
        ),
        ("semseg_diffusers.data.a", "from semseg_diffusers.data.labels import LabelSet\nimport torch", []),
        ("semseg_diffusers.data.labels", "from semseg_diffusers.pipelines import a", []),
        ("semseg_diffusers.cli", "import semseg_diffusers.training.loop", []),
    ],
)
def test_the_rule_finds_what_breaks_it(module, source, wrong):
    assert wrong_imports(module, source, module.rpartition(".")[0]) == wrong
