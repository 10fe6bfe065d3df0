"""The tests in another world of libraries: ``python tests/packaging/worlds.py trixie|bookworm [parts]``.

What `make test` runs, on the packages of that Debian alone: its libxdp and libbpf, its compilers, its Python. The
repository is copied in, built there without a network, and tested where no network device is in sight. What came of a
run of all parts goes to worlds.json, and as a table into docs/development.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cleanroot import CACHE, RELEASES, debian, inside, lacking, run_in, wheels

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS, PAGE = HERE / "worlds.json", ROOT / "docs" / "development.md"
BEGIN, END = "<!-- worlds -->", "<!-- /worlds -->"
#: What scripts/prepare.sh installs for the tests, and what makes the copy a checkout.
PACKAGES = (
    *("gcc", "g++", "libc6-dev", "clang", "libclang-rt-dev", "make", "git", "pkg-config", "libxdp-dev", "libbpf-dev"),
    *("python3-dev", "iproute2", "ethtool", "spin", "valgrind", "util-linux", "iputils-ping", "bind9-dnsutils"),
    "libdpdk-dev",  # a rival of the benchmarks
)
#: All of tests but what makes such roots itself, and what boots a guest.
PARTS = ("unit", "model", "native", "fuzz", "typing", "mutants", "veth", "fault", "soak", "conformance", "docs")
SHOWN = ("libxdp1", "libbpf1", "gcc", "clang", "python3")
SECONDS = 2 * 3600


def requirements(extra: str) -> Iterator[str]:
    """What the package needs with an extra, extras within it resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for one in project["dependencies"] if extra == "" else project["optional-dependencies"][extra]:
        within = re.match(r"afxdp-pool\[(.*)\]", one)
        if within is None:
            yield one
        for other in within[1].split(",") if within else ():
            yield from requirements(other)


def copy_repository(to: Path) -> None:
    """What git knows or would add, as it is now; what was built there before stays."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    wanted = {name for name in names if name and (ROOT / name).is_file()}
    known = to / ".copied"
    for name in set(known.read_text().split("\0")) - wanted if known.exists() else ():
        (to / name).unlink(missing_ok=True)
    for name in wanted:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name)
    known.write_text("\0".join(sorted(wanted)))


def build(root: Path, work: Path, suite: str) -> None:
    """A virtual environment with the package and what its tests need, from wheels alone."""
    needed = ("setuptools>=68", "wheel", *requirements(""), *requirements("dev"), *requirements("fuzz"))
    source = wheels(*needed, suite=suite)
    shutil.copytree(source, work / "wheels", dirs_exist_ok=True)
    if not (work / "venv").exists():
        run_in(root, work, "python3", "-m", "venv", "venv")
    offline = ("venv/bin/pip", "install", "--quiet", "--no-index", "--find-links", "/mnt/wheels")
    run_in(root, work, *offline, *needed)
    run_in(root, work, *offline, "--no-build-isolation", "--no-deps", "--editable", "/mnt/repository")


def test(root: Path, work: Path, arguments: Sequence[str]) -> float:
    """pytest, in there, with a loopback device of its own and no other; how many seconds it took."""
    command = (
        "ip link set lo up && /mnt/venv/bin/python -m pytest -p no:cacheprovider -v "
        '--ignore tests/unit/test_worlds_doc.py --junitxml=/mnt/report.xml -o junit_family=xunit1 "$@"; exit $?'
    )
    (work / "report.xml").unlink(missing_ok=True)
    shell = ("env", "-C", "/mnt/repository", "PYTHONDONTWRITEBYTECODE=1", "sh", "-c", command, "sh", *arguments)
    start = time.monotonic()
    subprocess.run(inside(root, work, "ro", *shell, apart=True), check=False, timeout=SECONDS)
    return time.monotonic() - start


def versions(root: Path, work: Path) -> dict[str, str]:
    """The packages' versions, without Debian's revision."""
    form = ("dpkg-query", "--show", "--showformat", "${Package} ${Version}\\n", *SHOWN)
    told = dict(line.split() for line in run_in(root, work, *form).splitlines())
    return {name: re.sub(r"^\d+:|[-+~].*", "", told[name]) for name in SHOWN}


def results(report: Path) -> dict[str, dict[str, Any]]:
    """Of each folder how many tests passed, which failed, and how many were skipped for which reason."""
    parts: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        folder, name = str(case.get("classname")).split(".")[1:2], f"{case.get('file')}::{case.get('name')}"
        if not str(case.get("classname")).startswith("tests."):
            continue
        part = parts.setdefault(folder[0], {"passed": 0, "failed": [], "skipped": {}})
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            part["failed"].append(name)
        elif "skipped" in kinds:
            why = str(next(case.iter("skipped")).get("message")).removeprefix("Skipped: ")
            part["skipped"][why] = part["skipped"].get(why, 0) + 1
        else:
            part["passed"] += 1
    return parts


def run_again(root: Path, work: Path, found: dict[str, dict[str, Any]]) -> None:
    """What failed is run a second time, by itself; what passes then is counted, and named as such."""
    failed = [name for part in found.values() for name in part["failed"]]
    if not failed:
        return
    test(root, work, failed)
    second = results(work / "report.xml")
    for name, part in found.items():
        still = set(second.get(name, {"failed": part["failed"]})["failed"])
        part["again"] = [one for one in part["failed"] if one not in still]
        part["failed"] = sorted(still)
        part["passed"] += len(part["again"])


def table(told: dict[str, Any]) -> str:
    """The worlds side by side."""
    names = sorted(told)
    rows = [["", *(f"Debian {told[name]['debian']}" for name in names)]]
    rows.append(["---"] * len(rows[0]))
    for package in SHOWN:
        rows.append([package.removesuffix("1"), *(told[name]["versions"][package] for name in names)])
    for part in PARTS:
        rows.append([f"`tests/{part}`", *(said(told[name]["parts"].get(part)) for name in names)])
    runs = [
        (f"one of {one['minutes']} minutes" if "minutes" in one else "in parts", one["date"])
        for one in (told[name] for name in names)
    ]
    rows.append(["run", *(", ".join(run) for run in runs)])
    rows.append(["Linux", *(told[name]["kernel"] for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def said(part: dict[str, Any] | None) -> str:
    """One part in a few words."""
    if part is None:
        return "not run"
    counts = {
        "passed": part["passed"],
        "of them when run again": len(part.get("again", ())),
        "failed": len(part["failed"]),
        "skipped": sum(part["skipped"].values()),
    }
    return ", ".join(f"{count} {how}" for how, count in counts.items() if count)


def written(page: str, told: dict[str, Any]) -> str:
    """The page with the table between its marks."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{table(told)}\n\n{END}", page, flags=re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    """Build and test; what all parts gave in one run is written down, what some gave is only shown."""
    if not arguments or arguments[0] not in RELEASES:
        print(f"say which Debian: {' or '.join(RELEASES)}")
        return 2
    reason = lacking()
    if reason:
        print(f"tests/packaging/worlds.py: skipped: {reason}")
        return 0
    suite, chosen = arguments[0], arguments[1:] or PARTS
    root = debian(*PACKAGES, suite=suite)
    work = CACHE / f"world-{suite}"
    (work / "repository").mkdir(parents=True, exist_ok=True)
    copy_repository(work / "repository")
    build(root, work, suite)
    seconds = test(root, work, [f"tests/{one}" if one in PARTS else one for one in chosen])
    if not (work / "report.xml").exists():
        print(f"{suite}: the tests did not come to their end")
        return 1
    found = results(work / "report.xml")
    run_again(root, work, found)
    if set(chosen) == set(PARTS):
        worlds = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        worlds[suite] = {
            "debian": (root / "etc" / "debian_version").read_text().strip(),
            "date": time.strftime("%Y-%m-%d"),
            "kernel": os.uname().release,
            "minutes": round(seconds / 60),
            "versions": versions(root, work),
            "parts": found,
        }
        RESULTS.write_text(json.dumps(worlds, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(written(PAGE.read_text(), worlds))
    return 1 if any(part["failed"] for part in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
