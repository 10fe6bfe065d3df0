"""Faults of processes: killed, too many, forked, out of memory or descriptors, interrupted; and clocks that jump."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import ROUNDS, WITHIN, Flow, Record, ended, killed, on_hook, script
from live_lab import audited, wait_for

import afxdp_pool as ap
from afxdp_pool import hook as xdp
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab

#: Forwards until it is killed, or told to stop; then the number of frames that are not at home. First it says when the
#: interpreter had started, and when the imports were done, by the clock and by its CPU time, which does not depend on
#: who else uses the machine; and its CPU time when all was open.
FORWARD = """
import time; clock = [time.monotonic(), time.process_time()]
import sys, signal, afxdp_pool as ap
ap.forward; clock += [time.monotonic(), time.process_time()]
source, target, netns = sys.argv[1:4]
options = ap.Options(netns=netns, frames=8192, gro_flush_timeout=20_000, napi_defer_hard_irqs=2)
engine = ap.forward(source, target, options=options)
signal.signal(signal.SIGTERM, lambda *_: engine.stop())
print(*clock, time.process_time(), flush=True)
engine.run()
engine.audit().check()
umem = engine.umem
for port in engine.ports: port.close()
for pool in engine.pools: pool.close()
print(umem.frames - umem.audit().check(idle=True).umem)
engine.close()
"""


def forwarding(flow: Flow, **more: object) -> subprocess.Popen[str]:
    return script(FORWARD, flow.left.near.name, flow.right.near.name, flow.lab.engine_netns, **more)


@pytest.mark.timeout(60 + 5 * ROUNDS)
def test_killed_at_random_moments(flow: Flow, record: Record) -> None:
    """Also while it starts. The seconds are from the start of the next process to its packets at the far end.

    The device's NAPI values, which it changes, are as before in the end: see `left_behind`.
    """
    chance = random.Random(7)
    flow.source.start(rate=20_000, seconds=60 + 5 * ROUNDS)
    for _ in range(ROUNDS):
        process = forwarding(flow)
        record.pids.add(process.pid)
        time.sleep(chance.uniform(0, 1.5))
        killed(process)
        began = time.monotonic()
        process = forwarding(flow)
        record.pids.add(process.pid)
        flow.flows()
        flowing = time.monotonic()
        record.tried(flowing - began)
        assert process.stdout is not None
        started, started_cpu, imported, imported_cpu, open_cpu = map(float, process.stdout.readline().split())
        record.took(
            interpreter=started - began,
            imports=imported - started,
            engine=flowing - imported,
            cpu_interpreter=started_cpu,
            cpu_imports=imported_cpu - started_cpu,
            cpu_engine=open_cpu - imported_cpu,
        )
        killed(process)
    process = forwarding(flow)
    flow.flows()
    out, err = ended(process, signal.SIGTERM)
    assert process.returncode == 0, err
    record.lost += int(out.split()[-1])
    assert wait_for(lambda: on_hook(flow.left.near) is None, 5)
    flow.intact()
    record.of("killed (SIGKILL) at a random moment", "the kernel takes all back; a new process starts at once", "")


@pytest.mark.parametrize("attach", ["link", "libxdp"])
def test_several_starters_at_once(flow: Flow, record: Record, attach: str) -> None:
    """Let go at one moment, by the end of a pipe: one gets the device, the others are told by whom it is taken.

    Before the second start one was killed there.
    """
    text = (
        "import os, sys, afxdp_pool as ap\n"
        "start = ap.drop, ap.Options\n"
        "print('ready', flush=True); os.read(int(sys.argv[4]), 1)\n"
        "try:\n"
        "    with ap.drop(sys.argv[1], options=ap.Options(netns=sys.argv[2], attach=sys.argv[3])) as engine:\n"
        "        print('has it', flush=True); sys.stdin.readline(); engine.audit().check()\n"
        "except ap.AfXdpError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    arguments = flow.left.near.name, flow.lab.engine_netns, attach
    for _ in range(2):
        start, go = os.pipe()
        words = *arguments, str(start)
        starters = [script(text, *words, stdin=subprocess.PIPE, pass_fds=(start,)) for _ in range(4)]
        os.close(start)
        record.pids |= {process.pid for process in starters}
        try:
            assert [process.stdout.readline() for process in starters if process.stdout] == ["ready\n"] * 4
            os.close(go)
            first = [process.stdout.readline() for process in starters if process.stdout]
        finally:
            for process in starters:
                killed(process)
        assert sorted(line.split()[0] for line in first)[-1] == "has", first
        assert sum(line == "has it\n" for line in first) == 1, first
        assert all(line.split()[0] in ("has", "ProgramBusyError", "QueueBusyError") for line in first), first
        record.tried()
    ap.clean(flow.left.near.name, flow.lab.engine_netns)
    said = next(line for line in first if line != "has it\n").partition(" ")[2].strip()
    for gone in (f" in namespace {flow.lab.engine_netns}", *map(str, sorted(record.pids, reverse=True))):
        said = said.replace(gone, "" if "namespace" in gone else "N")
    record.of(f"several start at once ({attach})", "one has the device, the others are told who", said)


@pytest.mark.parametrize("how", ["detached", "replaced"])
def test_program_taken_off(flow: Flow, record: Record, how: str) -> None:
    for attach in ("link", "libxdp") if how == "detached" else ("libxdp",):
        flow.start(attach=attach)
        if record.tries == 0:
            flow.send()
        flow.flows()
        with in_netns(flow.lab.engine_netns):
            xdp.remove(xdp.look(flow.left.near.ifindex))
        if how == "replaced":
            other = ap.XdpProgram(flow.left.near.name, netns=flow.lab.engine_netns, rules=[ap.Rule(port=1)])
        error = flow.ended_by(ap.ProgramGoneError)
        if how == "replaced":
            assert on_hook(flow.left.near) is not None  # not ours to take off any more
            other.close()
        began = time.monotonic()
        flow.start()
        flow.flows()
        record.tried(time.monotonic() - began)
        flow.stopped()
    text = str(error).replace(f" in namespace {flow.lab.engine_netns}", "")
    record.of(f"XDP program {how} by somebody else", "ends the run within about a second", text)


def test_another_process_wants_the_queue(flow: Flow, record: Record) -> None:
    flow.start()
    flow.send()
    flow.flows()
    text = (
        "import sys, afxdp_pool as ap\n"
        "with ap.Umem(512) as umem, ap.FramePool(umem) as pool:\n"
        "    try:\n"
        "        ap.Port(pool, sys.argv[1], netns=sys.argv[2], config=ap.PortConfig(receive=False, bind_timeout=0.2,"
        " fill_level=64))\n"
        "    except ap.QueueBusyError as error:\n"
        "        print(error); umem.audit().check()\n"
    )
    for _ in range(3):
        process = script(text, flow.left.near.name, flow.lab.engine_netns)
        record.pids.add(process.pid)
        out, err = ended(process)
        assert "EBUSY" in out, err
        record.tried(flow.flows())
    flow.intact()
    flow.stopped()
    said = out.strip().replace(f" in namespace {flow.lab.engine_netns}", "")
    record.of("another process takes the queue", "is refused; the first goes on", said)


def test_two_engines_on_one_netdev(flow: Flow, record: Record) -> None:
    """Queue 0 and 1 of one device by two engines, each with a Umem of its own; one comes and goes."""
    flow.start()
    flow.send()
    flow.flows()
    for _ in range(5):
        with ap.drop(flow.left.near.name, options=flow.options(queues=(1,))) as second:
            second.start()
            record.tried(flow.flows())
            second.stop()
            second.join()
            audited(second)
    flow.flows()
    flow.intact()
    flow.stopped()
    record.of("two engines on one netdev, two queues", "share the XDP program; one ends, the other goes on", "")


def test_forked_without_exec(flow: Flow, record: Record) -> None:
    """Children that leave in the ordinary way, closing all; one that lives on when its parent is killed."""
    flow.start()
    flow.send()
    flow.flows()
    engine = flow.engine
    assert engine is not None
    for _ in range(10):
        child = os.fork()
        if child == 0:
            try:
                engine.close()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        record.tried(flow.flows())
    flow.intact()
    flow.stopped()
    lives_on = "import os, time\nif os.fork() == 0: time.sleep(20); os._exit(0)\nengine.run()"
    process = script(FORWARD.replace("engine.run()", lives_on),
                     flow.left.near.name, flow.right.near.name, flow.lab.engine_netns)  # fmt: skip
    flow.flows()
    process.kill()
    process.wait(WITHIN)
    assert wait_for(lambda: on_hook(flow.left.near) is None, 5)
    flow.start()
    record.tried(flow.flows())
    flow.stopped()
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    record.of(
        "fork without exec",
        "goes on; the child has nothing of it, and keeps nothing busy",
        "left-near queue 0: the port is closed",
    )


def test_signal_storm(flow: Flow, record: Record) -> None:
    """Two thousand a second, of a kind with a handler in Python, and of stopping and going on."""
    process = forwarding(flow)
    record.pids.add(process.pid)
    flow.send()
    flow.flows()
    text = (
        "import os, signal, sys, time\n"
        "pid, end = int(sys.argv[1]), time.monotonic() + 3\n"
        "while time.monotonic() < end:\n"
        "    for number in (signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG, signal.SIGSTOP, signal.SIGCONT):\n"
        "        os.kill(pid, number)\n"
        "    time.sleep(0.0005)\n"
    )
    storm = script(text, str(process.pid))
    record.tried(flow.flows())
    ended(storm)
    record.tried(flow.flows())
    out, err = ended(process, signal.SIGTERM)
    assert process.returncode == 0, err
    record.lost += int(out.split()[-1])
    flow.intact()
    record.of("signal storm", "goes on", "")


@pytest.mark.parametrize("what", ["address space", "locked memory", "descriptors"])
def test_nothing_to_be_had(lab: Lab, record: Record, what: str) -> None:
    """Every limit from too low for anything to just enough: a named error, and nothing left, or it runs."""
    pair = lab.veth("a")
    text = """
import os, resource, sys, ctypes
import afxdp_pool as ap
from afxdp_pool.netdev import find
what, values = sys.argv[3], [int(word) for word in sys.argv[4:]]
netns = open("/run/netns/" + sys.argv[2])
assert ctypes.CDLL(None).setns(netns.fileno(), 0) == 0
netns.close()
find(sys.argv[1])
few = ap.Options(frames=512, port=ap.PortConfig(fill_level=256))
with ap.drop(sys.argv[1], options=few) as engine: engine.run(duration=0.01)
kinds = {"address space": "AS", "locked memory": "MEMLOCK", "descriptors": "NOFILE"}
kind = getattr(resource, "RLIMIT_" + kinds[what])
if what == "locked memory":
    head = (ctypes.c_uint32 * 2)(0x20080522, 0); data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(head, data) == 0
    data[0] &= ~(1 << 14)
    assert libc.capset(head, data) == 0
now = {"address space": resource.getpagesize() * int(open("/proc/self/statm").read().split()[0])}
now["descriptors"] = len(os.listdir("/proc/self/fd"))
base = now.get(what, 0)
hard = resource.getrlimit(kind)[1]
for value in values:
    before = sorted(os.listdir("/proc/self/fd"))
    resource.setrlimit(kind, (base + value, hard))
    try:
        with ap.drop(sys.argv[1], options=few) as engine:
            engine.run(duration=0.01); engine.audit().check()
        said = "ran"
    except (ap.AfXdpError, MemoryError) as error:
        said = f"{type(error).__name__} {error}"
    except BaseException as error:
        said = f"BARE {type(error).__name__} {error}"
    resource.setrlimit(kind, (hard, hard))
    assert sorted(os.listdir("/proc/self/fd")) == before
    print(said.splitlines()[0])
with ap.drop(sys.argv[1], options=few) as engine: engine.run(duration=0.01); engine.audit().check()
print("ran")
"""
    values = {
        "address space": [0, 1 << 20, 8 << 20, 32 << 20],
        "locked memory": [0, 1 << 16, 1 << 20, 4 << 20],
        "descriptors": list(range(1, 24)),
    }[what]
    process = script(text, pair.near.name, lab.engine_netns, what, *map(str, values))
    record.pids.add(process.pid)
    out, err = ended(process)
    assert process.returncode == 0, out + err
    said = out.splitlines()
    assert len(said) == len(values) + 1
    assert [line for line in said if line.startswith("BARE")] == []
    assert said[-1] == "ran"
    assert any(line != "ran" for line in said)
    for _ in values:
        record.tried()
    reads = next(line for line in said if line.startswith(("MemoryLimitError", "AfXdpError")))
    does = "a named error, nothing left; with more it runs"
    record.of(f"no {what}" if what != "descriptors" else "no file descriptors", does, reads.partition(" ")[2])


@contextlib.contextmanager
def memory_group() -> Iterator[tuple[Path, str]]:
    """A memory cgroup, of version 2 or 1, and the name of its limit. The machine's own are not touched."""
    for base, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(base, f"afxdp-pool-fault-{os.getpid()}")
        if not Path(base, "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                yield group, limit
                return
        finally:
            group.rmdir()
    pytest.skip("this kernel lets us make no memory cgroup")


def test_no_memory_left(flow: Flow, record: Record) -> None:
    """A process that may have only so much memory more than it has: a named error, or the kernel kills it."""
    text = """
import os, sys
from pathlib import Path
import afxdp_pool as ap
source, netns, group, limit, more = sys.argv[1:]
options = ap.Options(netns=netns, frames=8192)
ap.drop(source, options=ap.Options(netns=netns, frames=512, port=ap.PortConfig(fill_level=256))).close()
Path(group, "cgroup.procs").write_text(str(os.getpid()))
now = Path(group, "memory.current" if limit == "memory.max" else "memory.usage_in_bytes")
Path(group, limit).write_text(str(int(now.read_text()) + int(more)))
try:
    with ap.drop(source, options=options) as engine: engine.run(duration=0.01); engine.audit().check()
    print("ran")
except (ap.AfXdpError, MemoryError) as error:
    print(type(error).__name__, error)
"""
    flow.send()
    said = []
    with memory_group() as (group, limit):
        for more in (0, 1 << 20, 16 << 20, 128 << 20):
            process = script(text, flow.left.near.name, flow.lab.engine_netns, str(group), limit, str(more))
            record.pids.add(process.pid)
            out, err = ended(process)
            assert process.returncode in (0, -signal.SIGKILL), err
            said.append(out.strip() if process.returncode == 0 else "killed")
            (group / limit).write_text("max" if limit == "memory.max" else "-1")
            assert wait_for(lambda: on_hook(flow.left.near) is None)
            record.tried()
    assert said[-1] == "ran"
    assert set(said) - {"ran"}
    process = forwarding(flow)
    record.pids.add(process.pid)
    record.seconds.append(flow.flows())
    out, err = ended(process, signal.SIGTERM)
    record.lost += int(out.split()[-1])
    reads = next((line.partition(" ")[2] for line in said if line not in ("ran", "killed")), "Killed")
    record.of("no memory (cgroup)", "a named error, or the kernel kills it; nothing left; the next starts", reads)


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
/* The wall clock jumps a day forth or back at every look. */
static int day(void) { static unsigned n; return (int)(__atomic_add_fetch(&n, 1, __ATOMIC_RELAXED) % 3 - 1) * 86400; }
int clock_gettime(clockid_t which, struct timespec *ts)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	int r = real(which, ts);
	if (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE) ts->tv_sec += day();
	return r;
}
int gettimeofday(struct timeval *tv, void *tz)
{
	struct timespec ts;
	(void)tz;
	clock_gettime(CLOCK_REALTIME, &ts);
	tv->tv_sec = ts.tv_sec; tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}
time_t time(time_t *t)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	if (t) *t = ts.tv_sec;
	return ts.tv_sec;
}
"""


def test_clock_jumps(flow: Flow, record: Record, tmp_path: Path) -> None:
    """The wall clock of one process jumps by days; runs last as long as they should, and packets flow."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None
    library = tmp_path / "clock.so"
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library)}
    jumps = subprocess.run(
        [sys.executable, "-c", "import time; print(max(abs(time.time() - time.time()) for _ in range(9)))"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(jumps.stdout) > 80_000
    flow.send()
    command = [sys.executable, "-m", "afxdp_pool.cli", "forward", "-i", flow.left.near.name, "-o", flow.right.near.name]
    for _ in range(3):
        process = subprocess.Popen(
            [*command, "--netns", flow.lab.engine_netns, "--duration", "2", "--json", "--quiet"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        record.pids.add(process.pid)
        record.tried(flow.flows())
        out, err = ended(process)
        assert process.returncode == 0, err
        document = json.loads(out)
        assert 1.9 < document["seconds"] < 3
        assert document["audit"]["ok"]
        assert document["received"] > 1000
    flow.intact()
    record.of("wall clock jumps by days", "goes on, and lasts as long as it should: all clocks are monotonic", "")
