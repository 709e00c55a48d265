"""Processes forked from one that has imported libraries: importing them is most of the time in which others start.

Importing torch, its compiler and SciPy takes four seconds of a processor, diffusers and this package five more.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


# What reads none of Hugging Face's variables: processes with variables of their own import the rest themselves.
LIBRARIES = (
    "torch", "torch._dynamo", "torch.distributed.checkpoint", "httpx", "jinja2", "pandas", "PIL.Image", "psutil",
    "scipy.optimize", "scipy.stats", "sympy", "urllib3.util",
)  # fmt: skip
DIFFUSERS = (
    *LIBRARIES, "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d",
    "diffusers.pipelines.pipeline_utils", "diffusers.schedulers.scheduling_ddpm",
    "diffusers.utils.dynamic_modules_utils",
)  # fmt: skip
COMMANDS = (
    "accelerate.commands.launch", "torch.distributed.run", "semseg_diffusers.autoencoders.autoencoder",
    "semseg_diffusers.distillation.distill", "semseg_diffusers.evaluation.evaluate",
    "semseg_diffusers.generation.generate", "semseg_diffusers.training.loop",
)  # fmt: skip


class Started:
    """A process that was forked, in a session of its own: what tests ask of `subprocess.Popen`."""

    def __init__(self, pid: int, folder: tempfile.TemporaryDirectory):
        self.pid, self.returncode = pid, None
        self._folder = folder  # removed with this object

    def _read(self, name: str) -> str:
        path = Path(self._folder.name, name)
        return path.read_text(errors="replace") if path.exists() else ""

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self.returncode is None and (end := self._read("end")).endswith("\n"):
            self.returncode = int(end)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code."""
        last = time.monotonic() + (timeout or float("inf"))
        while self.poll() is None:
            if time.monotonic() > last:
                raise subprocess.TimeoutExpired("python", timeout, self.output)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what it wrote to stdout and to stderr, where those are apart."""
        self.wait(timeout)
        return self.output, self._read("err")

    @property
    def output(self) -> str:
        """What it has written to stdout so far."""
        return self._read("out")

    def send_signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """Forks processes; the one that they are forked from starts with the first, and ends with this process."""

    def __init__(self, modules: tuple[str, ...], **variables: str):
        self._modules, self._variables = modules, variables
        self._server: subprocess.Popen | None = None

    def start(
        self, words: list[str], variables: dict[str, str], folder: str | Path, errors_apart: bool = False
    ) -> Started:
        """Start `python WORDS` in a folder with exactly these environment variables."""
        if self._server is None:
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            self._server = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("forking.py")), *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment | {"OMP_NUM_THREADS": "1"} | self._variables,
                cwd=tempfile.gettempdir(),
                text=True,
                bufsize=1,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
            )
        place = tempfile.TemporaryDirectory(prefix="started-")
        files = {name: str(Path(place.name, name)) for name in ("out", "err", "end")}
        Path(files["out"]).touch()
        if errors_apart:
            Path(files["err"]).touch()
        job = {"words": [*map(str, words)], "variables": variables, "folder": str(folder), **files}
        self._server.stdin.write(json.dumps(job if errors_apart else job | {"err": files["out"]}) + "\n")
        return Started(int(self._server.stdout.readline()), place)

    def close(self) -> None:
        """End the process that forks."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.stdout.close()
            self._server.wait()
            self._server = None
