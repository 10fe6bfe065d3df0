"""Every error this library raises, under one root, and the one funnel through which system calls fail.

An error carries what the reader needs to act on it: `errno`, the object (`subject`, e.g. "veth0 queue 3"), what was
being done (`doing`) and what to do about it (`hint`). Its text is one sentence made of those. Ring full or empty is
never an error: it is a count returned.
"""

from __future__ import annotations

import errno as _errno
import os


class AfXdpError(Exception):
    """Root of all errors of this library.

    Attributes:
        subject: the object it happened to, e.g. ``"veth0 queue 3"``.
        doing: what was being done, e.g. ``"binding the socket"``.
        errno: the system's error number, or 0 when no system call failed.
        hint: what the reader can do about it.
    """

    def __init__(
        self, message: str = "", *, subject: str = "", doing: str = "", errno: int = 0, hint: str = ""
    ) -> None:
        self.subject = subject
        self.doing = doing
        self.errno = errno
        self.hint = hint
        reason = message
        if errno:
            name = _errno.errorcode.get(errno, str(errno))
            system = f"{os.strerror(errno)} ({name})"
            reason = f"{message}: {system}" if message else system
        text = ": ".join(part for part in (subject, f"{doing} failed" if doing else "", reason) if part)
        super().__init__(f"{text}; {hint}" if hint else text)


class PrivilegeError(AfXdpError):
    """The process lacks a capability (CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF) that the call needs."""


class NoSuchInterfaceError(AfXdpError):
    """There is no network device of that name in this network namespace."""


class NoSuchNamespaceError(AfXdpError):
    """There is no network namespace of that name."""


class InterfaceDownError(AfXdpError):
    """The network device exists, but it is not up, so nothing can be received or sent."""


class QueueRangeError(AfXdpError):
    """The network device has no queue of that number."""


class QueueBusyError(AfXdpError):
    """Another AF_XDP socket is bound to that queue, and stayed there until the deadline."""


class ConfigError(AfXdpError, ValueError):
    """A configuration value that can never work; refused when the configuration is made."""


class FrameSizeError(ConfigError):
    """Frame size or headroom outside what the kernel accepts."""


class RingSizeError(ConfigError):
    """A ring size that is not a power of two, or too small or too large."""


class NotEnoughFramesError(ConfigError):
    """The Umem has fewer frames than the rings of its ports need to run."""


class MemoryLimitError(AfXdpError):
    """The memory could not be had: locked-memory limit, no memory, or too few huge pages."""


class ModeUnsupportedError(AfXdpError):
    """The driver cannot do what was demanded (zero-copy, native XDP)."""


class MetadataUnsupportedError(ModeUnsupportedError):
    """The driver, or the way its packets come or go, has not the metadata that was asked for."""


class ProgramBusyError(AfXdpError):
    """An XDP program that is not ours to replace is attached to the network device."""


class ProgramLoadError(AfXdpError):
    """The kernel refused the XDP program or one of its maps."""


class BrokerError(AfXdpError):
    """The broker that makes sockets for this process cannot be reached, refused, or said what makes no sense."""


class LinkGoneError(AfXdpError):
    """The network device went away, or was taken down, while the port was in use.

    Attributes:
        done: how many frames of the call are with the port all the same; they come home when it is closed.
    """

    done: int = 0


class ProgramGoneError(AfXdpError):
    """Somebody took off, or replaced, the XDP program of a port in use: no packet reaches it any more."""


class PoolError(AfXdpError):
    """A rule of the frame pool was broken; the frames concerned are untouched.

    Attributes:
        refused: ``(index, address, reason)`` for each refused frame of the batch (the first 16 of them).
        done: how many frames of the batch were handled all the same.
    """

    def __init__(
        self,
        message: str = "",
        *,
        refused: tuple[tuple[int, int, str], ...] = (),
        done: int = 0,
        hint: str = "",
    ) -> None:
        self.refused = refused
        self.done = done
        super().__init__(message, hint=hint)


class DoubleFreeError(PoolError):
    """A frame was put (or sent) that its caller does not hold any more."""


class ForeignFrameError(PoolError):
    """An address that lies in no frame of this Umem."""


class InvalidDescriptorError(PoolError):
    """A transmit descriptor the kernel would refuse: no length, options set, or not inside one frame."""


class FrameGoneError(PoolError):
    """A packet was looked at, or kept, that is not its holder's any more: given back, sent, or lent for a call."""


class WrongThreadError(PoolError):
    """An owner-only call on a pool that is bound to another thread."""


class PoolClosedError(PoolError):
    """The pool, port or Umem was closed before the call."""


class AuditError(PoolError):
    """`audit()` found frames that break the conservation law; the text names them."""


class VerdictError(AfXdpError, ValueError):
    """A handler returned something that is not one verdict per packet."""


class NoHeaderError(AfXdpError, LookupError):
    """The header of one packet was asked for, and the packet has none of that kind."""


class MissingExtraError(AfXdpError, ImportError):
    """An optional feature was used without the extra that brings its dependency."""


class LabError(AfXdpError):
    """The veth lab could not be made, or refused to be made where it might do harm."""


def need_extra(extra: str, module: str) -> MissingExtraError:
    """The error for an optional import that failed; names the extra to install."""
    return MissingExtraError(f"{module} is not installed", hint=f"install it with: pip install 'afxdp-pool[{extra}]'")
