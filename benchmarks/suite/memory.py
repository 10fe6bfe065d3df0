"""What the library needs in memory, in a process of its own: by being imported, and for a frame beyond its bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 1 << 16


def measure() -> dict[str, Any]:
    """Bytes resident, before and after the import; and bytes a frame, of so many frames."""
    asked = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite.memory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


def resident() -> int:
    """Bytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmRSS")


def main() -> None:
    bare = resident()
    import afxdp_pool as ap

    imported = resident()
    with ap.Umem(64) as umem, ap.FramePool(umem) as pool:
        pool.put(pool.alloc(64))  # what is paid once
    before = resident()
    with ap.Umem(FRAMES) as umem, ap.FramePool(umem) as pool:
        # Every frame's record is written. Its bytes are not, and so are not resident.
        batch = pool.alloc(FRAMES)
        held, descriptors = len(batch), batch.descs.nbytes
        after = resident()
        pool.put(batch)
        umem.audit().check()
    each = (after - before - descriptors) / held
    print(json.dumps({"interpreter": bare, "imported": imported, "frames": held, "bytes_a_frame": each}))


if __name__ == "__main__":
    main()
