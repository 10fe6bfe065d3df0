"""What every test may use. Nothing here runs, or is imported from the library, before a test asks for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from afxdp_pool.testing import Lab

MISSING = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


@pytest.fixture(scope="session")
def veth_machine() -> None:
    """Skip unless this machine has, and lets us use, network namespaces, veth and native XDP on it.

    Only a missing privilege or feature skips; any other failure is the library's and fails the test.
    """
    from afxdp_pool.errors import AfXdpError, PrivilegeError
    from afxdp_pool.testing import Lab, Sink

    step = "network namespaces"
    try:
        with Lab() as lab:
            step = "veth (CONFIG_VETH)"
            pair = lab.veth("probe")
            step = "native XDP on veth (CONFIG_BPF_SYSCALL)"
            Sink(pair.near).close()
    except PrivilegeError as error:
        pytest.skip(f"needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF): {error}")
    except AfXdpError as error:
        if error.errno in MISSING:
            pytest.skip(f"this kernel lacks {step}: {error}")
        raise


@pytest.fixture
def lab(veth_machine: None) -> Iterator[Lab]:
    """A lab of the test's own, removed after it."""
    from afxdp_pool.testing import Lab

    with Lab() as made:
        yield made
