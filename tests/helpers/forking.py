"""Starts Python commands in processes that it forks from itself, with the modules of its arguments imported.

`python forking.py MODULE ...` reads one job a line, and answers with the id of the process that does it. `Preloaded`
in preloaded.py talks to it.
"""

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback


LAUNCHER = "accelerate.commands.launch"


def run_command(words: list[str], variables: dict[str, str]) -> int:
    """Run the words of a command line after `python`, with exactly these variables; return the exit code."""
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    while words[0] == "-u":
        words = words[1:]
    code = 0
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            if words[1] == LAUNCHER:
                fork_commands()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
            if "examples" in words[0]:
                fork_commands()
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class ForkedCommand(subprocess.Popen):
    """A process that is forked where Popen would start this interpreter, and then runs the same command."""

    def __init__(self, *arguments, **settings):
        self._own_session = settings.get("start_new_session", False)
        super().__init__(*arguments, **settings)

    def _execute_child(self, args, *others):
        cwd, env, pipes = others[4], others[5], others[9:15]
        words = [] if isinstance(args, str) else [*map(str, args)]
        if words[:1] != [sys.executable] or set(pipes) != {-1}:
            super()._execute_child(args, *others)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            if self._own_session:
                os.setsid()
            os.chdir(cwd or ".")
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # launchers handle them
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os._exit(run_command(words[1:], dict(os.environ if env is None else env)))
        self._child_created = True


def fork_commands() -> None:
    """Let this process, a launcher or an example, fork the commands that it starts."""
    subprocess.Popen = ForkedCommand
    module = importlib.import_module("torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler")
    module.Popen = ForkedCommand


def do(job: dict) -> int:
    """Become the process of a job."""
    os.setsid()
    files = ((os.devnull, os.O_RDONLY), (job["out"], os.O_WRONLY), (job["err"], os.O_WRONLY))
    for number, (path, flags) in enumerate(files):
        file = os.open(path, flags | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.chdir(job["folder"])
    return run_command(job["words"], job["variables"])


def main() -> None:
    """Fork for each job a process that waits for the one that does it, and writes down how that ended."""
    sys.path.pop(0)  # the folder of this file
    for name in sys.argv[1:]:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for the ends of those that wait
    for line in sys.stdin:
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        job = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(do(job))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(job["end"], "w") as file:
            file.write(f"{code}\n")
        os._exit(0)


if __name__ == "__main__":
    main()
