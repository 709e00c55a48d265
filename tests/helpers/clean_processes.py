"""Processes that run Python code and share nothing with the tests, forked from one that has imported torch.

Importing torch, its compiler and SciPy is most of the time in which a script with diffusers starts. They read nothing
of Hugging Face's variables, which each process gets before it imports diffusers.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


SERVER = """
import json, os, sys
import torch, torch._dynamo, torch.distributed.checkpoint
import httpx, jinja2, pandas, PIL.Image, psutil, scipy.optimize, scipy.stats, sympy, urllib3.util

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, job["out"], os.O_WRONLY), (2, job["err"], os.O_WRONLY)):
    file = os.open(path, flags)
    os.dup2(file, number)
    os.close(file)
sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
os.chdir(job["folder"])
os.environ.clear()
os.environ.update(job["variables"])
sys.argv = ["-c", *job["arguments"]]
sys.path[:0] = [path for path in job["variables"].get("PYTHONPATH", "").split(os.pathsep) if path]
exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
"""


class CleanProcesses:
    """Starts one after the other; the process that forks them starts with the first, and ends with `close`."""

    def __init__(self):
        self._server: subprocess.Popen | None = None

    def run(
        self, code: str, arguments: list[str], variables: dict[str, str], folder: Path, timeout: float
    ) -> subprocess.CompletedProcess:
        """Run code as `python -c` does, with exactly these environment variables."""
        if self._server is None:
            clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=clean | {"OMP_NUM_THREADS": "1"},
                cwd=tempfile.gettempdir(),
                text=True,
                bufsize=1,
            )
        with tempfile.TemporaryDirectory() as place:
            files = {name: Path(place, name) for name in ("out", "err")}
            for file in files.values():
                file.touch()
            job = {"code": code, "arguments": arguments, "variables": variables, "folder": str(folder)}
            self._server.stdin.write(json.dumps(job | {name: str(file) for name, file in files.items()}) + "\n")
            child = int(self._server.stdout.readline())
            if not select.select([self._server.stdout], [], [], timeout)[0]:
                os.killpg(child, signal.SIGKILL)
                self._server.stdout.readline()
                raise subprocess.TimeoutExpired("python -c", timeout, *(file.read_text() for file in files.values()))
            returncode = int(self._server.stdout.readline())
            return subprocess.CompletedProcess("python -c", returncode, *(file.read_text() for file in files.values()))

    def close(self) -> None:
        """End the process that forks; those that it forked have ended."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.stdout.close()
            self._server.wait()
