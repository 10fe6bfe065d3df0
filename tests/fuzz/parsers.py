"""The readers of readers.py, fuzzed by atheris; with the options of libFuzzer, as fuzzing.py gives them."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["afxdp_pool", "dpkt"]):
    import readers

if __name__ == "__main__":
    atheris.Setup(sys.argv, readers.one)
    atheris.Fuzz()
