"""`Resident`: keeps an XDP program where the kernel runs it fast, without letting it see a packet.

It owns a nameless network namespace, which only its descriptor keeps alive, and the attachment to that namespace's
loopback. Invariant: there the program never receives anything, for nothing is ever sent in there.

A program that is attached nowhere is put into the kernel's XDP dispatcher and taken out again by every BPF_PROG_RUN
with live frames: two synchronize_rcu(), tens of milliseconds. One that is attached somewhere is in it already, and a
run costs some microseconds (kernel/bpf/dispatcher.c, bpf_prog_test_run_xdp() in net/bpf/test_run.c).
"""

from __future__ import annotations

import os

from afxdp_pool.hook import attach_link
from afxdp_pool.netdev import in_netns, new_netns


class Resident:
    """The program behind descriptor `program`, attached from construction until `close()`.

    Raises:
        PrivilegeError: it needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_BPF. AfXdpError: the kernel refused.
    """

    def __init__(self, program: int) -> None:
        self._netns, self._link = new_netns(), -1
        try:
            with in_netns(f"/proc/self/fd/{self._netns}"):
                self._link = attach_link(program, 1, "generic")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take the program off, and let the namespace go. Idempotent."""
        for fd in (self._link, self._netns):
            if fd >= 0:
                os.close(fd)
        self._link = self._netns = -1
