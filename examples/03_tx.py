"""Send packets made from a template, at a rate; COMPLETION brings the frames back to the pool."""

import afxdp_pool as ap
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink

with Lab() as lab:
    pair = lab.veth("a")
    addresses = packets.Addresses(source_mac=pair.near.mac, target_mac=pair.far.mac)
    # A number counted up at byte 50 of each packet, and the UDP checksum at byte 40 that covers it.
    template = ap.Template(
        (packets.build(128, addresses=addresses),), sequence_at=packets.SEQUENCE_AT, checksum_at=packets.CHECKSUM_AT
    )
    options = ap.Options(netns=lab.engine_netns)
    with (
        Sink(pair.far) as sink,
        ap.transmit(pair.near.name, template, count=50_000, rate=50_000, options=options) as tx,
    ):
        print(tx.run())
        seen = sink.wait(50_000)
        print(f"far end: {seen.unique} packets, {seen.lost} lost, {seen.corrupt} corrupt")
        print(tx.audit().check())
