"""The demo: drop, forward and tx on real packets between veth pairs, and a picture of every frame.

Makes a lab of network namespaces, loads it, shows the rates, proves the audits, draws demo/umem.png and demo/umem.gif.
Nothing outside the lab is touched, and the lab is gone afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path

import afxdp_pool as ap
from afxdp_pool.picture import Recorder, animate_umem, draw_umem
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source

HERE = Path(__file__).resolve().parent
# A small Umem, so that the picture shows single frames.
FRAMES = 768
SETTINGS = ap.PortConfig(fill_size=1024, fill_level=512, rx_size=512, tx_size=256, comp_size=256)
SAMPLE_EVERY, PATIENCE = 0.02, 20.0  # seconds


def say(text: str = "") -> None:
    """Print a line now."""
    print(text, flush=True)


def watch(
    forwarder: ap.Runner, title: str, seconds: float, source: Source | None = None, rate: float | None = None
) -> tuple[ap.Report, int, Recorder]:
    """Run the forwarder in its thread and a source beside it, while every frame's state is recorded.

    Returns also how many packets came from the source. However slow the machine is, the forwarder runs until all of
    them are received or counted as lost; if they never are, it ends some seconds later, and what is printed says so.
    """
    recorder = Recorder(forwarder.umem, title)
    forwarder.start()
    end, sent = time.monotonic() + seconds, 0
    if source is not None:
        source.start(rate=rate, seconds=seconds - 0.6)

    def to_come() -> bool:
        nonlocal source, sent
        if source is not None:
            with contextlib.suppress(TimeoutError):
                sent, source = source.wait(0).delivered, None
        report = forwarder.snapshot()
        return source is not None or report.received + lost(report) < sent

    while (now := time.monotonic()) < end or (to_come() and now < end + PATIENCE):
        recorder.sample()
        time.sleep(SAMPLE_EVERY)
    forwarder.stop()
    return forwarder.join(), sent, recorder


def lost(report: ap.Report) -> int:
    """Packets that the kernel dropped, and counted, because the engine was too slow for them."""
    kernel = report.ports[0].kernel
    return kernel.rx_dropped + kernel.rx_ring_full


def settle(forwarder: ap.Runner, recorder: Recorder) -> None:
    """Prove that no frame is lost: first with the ports open, then with everything handed back."""
    umem, pools = forwarder.umem, forwarder.pools
    say(f"    audit:   {umem.audit().check()}")
    for port in forwarder.ports:
        port.close()
    for pool in pools:
        pool.close()
    for _ in range(5):
        recorder.sample()
        time.sleep(SAMPLE_EVERY)
    stats = pools[0].stats()
    home = umem.audit().check(idle=True)
    say(f"             closed: {home}; hold {stats.hold_cnt} - release {stats.release_cnt} = {stats.inflight}")


def main() -> int:
    """Run the three paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each path runs")
    parser.add_argument("--output", type=Path, default=HERE / "umem.png", help="where the picture goes")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    recordings = []
    with Lab() as lab:
        left, right = lab.veth("left"), lab.veth("right")
        options = ap.Options(netns=lab.engine_netns, frames=FRAMES, port=SETTINGS)
        say("A lab of two veth pairs:  source | left.far = left.near | engine | right.near = right.far | sink")

        say(f"\n[1] drop: as fast as the source can, {seconds:.0f} s, 64 bytes")
        with ap.drop(left.near.name, options=options) as forwarder, Source(left.far) as source:
            report, sent, recording = watch(forwarder, "drop", seconds, source)
            say(f"    source:  {sent:,} packets, {sent / (seconds - 0.6) / 1e6:.2f} Mpps")
            dropped = f"{lost(report):,} dropped and counted by the kernel"
            say(f"    engine:  {report.received:,} received and recycled; {dropped}")
            say(f"    adds up: {report.received + lost(report) == sent}")
            settle(forwarder, recording)
            recordings.append(recording)

        rate = 100_000
        say(f"\n[2] forward: left to right, {rate:,} packets a second, every byte checked at the far end")
        with (
            Sink(right.far) as sink,
            ap.forward(left.near.name, right.near.name, options=options) as forwarder,
            Source(left.far) as source,
        ):
            report, sent, recording = watch(forwarder, "forward", seconds, source, rate)
            seen = sink.report()
            say(f"    source:  {sent:,} packets")
            dropped = f"; {lost(report):,} dropped and counted by the kernel" if lost(report) else ""
            say(f"    engine:  {report.sent:,} forwarded, {report.completed:,} completed{dropped}")
            say(
                f"    sink:    {seen.packets:,} packets: lost {seen.missing(sent)}, "
                f"duplicate {seen.duplicate}, reordered {seen.reordered}, corrupt {seen.corrupt}"
            )
            settle(forwarder, recording)
            recordings.append(recording)

        say(f"\n[3] tx: packets of 256 bytes made in the engine, as fast as the link takes them, {seconds:.0f} s")
        addresses = packets.Addresses(source_mac=right.near.mac, target_mac=right.far.mac)
        template = ap.Template(
            (packets.build(256, addresses=addresses),), sequence_at=packets.SEQUENCE_AT, checksum_at=packets.CHECKSUM_AT
        )
        with Sink(right.far) as sink, ap.transmit(right.near.name, template, options=options) as forwarder:
            report, _, recording = watch(forwarder, "tx", seconds)
            dropped = right.near.counters().get("tx_dropped", 0)
            seen = sink.wait(report.sent - dropped)
            say(f"    engine:  {report}")
            say(f"    sink:    {seen.packets:,} packets, corrupt {seen.corrupt}; the link dropped {dropped:,}")
            settle(forwarder, recording)
            recordings.append(recording)
    moving = arguments.output.with_suffix(".gif")
    draw_umem(recordings, arguments.output, "Where every frame of the UMEM is")
    animate_umem(recordings, moving, "Where every frame of the UMEM is", most=75)
    if "SUDO_UID" in os.environ:
        for path in (arguments.output, moving):
            os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))
    say(f"\nThe pictures of every frame: {os.path.relpath(arguments.output)}, {os.path.relpath(moving)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ap.AfXdpError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
