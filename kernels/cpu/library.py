"""Compiled kernels: from the cache on disk, or compiled by `native.build` into it, and loaded into this process.

Numba is used only by the processes that compile; a warm start reads object files and links them, which takes
milliseconds.
"""

import contextlib
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm
import platformdirs

from vllm_nb.kernels.cpu.isa import Isa

Progress = Callable[[str, int, int], None]  # (what is done, kernels ready, kernels wanted)

COMPILERS = 2  # processes that share the first compilation
_HERE = Path(__file__).parent
_ENGINES: list[llvm.ExecutionEngine] = []  # own the loaded code; kept for the life of the process


class CompileError(RuntimeError):
    """Compiling the kernels failed; the message carries the compiler's last words."""


def cache_folder(isa: Isa) -> Path:
    """Where compiled kernels lie: one folder for each state of our sources, compiler, processor and variant."""
    key = hashlib.sha256()
    for source in sorted([*_HERE.glob("*.py"), *_HERE.glob("native/*.py")]):
        key.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    processor = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    key.update("\0".join([version("numba"), version("llvmlite"), *processor, isa.name]).encode())
    return _writable_root() / key.hexdigest()[:24]


def _writable_root() -> Path:
    """The user's cache folder, or a temporary one where that cannot be written."""
    root = Path(platformdirs.user_cache_dir("vllm_nb", appauthor=False), "cpu-kernels")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError:
        return _private_temporary()


def _private_temporary() -> Path:
    """A temporary folder that nobody else can put native code into: ours from before, or a new one."""
    folder = Path(tempfile.gettempdir(), f"vllm_nb-cpu-kernels-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="vllm_nb-cpu-kernels-"))


class Library:
    """The kernels of one variant, loaded on demand."""

    def __init__(self, isa: Isa):
        self.isa = isa
        self.folder = cache_folder(isa)
        self._addresses: dict[str, int] = {}
        self._lock = threading.Lock()

    def address(self, name: str) -> int:
        """The kernel's address; compiles and loads it if need be."""
        if name not in self._addresses:
            self.load([name])
        return self._addresses[name]

    def load(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Make kernels ready to run. progress: told of each kernel that had to be compiled."""
        with self._lock:
            wanted = [name for name in dict.fromkeys(names) if name not in self._addresses]
            if not wanted:
                return
            missing = [name for name in wanted if not self._file(name).exists()]
            if missing:
                _compile(self.isa, self.folder, missing, progress)
            self._addresses |= _link({name: self._file(name).read_bytes() for name in wanted})

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.o"


def _link(objects: dict[str, bytes]) -> dict[str, int]:
    """Object files -> the addresses of their entry points."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for data in objects.values():
        engine.add_object_file(llvm.ObjectFileRef.from_data(data))
    engine.finalize_object()
    _ENGINES.append(engine)
    return {name: engine.get_function_address(name) for name in objects}


def _compile(isa: Isa, folder: Path, names: Sequence[str], progress: Progress | None) -> None:
    """Compile kernels into `folder`, in as many processes as pay."""
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    lock = threading.Lock()

    def report(amount: int) -> None:
        nonlocal done
        with lock:
            done += amount
            if progress:
                progress("Compiling CPU kernels (first run only)", done, len(names))

    report(0)
    failures: list[str] = []
    followers = [
        threading.Thread(target=_follow_compiler, args=(isa, folder, names[n::COMPILERS], report, failures))
        for n in range(min(COMPILERS, len(names)))
    ]
    for follower in followers:
        follower.start()
    for follower in followers:
        follower.join()
    if failures:
        raise CompileError(f"compiling the CPU kernels ({isa.name}) failed:\n{failures[0].strip()}")


def _follow_compiler(
    isa: Isa, folder: Path, names: Sequence[str], report: Callable[[int], None], failures: list[str]
) -> None:
    """Run one compiler process; it prints a line for each kernel done. -P: the user's files are no modules of it."""
    command = [sys.executable, "-P", "-m", f"{__package__}.native.build", isa.name, str(folder), *names]
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        except OSError as error:
            failures.append(f"{command[0]}: {error}")
            return
        assert process.stdout is not None
        for _ in process.stdout:
            report(1)
        if process.wait() != 0:
            errors.seek(0)
            failures.append(errors.read()[-2000:])
