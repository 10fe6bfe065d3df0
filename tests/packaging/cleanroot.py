"""Root directories of a Debian with nothing on it but what a test says, and commands inside them.

Made with debootstrap from the mirror that this machine's apt uses, once, and kept in the cache directory. A root in use
is read-only but for /mnt, which is a directory of the test.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PYTHON = ("python3", "python3-venv")
#: Of each release, the version of its Python.
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
MACHINE = os.uname().machine
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afxdp_pool"
# The mounts are made where only this command sees them, and go when it ends, however it ends.
_INSIDE = """
set -e
root=$1 work=$2 mode=$3; shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o "remount,bind,$mode" "$root"
mount --bind "$work" "$root/mnt"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root/dev/shm" "$root/dev/pts" "$root/dev/net"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for node in null zero full random urandom tty net/tun; do
	[ ! -e "/dev/$node" ] || { : > "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; }
done
cd "$root"
# Not chroot: who enters this mount namespace later would find himself in the machine's own root.
pivot_root . .
umount -l .
cd /
exec "$@"
"""


def lacking() -> str:
    """Why no root can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root, to make and enter a root directory"
    if shutil.which("debootstrap") is None:
        return "needs debootstrap (apt-get install debootstrap)"
    if not mirror():
        return "apt on this machine has no Debian mirror; name one in AFXDP_DEBIAN_MIRROR"
    return ""


def mirror() -> str:
    """The Debian mirror that apt uses here, or that the environment names."""
    if "AFXDP_DEBIAN_MIRROR" in os.environ or shutil.which("apt-get") is None:
        return os.environ.get("AFXDP_DEBIAN_MIRROR", "")
    command = [
        "apt-get",
        "indextargets",
        "--format",
        "$(ORIGIN) $(REPO_URI)",
        "Created-By: Packages",
        "Component: main",
    ]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
    repositories = [line.partition(" ")[2] for line in listed if line.startswith("Debian ")]
    return min(repositories, key=len, default="")  # the archive itself, not its security part


def debian(*packages: str, suite: str = "trixie") -> Path:
    """A minimal Debian with Python, its venv, and `packages`; kept for the next time. Not to be written to."""
    name = hashlib.sha256(" ".join((suite, *PYTHON, *sorted(packages))).encode()).hexdigest()[:12]
    root, unfinished = CACHE / f"{suite}-{name}", CACHE / f"{suite}-{name}.new"
    base = debian(suite=suite) if packages else None
    with _alone(root):
        if root.exists():
            return root
        shutil.rmtree(unfinished, ignore_errors=True)
        if base is None:
            _run("debootstrap", "--variant=minbase", f"--include={','.join(PYTHON)}", suite, unfinished, mirror())
        else:
            _run("cp", "--archive", "--reflink=auto", base, unfinished)
            apt = ("apt-get", "-q", "-y", "--no-install-recommends", "-o", "APT::Sandbox::User=root")
            with tempfile.TemporaryDirectory() as work:
                _enter(unfinished, Path(work), "rw", *apt, "update")
                _enter(
                    unfinished, Path(work), "rw", "env", "DEBIAN_FRONTEND=noninteractive", *apt, "install", *packages
                )
        for archive in (unfinished / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        unfinished.rename(root)
    return root


def wheels(*requirements: str, suite: str = "trixie") -> Path:
    """Wheels of these packages and what they need, for the Python of a Debian; fetched once."""
    python = RELEASES[suite]
    name = hashlib.sha256(" ".join(sorted(requirements)).encode()).hexdigest()[:12]
    kept = CACHE / f"wheels-{python}-{MACHINE}-{name}"
    with _alone(kept):
        if not kept.exists():
            unfinished = kept.with_name(f"{kept.name}.new")
            shutil.rmtree(unfinished, ignore_errors=True)
            platforms = [f"--platform={tag}_{MACHINE}" for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux2014")]
            download = ("-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", unfinished)
            _run(sys.executable, *download, f"--python-version={python}", *platforms, *requirements)
            unfinished.rename(kept)
    return kept


def run_in(root: Path, work: Path, *command: str) -> str:
    """Run a command in `root`, where `work` is /mnt and the working directory; what it printed.

    The kernel is this machine's, and so is the network; nothing of this process's environment is there.
    """
    return _enter(root, work, "ro", *command)


def inside(root: Path, work: Path, mode: str, *command: str, apart: bool = False) -> list[str | Path]:
    """The command that runs `command` as `run_in` does.

    With `apart` it sees no network device but its own loopback, and no process but its own, which end with it.
    """
    environment = ("HOME=/mnt", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "PIP_NO_CACHE_DIR=1")
    spaces = ("--mount", "--net", "--pid", "--fork", "--kill-child") if apart else ("--mount",)
    return ["unshare", *spaces, "sh", "-c", _INSIDE, "sh", root, work, mode,
            "env", "-i", "-C", "/mnt", *environment, *command]  # fmt: skip


def _enter(root: Path, work: Path, mode: str, *command: str) -> str:
    return _run(*inside(root, work, mode, *command))


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"{command[0]}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else makes `path` meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
