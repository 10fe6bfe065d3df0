"""What is forwarded goes into a file for Wireshark as well; no packet waits for the file. Needs the extra `pcap`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common

import afxdp_pool as ap
from afxdp_pool.capture import Capture
from afxdp_pool.testing import Sink, Source, VethPair


def demo(a: VethPair, b: VethPair) -> None:
    """Test packets from a to b, of which the file gets those of one flow."""
    with Sink(b.far) as sink, Source(a.far, flows=4) as source:
        source.send(8000, rate=20_000)
        print(f"{sink.wait(8000).unique} packets at the far end")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, default=Path(tempfile.gettempdir()) / "example.pcapng")
    parser.add_argument("--source-port", type=int, help="only UDP and TCP packets with this one")
    with (
        common.place(__doc__, "a", "b", parser=parser) as here,
        ap.forward(*here.names, both_ways=True, options=here.options) as forwarder,
    ):
        wanted = here.args.source_port or (40001 if here.pairs else None)
        rules = [ap.Rule(protocol=17, source_port=wanted), ap.Rule(protocol=6, source_port=wanted)] if wanted else []
        with Capture(here.args.file, forwarder, direction="in", rules=rules) as capture:
            here.run(forwarder, demo)
        stats = capture.stats()
        print(f"{here.args.file}: {stats.written} packets, {stats.filtered} not wanted, {stats.dropped} dropped")
