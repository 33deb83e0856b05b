"""Fork the tests' Python processes from this one, which has already imported the slow packages.

A rank spends six seconds on imports. `subprocess.Popen` can call a function in the forked child just before it executes
a program. Here that function runs the Python program itself and never returns, so pid, pipes, session, working
directory and exit code are those of an ordinary child. The child first resets the state that a new interpreter would
not have: modules of the package and the tests, signal handlers, open files, exit handlers, random generators. Programs
start normally in tests with the marker `cold`, and when the environment has variables that only a new interpreter
reads.
"""

import atexit
import faulthandler
import gc
import importlib
import logging
import os
import runpy
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

SLOW_PACKAGES = (
    "numpy", "torch", "torchvision", "timm", "PIL.Image", "safetensors.torch", "deepspeed", "ffcv",
    "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed imports them at a start
    "torch.distributed._functional_collectives", "torch.utils.flop_counter", "torch.utils.tensorboard", "tqdm", "fire",
    "hypothesis",  # pytest imports it at the end, when frozen objects would hide the references it looks for
)  # fmt: skip
OWN_PACKAGES = ("tests", "vitkd_ds", "benchmarks", "conftest")
READ_AT_START = ("LD_", "PYTHON", "HF_", "NUMBA_", "MKL_", "KMP_")
"""Prefixes of environment variables that only a new interpreter reads."""
RESET_BY_CHILD = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
DEFAULT_FILTERS = [
    ("default", None, DeprecationWarning, "__main__", 0),
    *(("ignore", None, category, None, 0) for category in (DeprecationWarning, PendingDeprecationWarning)),
    *(("ignore", None, category, None, 0) for category in (ImportWarning, ResourceWarning)),
]
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGHUP")

is_on = True
"""Whether child processes are forked warm; the marker `cold` turns this off for a test."""


class Program(NamedTuple):
    """Python program on a command line."""

    kind: str
    """-m, -c or file."""
    what: str
    """Module, code or path."""
    argv: list[str]


def install() -> None:
    """Start forking children warm, in this process and its children."""
    execute = getattr(subprocess.Popen.__init__, "cold", subprocess.Popen.__init__)  # set in a worker of pytest-xdist

    def start(self: subprocess.Popen, args: Any, *rest: Any, **options: Any) -> None:
        program = None if rest or isinstance(args, (str, bytes)) else warm_program(list(map(str, args)), options)
        if program is not None:
            preload()
            environ = dict(options.get("env") or os.environ)
            options["preexec_fn"] = lambda: _run(program, environ)
        execute(self, args, *rest, **options)

    start.cold = execute
    subprocess.Popen.__init__ = start


def warm_program(words: Sequence[str], options: Mapping[str, Any]) -> Program | None:
    """Return the Python program that a Popen call would start, or None if it must start cold."""
    own_ways = ("preexec_fn", "shell", "executable", "pass_fds", "user", "group")
    environ = options.get("env") or os.environ
    if not is_on or any(options.get(name) for name in own_ways) or _at_start(environ) != _at_start(os.environ):
        return None
    if "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        return None
    return parse(words, environ.get("PATH", os.defpath))


def parse(words: Sequence[str], path: str) -> Program | None:
    """Return the program that a command line runs with this interpreter, or None."""
    first, *rest = words
    first = shutil.which(first, path=path) or first
    if not _is_this_python(first):
        return Program("file", first, [first, *rest]) if _is_script(first) else None
    if rest[:1] == ["-u"]:
        rest = rest[1:]
    if rest[:1] in (["-m"], ["-c"]) and len(rest) > 1:
        return Program(rest[0], rest[1], ["-c" if rest[0] == "-c" else rest[1], *rest[2:]])
    return Program("file", rest[0], list(rest)) if rest and rest[0].endswith(".py") else None


def preload() -> None:
    """Import the slow packages once. Their output goes to the real streams, which children inherit."""
    if "ffcv" in sys.modules and gc.get_freeze_count():
        return
    with warnings.catch_warnings(), redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__):
        warnings.simplefilter("ignore")
        for name in SLOW_PACKAGES:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise a garbage collection in a child would copy every page


def _at_start(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environ.items() if name.startswith(READ_AT_START) and name not in RESET_BY_CHILD
    }


def _is_this_python(path: str) -> bool:
    return os.path.dirname(path) == os.path.dirname(sys.executable) and os.path.basename(path).startswith("python")


def _is_script(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.readline(256)
    except OSError:
        return False
    return start.startswith(b"#!") and _is_this_python(os.fsdecode(start[2:]).strip())


def _run(program: Program, environ: Mapping[str, str]) -> NoReturn:
    """Run a program in a forked child and exit as an interpreter would."""
    code = 1
    try:
        _reset(environ)
        _set_path(program, environ)
        code = _exit_code_of(program)
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            code = 120  # the interpreter's own code for this
        os._exit(code & 255)


def _reset(environ: Mapping[str, str]) -> None:
    _close_files()
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # Popen has reset both
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    faulthandler.disable()
    sys.excepthook = sys.__excepthook__  # torch adds a prefix per process group to every line
    atexit._clear()
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None
    _open_streams()
    warnings.filters[:] = DEFAULT_FILTERS
    warnings._filters_mutated()
    _reset_logging()
    _reset_multiprocessing()
    _reset_torch(environ)


def _open_streams() -> None:
    """Open stdin, stdout and stderr as a new interpreter does, also for log handlers of the slow packages."""
    sys.stdin = open(0, closefd=False)
    for name, number, buffering in (("stdout", 1, 1 if os.isatty(1) else -1), ("stderr", 2, 1)):
        before = getattr(sys, f"__{name}__")
        errors = "backslashreplace" if name == "stderr" else "strict"
        stream = open(number, "w", buffering=buffering, errors=errors, closefd=False)
        for handler in filter(None, [reference() for reference in logging._handlerList]):
            if vars(handler).get("stream") is before:
                handler.stream = stream
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _close_files() -> None:
    """Close the inherited files, such as the pipe on which Popen waits, but keep their descriptors in use.

    File objects inherited from the parent close their descriptors when they are collected; no new file may have those.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if 2 < int(name) != nothing:
            with suppress(OSError):  # the descriptor that listed this folder is closed by now
                os.fstat(int(name))
                os.dup2(nothing, int(name), inheritable=False)


def _reset_logging() -> None:
    from tqdm import tqdm

    tqdm._instances.clear()  # the parent's open progress bars
    logging.root.handlers[:] = []
    logging.root.setLevel(logging.WARNING)
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in OWN_PACKAGES]:
        del logging.root.manager.loggerDict[name]
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN_PACKAGES]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "AssertionRewritingHook"]


def _reset_multiprocessing() -> None:
    from multiprocessing import process, resource_tracker, util

    process._children.clear()
    util._finalizer_registry.clear()
    resource_tracker._resource_tracker._fd = None
    resource_tracker._resource_tracker._pid = None


def _reset_torch(environ: Mapping[str, str]) -> None:
    import numpy
    import torch

    torch.set_num_threads(int(environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    torch.set_grad_enabled(True)
    torch._dynamo.reset()  # otherwise sizes that varied in the parent would be dynamic in the child
    torch.seed()
    numpy.random.seed()


def _editable_installs() -> list[str]:
    """Return the folders that .pth files of installed packages add to the path."""
    files = [file for folder in site.getsitepackages() for file in Path(folder).glob("*.pth")]
    return [line for file in files for line in file.read_text().splitlines() if os.path.isdir(line)]


def _set_path(program: Program, environ: Mapping[str, str]) -> None:
    first = {"-m": os.getcwd(), "-c": "", "file": os.path.dirname(os.path.realpath(program.what))}[program.kind]
    own = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    prefixes = (sys.prefix, sys.base_prefix)
    installed = [path for path in sys.path if path.startswith(prefixes)] + _editable_installs()
    sys.path[:] = [first, *own, *(path for path in installed if path not in (first, *own))]
    sys.path_importer_cache.clear()
    sys.argv[:] = program.argv
    sys.dont_write_bytecode = bool(environ.get("PYTHONDONTWRITEBYTECODE"))


def _exit_code_of(program: Program) -> int:
    try:
        if program.kind == "-m":
            runpy.run_module(program.what, run_name="__main__", alter_sys=True)
        elif program.kind == "file":
            runpy.run_path(program.what, run_name="__main__")
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(program.what, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return int(ended.code or 0)
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0
