"""`XdpProgram`: the small XDP program on a device that gives packets to AF_XDP sockets, and its filter.

It owns the program, its maps and the attachment. A packet goes to the socket added for the queue it came in
on, when there are no rules or one of them wants it; every other packet goes to the kernel's stack. The device
is left as it was found: the program goes off on `close()`, at the end of a `with`, at the interpreter's exit,
and, attached by a BPF link, with the process however it ends. Attached through libxdp it survives a killed
process; it then says whose it was, and the next one here, or `clean`, removes it. A program of somebody else
is never touched without `force`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from afxdp_pool import hook as xdp
from afxdp_pool import metadata, netdev
from afxdp_pool.bpf import BpfMap, BpfObject
from afxdp_pool.config import RxMetadataName, check_rx_metadata
from afxdp_pool.errors import (
    AfXdpError,
    ConfigError,
    LinkGoneError,
    ModeUnsupportedError,
    NoSuchNamespaceError,
    PrivilegeError,
    ProgramBusyError,
    ProgramLoadError,
    QueueRangeError,
)
from afxdp_pool.filters import MAX_RULES, RULES_SIZE, Rule, pack_rules
from afxdp_pool.loaded import program_info
from afxdp_pool.single import Single

__all__ = ["MAX_RULES", "ProgramCounters", "Rule", "XdpProgram"]

_log = logging.getLogger(__name__)
_PROGRAM = "afxdp_redirect"
_LEAST_QUEUES = 64  # room for a queue count raised later; a slot is one pointer
_BUSY_SECONDS, _BUSY_STEP = 1.0, 0.01
_TAKEN = (errno.EBUSY, errno.EEXIST)

# Kept alive on purpose: a forgotten program must not go off at some collection of garbage, but at exit.
_open_programs: set[XdpProgram] = set()


@dataclass(frozen=True)
class ProgramCounters:
    """Packets since the program was loaded, over all CPUs.

    Attributes:
        redirected: handed to a socket; what the socket could not take is in its own statistics.
        passed_filter: no rule wanted it.
        passed_no_socket: wanted, but its queue has no socket.
    """

    redirected: int
    passed_filter: int
    passed_no_socket: int


class XdpProgram(Single):
    """The redirecting XDP program on one network device, attached from construction until `close()`.

    Args:
        netdev_name: the device, looked up in `netns` (a name below /run/netns or a path; None: the thread's).
        mode: ``"native"`` (in the driver) or ``"generic"`` (in the stack: slower, any driver); ``"auto"``
            takes native, or says in `fallback_reason` why it could not.
        attach: ``"link"``: a BPF link; ``"libxdp"``: through libxdp; ``"auto"``: a link, or libxdp where its
            dispatcher with other programs is on the device already.
        force: replace whatever is attached.
        rules: the filter, see `set_rules`.
        rx_metadata: what it tells of each packet it gives to a socket, see `PortConfig`. What only the driver knows
            takes native mode and a BPF link.
        frags: take packets that are longer than a buffer of the driver's too (BPF_F_XDP_HAS_FRAGS, Linux 5.18). Rules
            look at the first buffer. Native mode needs a driver that has it.

    Attributes:
        frags: as asked for.
        mode: ``"native"`` or ``"generic"``, what was granted.
        fallback_reason: why `mode` is generic although native was tried, else None.
        attach_kind: ``"link"`` or ``"libxdp"``.
        netdev: the device as it was at construction.
        rx_metadata: what it tells of each packet.
        id: the program's number in the kernel.
        loaded: what the kernel told of it when it was loaded.

    Raises:
        NoSuchInterfaceError, NoSuchNamespaceError: there is no such device.
        ProgramBusyError: a program is attached that is not ours, or whose process lives; the text names it.
        ModeUnsupportedError: the mode demanded was refused by the driver.
        MetadataUnsupportedError: the driver does not tell that, or not to a program in that mode or place.
        PrivilegeError: needs CAP_NET_ADMIN and CAP_BPF (and CAP_SYS_ADMIN for `netns`).
        ProgramLoadError: the kernel refused the program.
        ConfigError: a bad argument or rule.

    Concurrency: one thread at a time. Ownership: sockets stay their owner's; the program holds none open.
    """

    def __init__(
        self,
        netdev_name: str,
        *,
        netns: str | None = None,
        mode: Literal["auto", "native", "generic"] = "auto",
        attach: Literal["auto", "link", "libxdp"] = "auto",
        force: bool = False,
        rules: Sequence[Rule] = (),
        rx_metadata: Sequence[RxMetadataName] = (),
        frags: bool = False,
    ) -> None:
        if mode not in ("auto", "native", "generic"):
            raise ConfigError(f"mode is auto, native or generic, not {mode!r}", subject=netdev_name)
        if attach not in ("auto", "link", "libxdp"):
            raise ConfigError(f"attach is auto, link or libxdp, not {attach!r}", subject=netdev_name)
        self._rules = tuple(rules)
        pack_rules(self._rules)
        self.rx_metadata = check_rx_metadata(rx_metadata)
        self.frags = frags
        self.netdev = netdev.find(netdev_name, netns)
        metadata.check_driver(self.netdev, self.rx_metadata, mode, attach)
        self.fallback_reason: str | None = None
        self._wanted_mode, self._wanted_attach, self._force = mode, attach, force
        self._process = os.getpid()
        self._object: BpfObject | None = None
        self._link = -1
        self._libxdp: xdp.LibxdpAttachment | None = None
        with netdev.in_netns(netns):
            self.mode = self._take_hook()
        self.attach_kind = "link" if self._libxdp is None else "libxdp"
        _open_programs.add(self)

    def _take_hook(self) -> str:
        """Attach, waiting a moment for a process that is just leaving; returns the mode granted."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            hook = xdp.look(self.netdev.index)
            busy, passing = self._make_room(hook)
            if busy is None:
                hook = xdp.look(self.netdev.index)
                try:
                    return self._attach(hook)
                except ProgramBusyError as error:
                    if self._force and hook.program:
                        _remove(hook, "replaced on demand")
                    busy, passing = error, True
            if not passing or time.monotonic() > deadline:
                raise busy
            time.sleep(_BUSY_STEP)

    def _make_room(self, hook: xdp.Hook) -> tuple[ProgramBusyError | None, bool]:
        """Remove what may be removed. Returns why there is no room, and whether that may pass by itself."""
        if hook.program is None:
            return None, False
        for part in hook.parts:
            if part.owner and (self._force or not part.owner.alive):
                xdp.remove_part(hook, part)
                _log.info("%s: removed %s of process %d", self.netdev.name, part, part.owner.pid)
            elif part.owner:
                return self._busy(hook, part), True
        foreign = [part for part in hook.parts if not part.owner]
        if hook.parts and (not foreign or self._wanted_attach != "link"):
            return None, False
        owner = hook.program.owner
        if self._force or (owner and not owner.alive):
            _remove(hook, "replaced on demand" if self._force else "its process is gone")
            return None, False
        return self._busy(hook, hook.program), owner is not None or hook.link_id is not None

    def _busy(self, hook: xdp.Hook, holder: xdp.Attached, errno_: int = errno.EBUSY) -> ProgramBusyError:
        if holder.owner:
            why = f"process {holder.owner.pid} uses it with {holder}"
            hint = "stop that process, or replace its program with --force"
        else:
            why = f"the XDP program {holder} is attached in {hook.mode} mode"
            if hook.parts:
                why += f" and calls {', '.join(str(part) for part in hook.parts)}"
            if hook.link_id is not None:
                pids = ", ".join(str(pid) for pid in xdp.link_holders(hook.link_id))
                why += f" by BPF link {hook.link_id}" + (f" of process {pids}" if pids else "")
            hint = "take it off yourself, or replace it with --force (in Python: force=True)"
        return ProgramBusyError(why, subject=self.netdev.name, errno=errno_, hint=hint)

    def _attach(self, hook: xdp.Hook) -> str:
        joining = bool(hook.parts)
        tied = bool(metadata.of_driver(self.rx_metadata))
        if joining:
            metadata.check_driver(self.netdev, self.rx_metadata, "native", "libxdp")
        modes = ["native", "generic"] if self._wanted_mode == "auto" else [str(self._wanted_mode)]
        if tied:
            modes = ["native"]
        if joining and self._wanted_mode != "generic" and hook.mode in modes:
            modes = [hook.mode]
        for mode in modes:
            try:
                self._attach_in(mode, by_libxdp=joining or self._wanted_attach == "libxdp")
                return mode
            except (PrivilegeError, ProgramLoadError):
                raise
            except AfXdpError as error:
                self._explain(error, hook, mode, last=mode == modes[-1])
        raise AssertionError("unreachable")

    def _explain(self, error: AfXdpError, hook: xdp.Hook, mode: str, *, last: bool) -> None:
        """Raise what a failed attachment means, or note it when another mode is left to try."""
        name, driver = self.netdev.name, self.netdev.driver or "its driver"
        if error.errno in _TAKEN:
            if hook.program:
                raise self._busy(hook, hook.program, error.errno) from error
            raise ProgramBusyError("another program was faster", subject=name, errno=error.errno) from error
        if error.errno == errno.ENODEV:
            raise LinkGoneError(subject=name, doing="attaching the XDP program", errno=error.errno) from error
        if hook.program:
            raise ProgramBusyError(
                f"could not join {hook.program}", subject=name, errno=error.errno, hint=str(error)
            ) from error
        why = ModeUnsupportedError(
            f"{driver} refused {mode} XDP",
            subject=name,
            errno=error.errno,
            hint=_advice(error, mode),
        )
        if last:
            raise why from error
        self.fallback_reason = str(why)
        _log.warning("%s; using generic mode", why)

    def _attach_in(self, mode: str, *, by_libxdp: bool) -> None:
        """Load a fresh program, because a refused one cannot change its kind, and attach it."""
        program = metadata.redirect_object(self.rx_metadata, _PROGRAM, self.netdev.index)
        try:
            program.resize("xsks", max(_LEAST_QUEUES, self.netdev.rx_queues))
            record = xdp.Owner.current().pack()
            program.section(".rodata")[: len(record)] = record
            if self.frags:
                program.allow_frags(_PROGRAM)
            if by_libxdp:
                # Loads it too. No socket is in the map yet, so the missing rules change nothing.
                self._libxdp = xdp.LibxdpAttachment(program, self.netdev.index, mode)
                write_rules(program, self._rules)
            else:
                program.load()
                write_rules(program, self._rules)
                self._link = xdp.attach_link(program.program(_PROGRAM), self.netdev.index, mode)
        except BaseException:
            self._detach()
            program.close()
            raise
        self._object = program
        self.loaded = program_info(program.program(_PROGRAM))
        self.id = self.loaded.id

    def _loaded(self) -> BpfObject:
        if self._object is None:
            raise AfXdpError("the XDP program is closed", subject=self.netdev.name)
        return self._object

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._object is None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The filter in effect."""
        return self._rules

    @property
    def map_fd(self) -> int:
        """The descriptor of the XSKMAP, queue to socket. Ownership: the program's."""
        return self._loaded().map("xsks").fd

    def add_socket(self, queue: int, fd: int) -> None:
        """Give the packets of receive queue `queue` to the AF_XDP socket `fd`, in place of any before it.

        Raises:
            QueueRangeError: no such queue.
            AfXdpError: `fd` is not an AF_XDP socket with a receive ring.
        """
        xsks = self._loaded().map("xsks")
        if not 0 <= queue < xsks.max_entries:
            raise QueueRangeError(
                f"there is no queue {queue}", subject=self.netdev.name, hint=f"it has {self.netdev.rx_queues}"
            )
        xsks.update(queue, fd)

    def remove_socket(self, queue: int) -> None:
        """Let the packets of receive queue `queue` pass to the kernel's stack again. Idempotent."""
        self._loaded().map("xsks").delete(queue)

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Replace the filter; the new one holds as a whole from one packet to the next, with traffic running.

        When this returns no packet is under the old rules any more.

        Raises:
            ConfigError: more than 16 rules; the old ones stay in effect.
        """
        program, before = self._loaded(), self._rules
        self._rules = tuple(rules)
        try:
            write_rules(program, self._rules)
        except BaseException:
            self._rules = before
            raise

    def counters(self) -> ProgramCounters:
        """The program's packet counters, summed over the CPUs."""
        sums = self._loaded().map("counters").lookup_cpus(0).sum(axis=0)
        return ProgramCounters(*(int(value) for value in sums))

    def close(self) -> None:
        """Detach and unload. Idempotent. In a forked child only the child's descriptors are closed.

        Raises:
            AfXdpError: a program attached through libxdp could not be taken off.
        """
        _open_programs.discard(self)
        program, self._object = self._object, None
        if program is None:
            return
        try:
            self._detach()
        finally:
            program.close()

    def _detach(self) -> None:
        link, self._link = self._link, -1
        attachment, self._libxdp = self._libxdp, None
        if link >= 0:
            os.close(link)
        if attachment is None:
            return
        try:
            if os.getpid() == self._process:
                # A namespace that lost its name took the device with it, or nobody can reach it any more.
                with contextlib.suppress(NoSuchNamespaceError), netdev.in_netns(self.netdev.netns):
                    attachment.detach()
        finally:
            attachment.close()

    def __enter__(self) -> XdpProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.mode}, {self.attach_kind}"
        return f"<XdpProgram on {self.netdev.name}: {state}>"


def write_rules(program: BpfObject, rules: Sequence[Rule]) -> None:
    """Make these the rules of the loaded program, as a whole from one packet to the next."""
    filtering = program.map(".bss")
    if rules:
        filtering.update(0, 1)  # before they hold: until then the rules looked at are the old ones
    with contextlib.closing(BpfMap.array("rule_set", RULES_SIZE)) as fresh:
        fresh.update(0, pack_rules(rules))
        program.map("active_rules").update(0, fresh.fd)  # waits until no packet is under the old ones
    if not rules:
        filtering.update(0, 0)


def _remove(hook: xdp.Hook, why: str) -> None:
    xdp.remove(hook)
    _log.info("interface %d: removed %s: %s", hook.ifindex, hook.program, why)


def _advice(error: AfXdpError, mode: str) -> str:
    if mode == "native" and error.errno == errno.ERANGE:
        return f"{error.hint or 'packets of this MTU do not fit what the driver takes'}; lower the MTU"
    return error.hint or ("use generic mode" if mode == "native" else "")


@atexit.register
def _close_all() -> None:  # also in a forked child, where it closes descriptors that would keep programs attached
    for program in list(_open_programs):
        try:
            program.close()
        except AfXdpError as error:
            _log.error("%s", error)


os.register_at_fork(after_in_child=_close_all)
