"""How the workers scale: on real queues as far as the cores go, and in instructions a packet beyond them."""
