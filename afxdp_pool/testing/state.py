"""What a failed test looked like: rings, frames, counters and holders of a Umem, in text.

A `Witness` owns the texts it took of Umems that a failing ``with`` was about to close. Invariant: taking them moves no
frame of a pool that another thread is running, and raises nothing.
"""

from __future__ import annotations

import re
import threading
from dataclasses import asdict, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from afxdp_pool import umem as umems
from afxdp_pool.audit import STATES, Audit
from afxdp_pool.errors import AfXdpError, AuditError
from afxdp_pool.holders import Holder
from afxdp_pool.pool import FramePool
from afxdp_pool.port import Port
from afxdp_pool.testing.lab import Lab
from afxdp_pool.umem import Umem

#: One letter a state, in the order of `STATES`.
LETTERS = ".ofAt"
COLUMNS = 64
Sections = list[tuple[str, str]]


def sections(umem: Umem) -> Sections:
    """Titles and texts of everything known about an open Umem. Concurrency: any thread."""
    texts = {
        "frames": [_frames(umem), _audit(umem), frame_map(umem.states())],
        "rings": [_rings(port) for port in _ports(umem)],
        "counters": [_pool_counters(pool) for pool in list(umem._pools)] + [_port_counters(p) for p in _ports(umem)],
        "holders": [_who(holder) for holder in umem.holders()],
    }
    if texts["holders"] and umem.tracer is None:
        texts["holders"].append("(who took them: make the Umem with trace=True, or run pytest with --afxdp-trace)")
    return [(f"afxdp_pool {title}", "\n".join(text) + "\n") for title, text in texts.items() if text]


def links(lab: Lab) -> Sections:
    """What the kernel counted on the links of a lab that is still there."""
    lines = [
        f"{link.name}: {_counted(link.counters())}" for pair in lab.pairs.values() for link in (pair.near, pair.far)
    ]
    return [("afxdp_pool links", "\n".join(lines) + "\n")] if lines else []


def frame_map(states: npt.NDArray[np.uint8]) -> str:
    """Every frame as a letter at its place, with a legend; lines that repeat are told once.

    Args:
        states: as `Umem.states` gives them; shape ``(frames,)``, uint8.

    >>> print(frame_map(np.array([0] * 192 + [3, 2, 2], np.uint8)))
    . umem, o pool, f fill, A app, t tx
         0 ................................................................ (3 such lines)
       192 Aff
    """
    letters = "".join(LETTERS[state] for state in states)
    lines = [", ".join(f"{letter} {state}" for letter, state in zip(LETTERS, STATES, strict=True))]
    first = 0
    for line, same in groupby(letters[at : at + COLUMNS] for at in range(0, len(letters), COLUMNS)):
        count = len(list(same))
        lines.append(f"{first:6d} {line}" + (f" ({count} such lines)" if count > 1 else ""))
        first += count * COLUMNS
    return "\n".join(lines)


def settle(umem: Umem) -> Audit:
    """Close the ports and pools on `umem`, and prove that every frame is at home; for the end of a test.

    Raises:
        AuditError: a frame is still out, and who has it; or the conservation law is broken.
        WrongThreadError: another thread still runs one of its pools.

    Concurrency: when no other thread moves frames.
    """
    umem.audit().check()
    for port in _ports(umem):
        port.close()
    pools = [pool for pool in list(umem._pools) if pool.state == "open"]
    for pool in pools:
        pool.collect()
    held = umem.holders()
    if held:
        out = sum(len(holder.frames) for holder in held)
        raise AuditError(
            f"{out} frame{'s' if out > 1 else ''} still out; put them, or send and complete them, before the end:\n"
            + "\n".join(map(_who, held))
        )
    for pool in pools:
        pool.close()
    return umem.audit().check(idle=True)


class Witness:
    """Takes down what Umems look like when an exception is about to close them; see `umem.failure_watchers`.

    Concurrency: any thread.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[type[BaseException], Sections]] = {}

    def start(self) -> None:
        """Begin to watch. Idempotent."""
        if self._watch not in umems.failure_watchers:
            umems.failure_watchers.append(self._watch)

    def stop(self) -> None:
        """Watch no more, and forget what was seen. Idempotent."""
        if self._watch in umems.failure_watchers:
            umems.failure_watchers.remove(self._watch)
        self._seen.clear()

    def of(self, error: BaseException) -> Sections:
        """What `error`, or what it came from, closed; and every Umem that is still open."""
        told: Sections = []
        chain: BaseException | None = error
        passed: set[int] = set()
        while chain is not None and id(chain) not in passed:
            passed.add(id(chain))
            for (number, _), (kind, texts) in self._seen.items():
                # By number, for an error kept here would keep alive all that its traceback refers to.
                if number == id(chain) and kind is type(chain):
                    told += texts
            chain = chain.__cause__ or chain.__context__
        for umem in umems.open_umems():
            told += _safely(umem)
        return told

    def _watch(self, umem: Umem, error: BaseException) -> None:
        key = id(error), id(umem)
        if key not in self._seen or self._seen[key][0] is not type(error):
            self._seen[key] = type(error), _safely(umem)


def _who(holder: Holder) -> str:
    """A holder, without the part of its call stack that is pytest's own."""
    if holder.traceback is None:
        return str(holder)
    lines = holder.traceback.splitlines(keepends=True)
    test = [at for at, line in enumerate(lines) if re.match(r'  File ".*/(_pytest|pluggy)/', line)]
    own = next((at for at in range(test[-1] + 1, len(lines)) if lines[at].startswith("  File")), 0) if test else 0
    return str(replace(holder, traceback="".join(lines[own:]).rstrip()))


def _safely(umem: Umem) -> Sections:
    try:
        return sections(umem)
    except Exception as error:  # the test's own failure must not be hidden by one of ours
        return [("afxdp_pool", f"{umem!r} could not be looked at: {error!r}\n")]


def _ports(umem: Umem) -> list[Port]:
    return sorted(umem._ports, key=lambda port: port.name)


def _frames(umem: Umem) -> str:
    counts = ", ".join(f"{state} {count}" for state, count in umem.count_states().items())
    return f"Umem of {umem.frames} frames of {umem.frame_size} bytes, {umem.pages}: {counts}"


def _audit(umem: Umem) -> str:
    mine = threading.get_native_id()
    for pool in list(umem._pools):
        if pool.state == "open" and pool.owner_tid not in (0, mine):
            return f"no audit: thread {pool.owner_tid} runs pool {pool.id}"
    return f"audit: {umem.audit()}" + "".join(f"\n  {problem}" for problem in umem.audit().problems)


def _rings(port: Port) -> str:
    sizes = port.config
    levels = port.ring_levels()
    entries = {"fill": sizes.fill_size, "comp": sizes.comp_size, "rx": sizes.rx_size, "tx": sizes.tx_size}
    filled = ", ".join(f"{name} {levels[name]}/{entries[name]}" for name in ("fill", "rx", "tx", "comp"))
    granted = ""
    if port.fileno() >= 0:
        info = port.info
        granted = f"; {info.driver}, {info.mode}, XDP {info.xdp_mode or 'none'}, transmit {info.transmit}"
    return f"{port.name}: {filled}{granted}"


def _pool_counters(pool: FramePool) -> str:
    return f"pool {pool.id}, {pool.state}: {_counted(pool.stats().as_dict())}"


def _port_counters(port: Port) -> str:
    kinds = {"engine": port.stats(), "kernel": port.kernel_stats(), "live": port.live_stats()}
    lines = [f"  {kind}: {_counted(stats.as_dict())}" for kind, stats in kinds.items() if stats is not None]
    if port.program is not None:
        try:
            lines.append(f"  XDP program: {_counted(asdict(port.program.counters()))}")
        except AfXdpError as error:
            lines.append(f"  XDP program: {error}")
    return "\n".join([f"{port.name}:", *lines])


def _counted(counters: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counters.items() if count) or "all 0"
