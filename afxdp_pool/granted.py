"""`PortInfo`: what a port was granted, as opposed to what its configuration asked for.

It is read when asked for, of a port that is open: a value, which keeps nothing of the port and does not change with it.
Invariant: what the kernel can tell of a socket is the kernel's word, not the configuration's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afxdp_pool.port import Port


@dataclass(frozen=True)
class PortInfo:
    """What a port was granted, as the kernel tells it.

    Attributes:
        netdev: name of the network device, or ``"memory"``.
        queue: its queue.
        driver: the network device's driver.
        mode: ``"zero-copy"`` or ``"copy"``, read back from the socket.
        xdp_mode: ``"native"`` or ``"generic"``, or None for a port without an XDP program: it only sends, and not by
            zero-copy, for which drivers want a program all the same.
        pages: what the Umem is made of.
        transmit: ``"live"``: by live frames, and by the socket where those do not pay or not go; ``"socket"``; or
            ``"none"``.
        transmit_reason: why not by live frames; empty when it is.
        netns: the network namespace it was asked for; None: the caller's.
        fill_size, comp_size, rx_size, tx_size: entries of its rings; 0: it has no such ring.
        fill_level: frames kept in FILL.
        busy_poll_us: how long a call of the socket polls the driver; 0: not at all.
        program_id: the XDP program it receives through, None without one.
        bus: the address of the hardware behind it; empty without, or when it is a broker's to know.
        numa_node: the NUMA node of the hardware; None: it has none, or it is not known.
        rx_metadata: what it learns of received packets beside their bytes.
        max_frames: most frames of a packet that it sends; 1 without multi-buffer.
        tx_metadata: what can be asked of it for packets to be sent.
    """

    netdev: str
    queue: int
    driver: str
    mode: str
    xdp_mode: str | None
    pages: str
    transmit: str = "socket"
    transmit_reason: str = ""
    netns: str | None = None
    fill_size: int = 0
    comp_size: int = 0
    rx_size: int = 0
    tx_size: int = 0
    fill_level: int = 0
    busy_poll_us: int = 0
    program_id: int | None = None
    bus: str = ""
    numa_node: int | None = None
    rx_metadata: tuple[str, ...] = ()
    max_frames: int = 1
    tx_metadata: tuple[str, ...] = ()


def granted(port: Port) -> PortInfo:
    """What this port was granted.

    Raises:
        PoolClosedError: it is closed.

    Concurrency: any thread.
    """
    c, where, program = port.config, port.place, port.program
    return PortInfo(
        port.netdev,
        port.queue,
        port._driver,
        port.mode,
        port.xdp_mode,
        port.pool.umem.pages,
        ("live" if port._live else "socket") if c.transmit else "none",
        port._no_live,
        port._netns,
        c.fill_size,
        c.comp_size,
        c.rx_size if c.receive else 0,
        c.tx_size if c.transmit else 0,
        c.fill_level,
        c.busy_poll_us,
        program.id if program else None,
        where.bus if where else "",
        where.numa_node if where else None,
        c.rx_metadata if c.receive else (),
        int(port.native.max_frames),
        c.tx_metadata if c.transmit else (),
    )
