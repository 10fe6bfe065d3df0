"""What this machine, or this user, lacks for a lab with real packets."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from afxdp_pool.errors import AfXdpError, PrivilegeError
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.sink import Sink

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}
_ABSENT = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


def lacking() -> str:
    """Make a lab with a pair and an XDP program on it, and take it down; what was missing, or "".

    Raises:
        AfXdpError: it failed for another reason than a missing privilege or feature.
    """
    step = "network namespaces"
    try:
        with Lab() as lab:
            step = "veth (CONFIG_VETH)"
            pair = lab.veth("probe")
            step = "native XDP on veth (CONFIG_BPF_SYSCALL)"
            Sink(pair.near).close()
    except PrivilegeError as error:
        without = [name for name, held in capabilities().items() if not held]
        return f"needs root: {' and '.join(without) or 'a privilege outside this container'} lacking ({error})"
    except AfXdpError as error:
        if error.errno in _ABSENT:
            return f"this kernel lacks {step}: {error}"
        raise
    return ""


def capabilities() -> dict[str, bool]:
    """Which of the capabilities that a lab needs this process has in effect."""
    found = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    return {name: bool(effective >> bit & 1) for name, bit in _CAPABILITIES.items()}
