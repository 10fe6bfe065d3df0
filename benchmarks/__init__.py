"""Benchmarks: scripts that measure, and `results/`, what they measured."""
