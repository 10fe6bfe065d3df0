"""`python -m afxdp_pool.cli`, the same as `afxdp-pool`."""

import sys

from afxdp_pool.cli import main

sys.exit(main())
