"""Every kind of handler on real packets, counted and verified at the far end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from live_lab import audited, perfect
from test_forwarding import options

import afxdp_pool as ap
from afxdp_pool.testing import Traffic, packets
from afxdp_pool.testing.lab import Lab

COUNT, FLOWS = 20_000, 4


def forward_odd_flows(lab: Lab, handler: Any) -> ap.Report:
    """Send packets of four flows, in portions the path sustains; flows 1 and 3 must arrive, whole and in order."""
    left, right = lab.veth("left"), lab.veth("right")
    forwarder = ap.handle([left.near.name, right.near.name], handler, options=options(lab))
    with Traffic() as traffic:
        forwarder.start()
        seen = traffic.send(
            COUNT, into=left, out_of=right, size=100, flows=FLOWS, window=250,
            expect=COUNT // 2, until=lambda n: settled(forwarder, n),
        ).seen  # fmt: skip
        forwarder.stop()
        result = forwarder.join()
    perfect(seen, COUNT // 2)
    assert sorted(seen.flows) == [1, 3]
    assert (result.received, result.engine.forwarded, result.engine.dropped) == (COUNT, COUNT // 2, COUNT // 2)
    assert result.engine.refused == 0
    audited(forwarder)
    return result


def settled(forwarder: Any, received: int) -> bool:
    now = forwarder.snapshot()
    return bool(now.received == received and now.completed == now.engine.forwarded == received // 2)


def test_a_numpy_handler_filters_by_five_tuple_and_rewrites(lab: Lab) -> None:
    def handle(batch: ap.Batch) -> Any:
        flow = batch.five_tuple()
        assert flow.valid.all()
        assert (flow.dport == packets.PORT).all()
        assert (batch.load(0, ">u4", base=flow.l4 + np.uint32(8)) == packets.MAGIC).all()
        wanted = flow.sport % 2 == 1
        assert batch.swap_macs(where=wanted) == wanted.sum()
        # There and back: what the far end verifies is what was written last.
        port = batch.load(36, ">u2").copy()
        assert batch.store(36, ">u2", 7, where=wanted) == wanted.sum()
        assert batch.store(36, ">u2", port) == len(batch)
        return np.multiply(wanted, np.uint8(ap.FORWARD(1)), out=batch.verdicts)

    forward_odd_flows(lab, handle)


def test_a_numpy_handler_rewrites_headers_and_their_checksums(lab: Lab) -> None:
    """The far end verifies both sums, so what is spoiled here arrives only if it was filled again."""

    def handle(batch: ap.Batch) -> Any:
        assert batch.verify_checksums().all()
        odd = batch.udp.sport % 2 == 1
        assert not batch.decrement_ttl(where=odd).any()
        assert batch.ipv4.verify_checksum().all()
        assert (batch.ipv4.ttl == np.where(odd, 63, 64)).all()
        batch.ipv4.ttl += np.uint8(1)  # the sum is wrong from here on, and the other is spoiled
        batch.udp.where(odd).checksum = 0x1234
        assert not batch.verify_checksums().any()
        assert batch.fill_checksums(where=odd) == odd.sum()
        assert (batch.verify_checksums() == odd).all()
        batch.eth[0]["dst"][:] = batch.eth[0]["dst"].copy()
        return np.where(odd, ap.FORWARD(1), ap.DROP)

    forward_odd_flows(lab, handle)


def test_a_handler_compiled_for_a_packet_filters_and_counts(lab: Lab) -> None:
    pytest.importorskip("numba", reason="needs numba: pip install 'afxdp-pool[jit]'")
    counts = np.zeros(FLOWS, np.int64)
    out, first, drop = ap.FORWARD(1), packets.SOURCE_PORT, ap.DROP

    @ap.compiled(user=counts)
    def handle(packet: Any, length: Any, port: Any, user: Any) -> int:
        flow = ap.be16(packet, 34) - first
        if length != 100 or flow < 0 or flow >= len(user):
            return drop
        user[flow] += 1
        return out if flow % 2 else drop

    forward_odd_flows(lab, handle)
    assert counts.tolist() == [COUNT // FLOWS] * FLOWS


def test_a_compiled_handler_filters_counts_and_rewrites(lab: Lab) -> None:
    pytest.importorskip("numba", reason="needs numba: pip install 'afxdp-pool[jit]'")
    counts = np.zeros(FLOWS, np.int64)
    out, first = ap.FORWARD(1), packets.SOURCE_PORT

    @ap.compiled(user=counts)
    def handle(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
        for i in range(len(descs)):
            at = descs[i].addr
            flow = ap.be16(umem, at + 34) - first
            if descs[i].len != 100 or flow < 0 or flow >= len(user):
                continue
            user[flow] += 1
            if flow % 2:
                for k in range(at, at + 6):
                    umem[k], umem[k + 6] = umem[k + 6], umem[k]
                verdicts[i] = out

    forward_odd_flows(lab, handle)
    assert counts.tolist() == [COUNT // FLOWS] * FLOWS


@pytest.mark.parametrize("view", ["memoryview", "numpy"])
def test_a_packet_handler_filters(lab: Lab, view: Any) -> None:
    handler = ap.per_packet(lambda packet: ap.FORWARD(1) if packet[35] & 1 else ap.DROP, view=view)
    forward_odd_flows(lab, handler)
