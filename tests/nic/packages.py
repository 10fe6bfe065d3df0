"""QEMU and a kernel from Debian's packages, unpacked into a cache: nothing is installed on the machine.

The machine's own apt is asked for where its packages come from and by what key they are signed; a private apt state
beside it adds the backports that have a QEMU with the igb NIC (8 or newer) and a kernel whose drivers do zero-copy
(igb: 6.14, virtio_net: 6.13). apt verifies what it fetches.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Where each release of Debian finds them.
QEMU_SUITE = {"bookworm": "bookworm-backports"}
KERNEL_SUITE = "trixie-backports"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BUSYBOX, QEMU, KERNEL = "busybox-static", "qemu-system-x86", "linux-image-amd64"


class Missing(Exception):
    """What cannot be had here, in a sentence that says why."""


@dataclass(frozen=True)
class Machine:
    """The parts of a machine.

    Attributes:
        qemu: command and arguments that start QEMU.
        kernel: folder of a kernel's modules; the kernel itself is `vmlinuz` in it, or beside it in /boot.
        busybox: a statically linked busybox.
    """

    qemu: tuple[str, ...]
    kernel: Path
    vmlinuz: Path
    busybox: Path
    library_path: str = ""


def cache() -> Path:
    """Where unpacked packages are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "afxdp-pool" / "nic"


def get_machine() -> Machine:
    """Unpack what is not there yet.

    Raises:
        Missing: no apt, no network, or a distribution whose packages are not known here.
    """
    if os.uname().machine != "x86_64":
        raise Missing(f"the guest is an x86_64 machine, and this is {os.uname().machine}")
    root = cache()
    done = root / "complete"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        _unpack(root)
        done.touch()
    libraries = [str(root / "root" / part / "x86_64-linux-gnu") for part in ("lib", "usr/lib")]
    share = root / "root" / "usr"
    folders = ("share/qemu", "share/seabios", "lib/ipxe/qemu")
    search = [argument for folder in folders for argument in ("-L", str(share / folder))]
    modules = sorted((root / "root").glob("**/lib/modules/*"))
    if not modules:
        raise Missing("the kernel's package has no modules")
    kernel = modules[-1]
    images = [kernel / "vmlinuz", root / "root" / "boot" / f"vmlinuz-{kernel.name}"]
    return Machine(
        (str(share / "bin" / "qemu-system-x86_64"), *search),
        kernel,
        next(image for image in images if image.exists()),
        next(path for path in (root / "root" / "bin" / "busybox", share / "bin" / "busybox") if path.exists()),
        ":".join(libraries),
    )


def _unpack(root: Path) -> None:
    apt = _Apt(root / "apt")
    apt.run("update")
    image = apt.ask("apt-cache", "show", KERNEL, "--no-all-versions")
    version = re.search(r"linux-image-(\d[^\s,)]*-amd64)", image)
    if version is None:
        raise Missing(f"the package {KERNEL} names no kernel")
    # Newer kernels come in parts: the image without the dependencies of a boot from disk.
    known = set(apt.ask("apt-cache", "pkgnames", "linux-").split())
    parts = [f"linux-{part}-{version[1]}" for part in ("binary", "modules")]
    kernel = [part for part in parts if part in known] or [f"linux-image-{version[1]}"]
    needed = apt.ask("apt-get", "install", "--print-uris", "-qq", "--no-install-recommends", QEMU)
    names = [re.sub(r"_.*", "", line.split()[1]) for line in needed.splitlines() if line.startswith("'")]
    debs = root / "debs"
    debs.mkdir()
    apt.run("download", *dict.fromkeys([*names, QEMU, BUSYBOX, *kernel]), cwd=debs)
    for deb in debs.glob("*.deb"):
        _call(["dpkg-deb", "-x", str(deb), str(root / "root")])
    shutil.rmtree(debs)


class _Apt:
    """apt with sources and lists of its own; the machine's are read, never changed."""

    def __init__(self, state: Path) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise Missing("QEMU and the kernel come from Debian's packages, and there is no apt here")
        (state / "lists" / "partial").mkdir(parents=True)
        (state / "archives" / "partial").mkdir(parents=True)
        (state / "sources.list").write_text("\n".join(_sources()) + "\n")
        (state / "preferences").write_text(
            f"Package: *\nPin: release n={KERNEL_SUITE}\nPin-Priority: 10\n\n"
            f"Package: {KERNEL}\nPin: release n={KERNEL_SUITE}\nPin-Priority: 990\n\n"
            "Package: *\nPin: release n=*-backports\nPin-Priority: 980\n"
        )
        self._options = [
            f"-oDir::Etc::SourceList={state / 'sources.list'}",
            "-oDir::Etc::SourceParts=-",
            f"-oDir::Etc::Preferences={state / 'preferences'}",
            "-oDir::Etc::PreferencesParts=-",
            f"-oDir::State::Lists={state / 'lists'}",
            f"-oDir::Cache={state}",
            f"-oDir::Cache::Archives={state / 'archives'}",
            "-oAPT::Sandbox::User=root",
            "-oDebug::NoLocking=1",
        ]

    def run(self, *command: str, cwd: Path | None = None) -> None:
        """apt-get, quietly."""
        _call(["apt-get", *self._options, "-qq", *command], cwd)

    def ask(self, program: str, *arguments: str) -> str:
        """What apt-get or apt-cache prints."""
        return _call([program, *self._options, *arguments])


def _sources() -> Iterable[str]:
    """Lines of a sources.list: Debian's main archive as this machine reaches it, with the backports."""
    form = "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)"
    signed = f"[signed-by={KEYRING}] " if Path(KEYRING).exists() else ""
    listed = _call(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    for line in listed.splitlines():
        origin, component, codename, uri = line.split("|")
        if origin != "Debian" or component != "main" or not codename.isalpha():
            continue
        for suite in dict.fromkeys((codename, QEMU_SUITE.get(codename, codename), KERNEL_SUITE)):
            yield f"deb {signed}{uri} {suite} main"
        return
    raise Missing("this machine's apt has no Debian archive, from which QEMU and the kernel come")


def _call(command: list[str], cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        why = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Missing(f"{command[0]} {command[-1]} failed: {why[-1] if why else done.returncode}")
    return done.stdout
