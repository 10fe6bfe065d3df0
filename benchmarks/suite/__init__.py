"""The benchmark suite: every job, over the library with each of its handlers, and over its rivals.

    sudo .venv/bin/python -m benchmarks.suite --output benchmarks/results/suite.json

One noun a module: `engines` (who is measured), `ours` (the library as one of them), `kernel_tx` (the kernel's ceiling
of tx), `beds` (the lab), `children` (an engine as a process); `throughput`, `losses`, `latency`, `idle`, `memory` (what
is measured), `plan` (which of it), `machine` (where); `figures` (medians and ratios), `targets` (what is to be
reached), `report` and `plots` (the result, from its JSON alone).

Invariant: packets are counted by the kernel at the far end, outside the engine; and a packet that an engine neither
received nor is known to have dropped fails the run.
"""
