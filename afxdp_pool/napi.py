"""NAPI instances by netlink: which queue each serves, its interrupt, and values of its own (Linux 6.13).

It owns nothing. All is asked in the calling thread's network namespace. Invariant: a queue whose NAPI the kernel or the
driver does not tell has none here, and the device's values in sysfs are what is left.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from afxdp_pool import netlink

_QUEUE_GET, _NAPI_GET, _NAPI_SET = 10, 11, 14
_QUEUE_ID, _QUEUE_IFINDEX, _QUEUE_TYPE, _QUEUE_NAPI = 1, 2, 3, 4
_IFINDEX, _ID, _IRQ, _PID = 1, 2, 3, 4
#: Values by the names they have in sysfs (NETDEV_A_NAPI_...).
VALUES = {"napi_defer_hard_irqs": 5, "gro_flush_timeout": 6, "threaded": 8}
PROC = Path("/proc")


@dataclass(frozen=True)
class Instance:
    """A NAPI instance: what polls a queue of a device.

    Attributes:
        id: the kernel's number of it, as SO_INCOMING_NAPI_ID has it.
        queue: the receive queue it serves.
        irq: its interrupt; None: not told, or it has none.
        pid: of its kernel thread; None: it runs in softirqs.
        values: by their names in sysfs; those the kernel lets be set for it alone.
    """

    id: int
    queue: int
    irq: int | None
    pid: int | None
    values: dict[str, int]


def instances(netdev: str) -> dict[int, Instance]:
    """The NAPI instances of a device by receive queue; those that are told. Concurrency: any thread."""
    try:
        index = socket.if_nametoindex(netdev)
        queues = {
            netlink.number(queue[_QUEUE_NAPI]): netlink.number(queue[_QUEUE_ID])
            for queue in netlink.generic_dump("netdev", _QUEUE_GET)
            if _QUEUE_NAPI in queue
            and netlink.number(queue[_QUEUE_IFINDEX]) == index
            and netlink.number(queue[_QUEUE_TYPE]) == 0
        }
        found = list(netlink.generic_dump("netdev", _NAPI_GET))
    except OSError:  # before Linux 6.8
        return {}
    told = {}
    for napi in found:
        number = netlink.number(napi.get(_ID))
        if number in queues:
            told[queues[number]] = Instance(
                number,
                queues[number],
                netlink.number(napi[_IRQ]) if _IRQ in napi else None,
                netlink.number(napi[_PID]) if _PID in napi else None,
                {name: netlink.number(napi[attribute]) for name, attribute in VALUES.items() if attribute in napi},
            )
    return dict(sorted(told.items()))


def has_own(netdev: str, queues: tuple[int, ...], name: str) -> bool:
    """Whether the NAPI of each of these queues has a value of its own by that name. Concurrency: any thread."""
    there = instances(netdev)
    return bool(queues) and all(queue in there and name in there[queue].values for queue in queues)


def read(netdev: str, queue: int, name: str) -> int:
    """A value of the queue's NAPI. Raises OSError; EOPNOTSUPP when it has none."""
    return _of(netdev, queue, name).values[name]


def write(netdev: str, queue: int, name: str, value: int) -> None:
    """Set a value of the queue's NAPI. Raises OSError as the kernel says."""
    number = netlink.attribute(_ID, _of(netdev, queue, name).id)
    netlink.act("netdev", _NAPI_SET, number + netlink.attribute(VALUES[name], value))


def _of(netdev: str, queue: int, name: str) -> Instance:
    found = instances(netdev).get(queue)
    if found is None or name not in found.values:
        socket.if_nametoindex(netdev)  # or it has gone
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return found


def cpus_of_irq(irq: int) -> str:
    """The CPUs that an interrupt goes to, as the kernel writes them; ``""``: not told. Concurrency: any thread."""
    for name in ("effective_affinity_list", "smp_affinity_list"):
        try:
            return (PROC / "irq" / str(irq) / name).read_text().strip()
        except OSError:
            continue
    return ""
