"""The command `afxdp-pool`: the paths, a doctor, a cleaner and `top`, over the library's public names.

`arguments` says what may be typed, `paths` runs a path from its opening to its proof, `views` and `screen` show it,
`output` words it, `doctor` examines the machine. Nothing in the library imports this.
"""

from afxdp_pool.cli.entry import main

__all__ = ["main"]
