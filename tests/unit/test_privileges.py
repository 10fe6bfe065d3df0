"""What a process gives up is gone in all its threads, for good. Each test in a process of its own."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import textwrap
import threading

import pytest

from afxdp_pool import ConfigError
from afxdp_pool.privileges import become, held, unprivileged_maps

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root has something to give up")


def run(body: str, *before: str, threads: int = 1) -> str:
    """What a program prints that has one thread, or what numpy starts by itself."""
    environment = dict(os.environ)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(threads)
    start = """
        import os, re, threading
        from pathlib import Path
        from afxdp_pool import privileges
        def status(field):
            found = set()
            for thread in os.listdir("/proc/self/task"):
                text = Path("/proc/self/task", thread, "status").read_text()
                found.add(re.search(rf"^{field}:\\\\s*(.*)$", text, re.MULTILINE)[1])
            return sorted(found)
    """.replace("\\\\", "\\")
    program = textwrap.dedent(start) + textwrap.dedent(body)
    done = subprocess.run(
        [*before, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@as_root
@pytest.mark.parametrize(("keep", "mask"), [((), 0), (("CAP_NET_RAW", "CAP_BPF"), 1 << 13 | 1 << 39)])
def test_capabilities_are_given_up(keep: tuple[str, ...], mask: int) -> None:
    said = run(f"""
        privileges.limit({keep!r})
        for field in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs", "Uid"):
            print(field, status(field))
    """)
    zero = f"['{0:016x}']"
    kept = f"['{mask:016x}']"
    expected = {"CapEff": kept, "CapPrm": kept, "CapBnd": kept, "CapInh": zero, "CapAmb": zero, "NoNewPrivs": "['1']"}
    for field, value in expected.items():
        assert f"{field} {value}\n" in said


@as_root
def test_another_thread_that_keeps_them_is_an_error() -> None:
    said = run("""
        done = threading.Event()
        other = threading.Thread(target=done.wait)
        other.start()
        try:
            privileges.limit()
        except privileges.PrivilegeError as error:
            print(error)
        done.set()
        other.join()
        privileges.limit()
        print(status("CapEff"))
    """)
    assert "keeps capabilities" in said
    assert "OPENBLAS_NUM_THREADS=1" in said
    assert said.endswith("['0000000000000000']\n")


@as_root
@pytest.mark.parametrize(("keep", "left"), [((), []), (("CAP_NET_ADMIN",), [12])])
def test_becoming_somebody_is_for_all_threads(keep: tuple[str, ...], left: list[int]) -> None:
    """Threads that were there before have nothing left, whatever the one that calls keeps."""
    said = run(
        f"""
        done = threading.Event()
        other = threading.Thread(target=done.wait)
        other.start()
        privileges.become("nobody", {keep!r})
        print(status("Uid"), os.getgroups(), sorted(privileges.held()), sorted(privileges.held(thread=other.native_id)))
        try:
            os.setuid(0)
        except PermissionError:
            print("for good")
        done.set()
        """,
        threads=2,
    )
    entry = pwd.getpwnam("nobody")
    uids = "\\t".join([str(entry.pw_uid)] * 4)
    groups = sorted(os.getgrouplist("nobody", entry.pw_gid))
    assert said == f"['{uids}'] {groups} {left} []\nfor good\n"


@as_root
def test_a_number_without_a_name_is_a_user_too() -> None:
    assert run("privileges.become('64321'); print(os.getresuid(), os.getresgid(), os.getgroups())") == (
        "(64321, 64321, 64321) (64321, 64321, 64321) []\n"
    )


@as_root
def test_an_ordinary_user_cannot_become_another() -> None:
    said = run(
        """
        try:
            privileges.become("64322")
        except privileges.PrivilegeError as error:
            print(error)
        """,
        *("setpriv", "--reuid=64321", "--regid=64321", "--clear-groups", "--bounding-set=-all"),
    )
    assert "user 64322: becoming it failed" in said
    assert "CAP_SETUID" in said


def test_root_and_nobody_in_particular_are_refused() -> None:
    with pytest.raises(ConfigError, match="root is no user without privileges"):
        become("root")
    with pytest.raises(ConfigError, match="there is no user"):
        become("nobody-of-that-name")


def test_what_is_held_is_read_from_the_kernel() -> None:
    assert held() == held(os.getpid()) == held(thread=threading.get_native_id())
    assert bool(held()) == (os.geteuid() == 0)
    assert unprivileged_maps() in (True, False)
