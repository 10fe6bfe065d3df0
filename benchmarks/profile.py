"""Where the nanoseconds of a packet go: each CPU's time, sampled by perf, by the stage the code belongs to.

    sudo python -m benchmarks.profile --output benchmarks/results/profile.json

For each job the source floods on one CPU and the library, with the built-in verdict, runs on another; `perf record`
samples both by the clock. A stage's nanoseconds a packet are its share of the samples times the CPU's time by the
packets that got through. Needs perf (Debian: linux-perf) and root. Sampling itself costs some percent of the rate.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from afxdp_pool.testing import Sink, Source
from benchmarks.suite.beds import Bed, bed
from benchmarks.suite.children import Child
from benchmarks.suite.engines import ENGINES
from benchmarks.suite.machine import machine

JOBS = (
    ("drop", "ours_socket", 64),
    ("forward", "ours_socket", 64),
    ("forward", "ours_live", 64),
    ("forward", "ours_live", 1500),
    ("tx", "ours_socket", 64),
    ("tx", "ours_live", 64),
    ("tx", "ours_live", 1500),
    ("forward", "kernel", 64),
    ("drop", "kernel", 64),
)
FREQUENCY = 4000
#: The first that matches a symbol is its stage.
STAGES = (
    ("idle", r"safe_halt|default_idle|cpuidle|do_idle|schedule|ppoll|do_sys_poll"),
    ("pages", r"page_pool|page|rmqueue|folio|get_pfnblock|__mod_|percpu|pcpu|list_del|list_add"),
    ("engine: receive", r"afp_port_receive|serve_port|afp_port_wake_rx"),
    ("engine: transmit", r"afp_port_transmit|send_run|lend|afp_live_kick|head_of|move_to_socket|rewrite"),
    ("engine: frames home", r"back_from_tx|come_home|afp_port_complete|afp_put|put_|afp_box|drop$"),
    ("engine: fill", r"afp_port_fill|afp_pool_take|refill|afp_pool_alloc|hand_out|afp_pool_ring_put|collect"),
    ("engine: packets made", r"afp_generate|write_packet|add_to_checksum|memmove|memcpy_avx"),
    ("engine: loop, spinning when there is nothing", r"afp_engine|afp_|clock_gettime|kick|settle|recycle"),
    ("XDP program: copies frames out", r"bpf_prog_\w+_live_transmit|bpf_xdp_store_bytes|bpf_xdp_adjust"),
    ("XDP program: redirects to the socket", r"bpf_prog_\w+_afxdp_redirect|xsk_map_redirect$"),
    ("tracing programs", r"bpf_prog_\w+_live_(xmit|pool)|bpf_trace_run|__bpf_trace"),
    ("source and sink programs", r"bpf_prog_"),
    ("socket: receive, with the copy", r"xsk_rcv|__xsk_map_redirect|xp_|xsk_flush|xskq|sock_def_readable"),
    ("socket buffers", r"skb|kmem_cache|kmalloc|kfree|slab|sock_w|consume|xsk_build|refill_obj|obj_cgroup"),
    ("socket: send", r"xsk_|__sys_sendto|sock_sendmsg|__dev_direct_xmit|entry_SYSCALL|do_syscall|sendto"),
    ("veth and its NAPI", r"veth|napi|net_rx|softirq|local_bh"),
    (
        "redirect",
        r"xdp_do_redirect|dev_map|bq_|dev_xdp_enqueue|xdp_convert|dev_get_by|xdp_return|xdp_do_flush|dev_flush",
    ),
    ("live-frame run", r"xdp_test_run|bpf_test_run|bpf_prog_test_run|__sys_bpf"),
    ("copies", r"memcpy|copy_"),
    ("locks", r"spin_|rcu_"),
)


def stage_of(symbol: str) -> str:
    """The stage a symbol belongs to."""
    return next((name for name, pattern in STAGES if re.search(pattern, symbol)), "other")


def sampled(path: Path) -> dict[int, Counter[str]]:
    """Samples of each CPU by symbol."""
    asked = ["perf", "script", "-i", str(path), "-F", "cpu,ip,sym", "--no-inline"]
    text = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    found: dict[int, Counter[str]] = {}
    for line in text.splitlines():
        match = re.match(r"\s*\[(\d+)\]\s+[0-9a-f]+\s+(.+)$", line)
        if match:
            found.setdefault(int(match[1]), Counter())[match[2].strip()] += 1
    return found


def profile(where: Bed, job: str, name: str, size: int, seconds: float) -> dict[str, Any]:
    """One job: packets a second, and for both CPUs nanoseconds a packet by stage."""
    engine = next(engine for engine in ENGINES if engine.name == name)
    with (
        tempfile.TemporaryDirectory() as directory,
        Sink(where.far_end(job), verify=False) as sink,
        Source(where.left.far, size=size, cpu=where.source_cpu) as source,
        Child(engine.command(where, job, size), where.engine_cpu) as child,
    ):
        data = Path(directory) / "perf.data"
        if job != "tx":
            source.start(seconds=seconds + 3)
        time.sleep(0.5)
        first, start = sink.report().packets, time.monotonic()
        record = ["perf", "record", "-q", "-a", "-F", str(FREQUENCY), "-o", str(data), "sleep", str(seconds)]
        subprocess.run(record, check=True, stderr=subprocess.DEVNULL)
        pps = (sink.report().packets - first) / (time.monotonic() - start)
        flooded = source.stop().seconds if job != "tx" else 0.0
        report = child.stop()
        cpus = sampled(data)
    if job == "drop":  # nothing arrives: the engine says how many over the whole run
        pps = report["received"] / flooded
    names = {where.source_cpu: "source", where.engine_cpu: "engine"}
    return {
        "job": job,
        "engine": name,
        "size": size,
        "pps": pps,
        "cpus": {names[cpu]: _by_stage(samples, pps) for cpu, samples in cpus.items() if cpu in names},
    }


def _by_stage(samples: Counter[str], pps: float) -> dict[str, Any]:
    total = sum(samples.values())
    stages: Counter[str] = Counter()
    for symbol, count in samples.items():
        stages[stage_of(symbol)] += count
    each = 1e9 / pps / total if pps and total else 0.0
    return {
        "stages": {name: round(count * each, 1) for name, count in stages.most_common()},
        "symbols": {name: round(count * each, 1) for name, count in samples.most_common(25)},
    }


def table(results: list[dict[str, Any]], cpu: str) -> str:
    """Markdown: stages down, jobs across."""
    names = Counter[str]()
    for result in results:
        names.update(result["cpus"].get(cpu, {}).get("stages", {}))
    heads = [f"{r['job']} {r['engine']} {r['size']}" for r in results]
    lines = [f"| ns a packet, the {cpu}'s CPU | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, _ in names.most_common():
        cells = [r["cpus"].get(cpu, {}).get("stages", {}).get(name, 0.0) for r in results]
        if max(cells) >= 2:
            lines.append(f"| {name} | " + " | ".join(f"{cell:.0f}" if cell >= 0.5 else "" for cell in cells) + " |")
    lines.append("| packets a second, millions | " + " | ".join(f"{r['pps'] / 1e6:.2f}" for r in results) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with bed() as where:
        results = [profile(where, *job, arguments.seconds) for job in JOBS]
    for cpu in ("engine", "source"):
        print(table(results, cpu), end="\n\n")
    if arguments.output:
        document = {
            "command": " ".join(["python", "-m", "benchmarks.profile", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "results": results,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
