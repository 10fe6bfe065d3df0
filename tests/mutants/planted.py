"""The bugs that are planted, all of them."""

from __future__ import annotations

import bugs_packets
import bugs_pools
import bugs_python
import bugs_rings
from mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = (*bugs_pools.BUGS, *bugs_rings.BUGS, *bugs_packets.BUGS, *bugs_python.BUGS)
