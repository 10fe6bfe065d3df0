"""What the kernel's own tests of AF_XDP check: each case of theirs, and where ours of the same behaviour is.

The case ``SEND_RECEIVE`` is run by ``test_send_receive``. One that has no test here says why.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Of Linux, below tools/testing/selftests/.
XSK = "bpf/prog_tests/test_xsk.c"
META = "bpf/prog_tests/xdp_metadata.c"
QUEUES = "drivers/net/queues.py"
RECONFIG = "drivers/net/hw/xsk_reconfig.py"


@dataclass(frozen=True)
class Case:
    """One case: its name there, the file it is in, what is checked; and why not here, if it is not."""

    name: str
    source: str
    checks: str
    not_here: str = ""

    @property
    def test(self) -> str:
        """The function that checks it here."""
        return f"test_{self.name.lower()}"


CASES = (
    Case("SEND_RECEIVE", XSK, "packets arrive once, in order, intact, and where headroom and frame size say"),
    Case("SEND_RECEIVE_2K_FRAME", XSK, "the same with frames of 2048 bytes"),
    Case("SEND_RECEIVE_SINGLE_PKT", XSK, "one packet arrives, with none behind it to push it on"),
    Case("POLL_RX", XSK, "a receiver that sleeps in poll is woken"),
    Case("POLL_TX", XSK, "poll for writing sends what is in the TX ring"),
    Case("POLL_RXQ_FULL", XSK, "poll for reading ends at its timeout when nothing comes"),
    Case("POLL_TXQ_FULL", XSK, "poll for writing ends at its timeout while the TX ring stays full, and not after"),
    Case("ALIGNED_INV_DESC", XSK, "descriptors at every border: the valid ones are sent, the others refused"),
    Case("ALIGNED_INV_DESC_2K_FRAME_SIZE", XSK, "the same with frames of 2048 bytes"),
    Case("UMEM_HEADROOM", XSK, "headroom is kept before received packets"),
    Case("BIDIRECTIONAL", XSK, "the same two sockets carry traffic one way and then the other"),
    Case("STAT_RX_DROPPED", XSK, "packets with no room behind the headroom are counted, each"),
    Case("STAT_TX_INVALID", XSK, "invalid descriptors that reach the kernel are counted, each, and no frame is lost"),
    Case("STAT_RX_FULL", XSK, "what a full RX ring loses is counted"),
    Case("STAT_FILL_EMPTY", XSK, "an empty FILL ring is counted"),
    Case("XDP_PROG_CLEANUP", XSK, "a socket leaves the program, and another one takes over its queue"),
    Case("XDP_DROP_HALF", XSK, "a program that drops every second packet"),
    Case("XDP_SHARED_UMEM", XSK, "two sockets on one Umem get their own packets; here on two queues"),
    Case("XDP_METADATA_COPY", XSK, "what a program puts before a packet is there when it is received"),
    Case("XDP_METADATA_COPY_MULTI_BUFF", XSK, "the same for a packet in several frames"),
    Case("ALIGNED_INV_DESC_MULTI_BUFF", XSK, "an invalid part makes its whole packet invalid, and no other"),
    Case("TOO_MANY_FRAGS", XSK, "as many parts as the kernel takes are sent, one more is refused"),
    Case("XDP_ADJUST_TAIL_SHRINK", XSK, "a program that shortens packets"),
    Case("TX_QUEUE_CONSUMER", XSK, "one kick consumes 32 descriptors of 33, and says so in the ring"),
    Case("XDP_ADJUST_TAIL_SHRINK_MULTI_BUFF", XSK, "a program that takes a packet's last part off"),
    Case("XDP_ADJUST_TAIL_GROW", XSK, "a program that lengthens packets"),
    Case("XDP_ADJUST_TAIL_GROW_MULTI_BUFF", XSK, "the same for a packet in several frames"),
    Case("SEND_RECEIVE_9K_PACKETS", XSK, "packets of 9000 bytes arrive"),
    Case("SEND_RECEIVE_UNALIGNED", XSK, "packets begin anywhere, half of them across the border of a page"),
    Case("UNALIGNED_INV_DESC", XSK, "descriptors at every border, in unaligned mode"),
    Case("UNALIGNED_INV_DESC_4001_FRAME_SIZE", XSK, "the same with frames of 4001 bytes, and an end far from a page's"),
    Case("SEND_RECEIVE_UNALIGNED_9K_PACKETS", XSK, "packets of 9000 bytes in unaligned mode"),
    Case("UNALIGNED_INV_DESC_MULTI_BUFF", XSK, "an invalid part in unaligned mode"),
    Case("HW_SW_MIN_RING_SIZE", XSK, "the NIC's rings at their smallest, one packet at a time and almost a ring full"),
    Case("HW_SW_MAX_RING_SIZE", XSK, "the NIC's rings and ours at their largest"),
    Case("TEARDOWN", XSK, "sockets are made and closed again and again, with traffic"),
    Case(
        "XDP_METADATA",
        META,
        "what the driver knows of a packet is there when it is received: its flow's hash, its time",
    ),
    Case("CHECK_XSK", QUEUES, "netlink shows the socket at its queue, and at no other"),
    Case("CHECK_XDP_BIND", RECONFIG, "a program comes and goes under a bound socket whose FILL ring is empty"),
    Case("CHECK_RX_RESIZE", RECONFIG, "the NIC's RX ring is resized under a bound socket, which goes on"),
)
