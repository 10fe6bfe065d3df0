"""What is set outside the sockets: a network device's NAPI, and the CPU a thread runs on. Each is put back at the end.

A `Napi` owns the values it changed. They are the device's, in sysfs, so they outlive a process that is killed, and are
written down (`afxdp_pool.knobs`). `tuned` tells what is not as a driver leaves it, whoever set it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Self

from afxdp_pool import napi
from afxdp_pool.errors import AfXdpError, ConfigError, ModeUnsupportedError, PrivilegeError
from afxdp_pool.knobs import Kind, Knobs
from afxdp_pool.netdev import in_netns

log = logging.getLogger("afxdp_pool")

#: The files of /sys/class/net/DEVICE, what a driver leaves in them, and the Linux that first had them.
KNOBS = {"threaded": "5.12", "napi_defer_hard_irqs": "5.8", "gro_flush_timeout": "3.19"}
_OF_QUEUE = " of queue "
# The same numbers on every architecture (asm-generic/unistd.h); glibc has functions for them from 2.36 on only.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC


class Napi:
    """NAPI values of a network device, from construction to `close()`, which puts back what was there before.

    Args:
        netdev, netns: the device.
        threaded: run its NAPI in kernel threads of their own instead of softirqs.
        napi_defer_hard_irqs: polls without a packet before the driver's interrupt is allowed again.
        gro_flush_timeout: ns after which the kernel polls by itself while the interrupt is off.
        queues: set it for the NAPI of these receive queues only, where kernel (6.13; `threaded`: 6.17) and driver tell
            which those are, as igb and virtio_net do; else, and if None, for the device.

    None leaves a value alone. `threaded` can be set only while the device has NAPI instances: veth has them while an
    XDP program is attached, or GRO is on. A value that somebody changed meanwhile is left so, and said in the log; of
    several `Napi` on one device, also in several processes, the last one's values hold while it is open. What a killed
    process leaves is put back by the next port, or `Napi`, on the device, or `clean`.

    Raises:
        PrivilegeError: it needs CAP_SYS_ADMIN and CAP_NET_ADMIN. ModeUnsupportedError: this kernel has no such value.
        NoSuchInterfaceError, NoSuchNamespaceError: there is no such device. AfXdpError: the kernel refused.

    Concurrency: any one thread at a time. A forked child has none of it: closing there puts nothing back.
    Source of the rules: Documentation/networking/napi.rst, net/core/net-sysfs.c.
    """

    def __init__(
        self,
        netdev: str,
        netns: str | None = None,
        *,
        threaded: bool | None = None,
        napi_defer_hard_irqs: int | None = None,
        gro_flush_timeout: int | None = None,
        queues: Sequence[int] | None = None,
    ) -> None:
        self.netdev, self.netns = netdev, netns
        wanted = {
            "napi_defer_hard_irqs": napi_defer_hard_irqs,
            "gro_flush_timeout": gro_flush_timeout,
            "threaded": None if threaded is None else int(threaded),
        }
        #: What was there before, and what was set instead, by name.
        self.changed: dict[str, tuple[int, int]] = {}
        self._knobs = Knobs(netdev, netns)
        try:
            for name, value in wanted.items():
                if value is not None:
                    for key in self._keys(name, tuple(queues or ())):
                        self._set(key, value)
        except BaseException:
            self.close()
            raise

    def _keys(self, name: str, queues: tuple[int, ...]) -> list[str]:
        """What to set: the value of each queue's NAPI, or the device's."""
        if queues:
            with in_netns(self.netns):
                if napi.has_own(self.netdev, queues, name):
                    return [f"{name}{_OF_QUEUE}{queue}" for queue in queues]
        return [name]

    def _set(self, name: str, value: int) -> None:
        subject = f"{self.netdev} in namespace {self.netns}" if self.netns else self.netdev
        try:
            before = self._knobs.set("napi", name, value)
        except OSError as error:
            kind, hint = AfXdpError, "the device or its driver does not take this value"
            if error.errno in (errno.EPERM, errno.EACCES):
                kind, hint = PrivilegeError, "run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN"
            elif error.errno == errno.EOPNOTSUPP:
                kind, hint = (
                    ModeUnsupportedError,
                    "the device has no NAPI now; veth has it while an XDP program is there",
                )
            elif error.errno in (errno.ENOENT, errno.ENOSYS):
                kind, hint = (
                    ModeUnsupportedError,
                    f"it needs a device with NAPI and Linux {KNOBS[name.partition(_OF_QUEUE)[0]]} or newer",
                )
            raise kind(subject=subject, doing=f"setting {name} to {value}", errno=error.errno or 0, hint=hint) from None
        if before != value:
            self.changed[name] = before, value

    def close(self) -> None:
        """Put back what was there before. Idempotent; a device that has gone needs nothing."""
        self.changed = {}
        self._knobs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tuned(netdev: str, netns: str | None = None) -> dict[str, int] | None:
    """NAPI values of the device that are not 0, by name; empty without the device. None: we may not read them.

    Those of single queues, where they are not the device's, by names such as ``"gro_flush_timeout of queue 3"``.
    """
    found = {}
    try:
        with _sysfs(netdev, netns) as there:
            for name in KNOBS:
                with contextlib.suppress(FileNotFoundError):
                    found[name] = _read(there, name)
    except OSError as error:
        return None if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS) else {}
    with in_netns(netns):
        for queue, one in napi.instances(netdev).items():
            differs = {name: value for name, value in one.values.items() if value != found.get(name, 0)}
            found |= {f"{name}{_OF_QUEUE}{queue}": value for name, value in differs.items()}
    return {name: value for name, value in found.items() if value}


def untune(netdev: str, netns: str | None, name: str) -> str:
    """The command that sets a NAPI value back to 0, as `tuned` names it."""
    name, _, queue = name.partition(_OF_QUEUE)
    if queue:
        return f"the kernel's ynl: --family netdev --do napi-set, {name.removeprefix('napi_').replace('_', '-')} to 0"
    inside = f"ip netns exec {netns} " if netns and not netns.startswith("/") else ""
    return f"{inside}sh -c 'echo 0 > /sys/class/net/{netdev}/{name}'"


@contextlib.contextmanager
def pinned(cpu: int | None, who: str) -> Iterator[None]:
    """This thread on one CPU, and back to where it was allowed before. None does nothing.

    Raises:
        ConfigError: there is no such CPU, or this process may not use it.
    """
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, ValueError, OverflowError) as error:
        allowed = ", ".join(map(str, sorted(before)))
        raise ConfigError(
            subject=f"CPU {cpu}",
            doing=f"pinning {who}",
            errno=getattr(error, "errno", None) or errno.EINVAL,
            hint=f"this process may run on CPUs {allowed}",
        ) from None
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _sysfs(netdev: str, netns: str | None) -> Iterator[int]:
    """The directory of a device in the sysfs of its namespace, as a descriptor.

    /sys shows the namespace it was mounted in. So a sysfs of our own is made, which no mount namespace ever sees.
    """
    with in_netns(netns):
        context = _call(_FSOPEN, b"sysfs", _CLOEXEC)
        try:
            _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            mount = _call(_FSMOUNT, context, _CLOEXEC, 0)
        finally:
            os.close(context)
    try:
        there = os.open(f"class/net/{netdev}", os.O_PATH | os.O_CLOEXEC, dir_fd=mount)
        try:
            yield there
        finally:
            os.close(there)
    finally:
        os.close(mount)


def _call(number: int, *arguments: object) -> int:
    got = int(_libc().syscall(number, *arguments))
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _read(there: int, name: str) -> int:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=there)
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)


def _read_knob(netdev: str, name: str) -> int:
    name, _, queue = name.partition(_OF_QUEUE)
    if queue:
        return napi.read(netdev, int(queue), name)
    with _sysfs(netdev, None) as there:
        return _read(there, name)


def _write_knob(netdev: str, name: str, value: int) -> None:
    name, _, queue = name.partition(_OF_QUEUE)
    if queue:
        return napi.write(netdev, int(queue), name, value)
    with _sysfs(netdev, None) as there:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=there)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)


#: The knobs of `KNOBS`, by their names, and those of a queue's NAPI, with the queue behind.
NAPI = Kind(_read_knob, _write_knob)
