"""Where compiled GPU kernels live between runs.

On CUDA MLX compiles each fused kernel when it first meets it, one after the other, three to five
seconds each, and keeps it in the temporary directory. chuk gives it a folder that outlives the
machine's next start:

    CHUK_CACHE (default: chuk in the user's cache folder)/kernels/mlx-0.32.4-sm_90/NAME.ptx and .txt
                                                          running/PID-…/   one for each process

MLX writes in place and reads what is there, so a half-written file of one process would break
another. Each process therefore has a folder of its own, of links to the shared files, and what it
compiled is linked back when it is complete. The shared folder is bounded; the oldest kernels go.
`MLX_PTX_CACHE_DIR`, when it is set, is left alone."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "MLX_PTX_CACHE_DIR"
MOST_BYTES = 1 << 30
LONGEST_WAIT = 180
_ENDINGS = (".txt", ".ptx")  # in the order they are published: MLX asks for the second


@dataclass
class KernelCache:
    """The folder of a card and a version of MLX, and the one of this process; and who makes kernels
    for it."""

    shared: Path
    own: Path
    _maker: subprocess.Popen[bytes] | None = None

    @property
    def awaits(self) -> bool:
        """Whether a process makes kernels that `wait` would wait for."""
        return self._maker is not None and self._maker.poll() is None

    def have_made(self, command: Sequence[str], order: str) -> None:
        """Start a process that puts kernels into the shared folder, in the place of one that still
        does. What it says is nobody's business: a run needs none of them."""
        if self._maker is not None and self.awaits:
            self._maker.terminate()
            self._maker.wait()
        quiet = subprocess.DEVNULL if not os.environ.get("CHUK_DEBUG") else None
        try:
            self._maker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet
            )
            if self._maker.stdin is not None:
                self._maker.stdin.write(order.encode())
                self._maker.stdin.close()
        except OSError:
            self._maker = None

    def wait(self) -> None:
        """Wait for that process, at most `LONGEST_WAIT` seconds, and take over what it made."""
        if self._maker is None:
            return
        try:
            self._maker.wait(LONGEST_WAIT)
        except subprocess.TimeoutExpired:
            self._maker.terminate()
            self._maker.wait()
        self._maker = None
        self.fetch()

    @property
    def is_empty(self) -> bool:
        """Whether no kernel is kept for this card and this MLX."""
        return not any(self.shared.rglob("*.ptx"))

    def publish(self) -> None:
        """Link what this process compiled into the shared folder. Between two steps of a run MLX
        compiles nothing."""
        for name in _missing(self.own, self.shared):
            for ending in _ENDINGS:
                _link(self.own / (name + ending), self.shared / (name + ending))

    def modules(self) -> set[str]:
        """MLX's names of the kernels in the shared folder."""
        files = _files(self.shared)
        names = (name.removesuffix(".ptx") for name in files if name.endswith(".ptx"))
        return {name.replace(os.sep, "") for name in names if name + ".txt" in files}

    def put(self, name: str, stem: Path) -> None:
        """Link the kernel that lies at `stem` into the shared folder as the module `name`, where
        MLX put one of that name into the folder of this process, or else as a file of that name."""
        inside = name
        for path in self.own.rglob("*.ptx"):
            found = path.relative_to(self.own).with_suffix("")
            if "".join(found.parts) == name:
                inside = str(found)
        for ending in _ENDINGS:
            _link(Path(f"{stem}{ending}"), self.shared / f"{inside}{ending}")

    def find(self, name: str) -> tuple[dict[bytes, bytes], bytes] | None:
        """A kernel that MLX does not keep itself, by its file name: the compiled names of its C++
        names, and its image."""
        try:
            lines = (self.own / f"{name}.txt").read_bytes().splitlines()
            image = (self.own / f"{name}.ptx").read_bytes()
        except OSError:
            return None
        return dict(line.split(b"\t", 1) for line in lines if b"\t" in line), image

    def keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Have `write` put such a kernel into this process's folder, to be published."""
        with suppress(OSError):
            write(self.own / name)

    def fetch(self) -> None:
        """Link what others compiled meanwhile into the folder of this process."""
        for name in _missing(self.shared, self.own):
            for ending in _ENDINGS:
                _link(self.shared / (name + ending), self.own / (name + ending))

    def close(self) -> None:
        """Publish, and remove the folder of this process."""
        atexit.unregister(self.close)
        if self.awaits and self._maker is not None:
            self._maker.terminate()
        self.publish()
        shutil.rmtree(self.own, ignore_errors=True)
        prune(self.shared.parent, MOST_BYTES)


def cache_root() -> Path:
    """`CHUK_CACHE`, else `chuk` in the user's cache folder."""
    if given := os.environ.get("CHUK_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "chuk"


def open_cache(version: str, architecture: str) -> KernelCache | None:
    """Have MLX keep its kernels in chuk's folder from here on; it must not have compiled any yet.
    None when the user chose a folder, or where none can be made."""
    if os.environ.get(VARIABLE):
        return None
    kernels = cache_root() / "kernels"
    shared, running = kernels / f"mlx-{version}-{architecture}", kernels / "running"
    try:
        shared.mkdir(parents=True, exist_ok=True)
        running.mkdir(exist_ok=True)
        _remove_left_behind(running)
        own = running / f"{os.getpid()}-{secrets.token_hex(4)}"
        own.mkdir()
    except OSError:
        return None
    cache = KernelCache(shared, own)
    cache.fetch()
    os.environ[VARIABLE] = str(own)
    atexit.register(cache.close)
    return cache


def prune(kernels: Path, most: int) -> None:
    """Remove the oldest kernels until all of them take at most `most` bytes."""
    files = [(path, path.stat()) for path in _kernels(kernels)]
    total = sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda item: item[1].st_mtime):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        path.with_suffix(".txt").unlink(missing_ok=True)
        total -= stat.st_size


def _kernels(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("mlx-*/**/*.ptx") if path.is_file())


def _missing(source: Path, target: Path) -> list[str]:
    """Names of kernels that are complete in `source` and not in `target`; none when somebody
    removed the folder."""
    have, held = _files(source), _files(target)
    names = (name.removesuffix(".ptx") for name in have - held if name.endswith(".ptx"))
    return [name for name in names if name + ".txt" in have]


def _files(folder: Path) -> set[str]:
    """Paths of all files in a folder: MLX cuts a name that is too long for a file into folders."""
    return {
        os.path.relpath(os.path.join(at, name), folder)
        for at, _, names in os.walk(folder)
        for name in names
    }


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where there are no links. Whoever came first
    stays."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        beside = target.with_name(f".{secrets.token_hex(8)}")
        try:
            shutil.copyfile(source, beside)
            os.replace(beside, target)
        except OSError:
            beside.unlink(missing_ok=True)


def _remove_left_behind(running: Path) -> None:
    """Folders of processes that are no more."""
    for folder in running.iterdir():
        pid = folder.name.partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
