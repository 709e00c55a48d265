"""Where results come from: the commit of this code and the versions of what it stands on."""

import importlib
import subprocess
from pathlib import Path

from semseg_diffusers.data.layout import package_version


def code_commit() -> str | None:
    """Return the git commit of this code, where it runs from a checkout."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
        return None
    return found.stdout.strip()


def versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this package and of libraries, by name.

    Example:
        >>> sorted(versions("torch", "transformers"))
        ['semseg_diffusers', 'torch', 'transformers']
    """
    return {"semseg_diffusers": package_version()} | {
        name: importlib.import_module(name).__version__ for name in libraries
    }
