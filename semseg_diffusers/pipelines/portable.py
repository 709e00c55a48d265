"""Saving a pipeline as one folder that holds the code beside the weights, so that it loads anywhere.

This file is saved beside the weights and runs without the package: it imports the standard library and diffusers only.
"""

import contextlib
import inspect
import json
import os

from diffusers.utils import logging
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from diffusers.utils.torch_utils import is_compiled_module


logger = logging.get_logger(__name__)


def write_text(path, text: str) -> None:
    """Write a file atomically: beside it first, then renamed, so that no half-written file remains."""
    temporary = f"{os.fspath(path)}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def source_file(cls: type) -> str | None:
    """Return the file that defines a class; None for one from a notebook or script, which cannot travel alone."""
    if cls.__module__ == "__main__":
        logger.warning(f"{cls.__name__} is defined in a script or notebook: the saved folder loads only beside it.")
        return None
    return inspect.getsourcefile(cls)


def copy_source(source: str, target: str) -> None:
    """Copy a source file, and beside it those that it imports relatively, where diffusers looks for them."""
    with open(source, encoding="utf-8") as file:
        write_text(target, file.read())
    for name in get_relative_imports(source):
        sibling, beside = (os.path.join(os.path.dirname(path), f"{name}.py") for path in (source, target))
        with open(sibling, encoding="utf-8") as file:
            write_text(beside, file.read())


class PortableFolderMixin:
    """Makes `save_pretrained` and `push_to_hub` of a `DiffusionPipeline` write a folder that loads anywhere."""

    def to_json_file(self, json_file_path):
        """Write `model_index.json` with the source files beside it: once components are saved, before any upload.

        The network is recorded by the name of its source file, not by an import path that other machines do not have.
        """
        index = json.loads(self.to_json_string())
        for private in ("_module", "_name_or_path"):  # where this copy was loaded from is of no use to others
            index.pop(private, None)

        folder = os.path.dirname(os.fspath(json_file_path))
        pipeline_source = source_file(type(self))
        if pipeline_source is not None:
            copy_source(pipeline_source, os.path.join(folder, "pipeline.py"))
        for name, component in self.components.items():
            cls = type(component._orig_mod if is_compiled_module(component) else component)
            if component is None or index[name] == [None, None]:
                index.pop(name)  # an optional one, absent or on the Hub: the folder is that of a pipeline without it
                continue
            source = None if cls.__module__.startswith(("diffusers.", "transformers.")) else source_file(cls)
            if source is None:
                continue
            module_name = os.path.splitext(os.path.basename(source))[0]
            index[name] = [module_name, cls.__name__]
            if os.path.isdir(os.path.join(folder, name)):
                copy_source(source, os.path.join(folder, name, f"{module_name}.py"))
        write_text(json_file_path, json.dumps(index, indent=2, sort_keys=True) + "\n")
