"""`clean`: what a killed process left on a network device is taken off, or put back.

That is its XDP program and the pins of libxdp's dispatcher, where it was attached in a way that outlives the process;
and the device's knobs. It owns nothing. Invariant: unless forced, it leaves alone what a living process has, and what
is not ours.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from afxdp_pool import hook as xdp
from afxdp_pool import knobs, netdev

log = logging.getLogger("afxdp_pool")


def clean(netdev_name: str, netns: str | None = None, force: bool = False) -> list[str]:
    """Remove, or put back, what a killed process of ours left on a device; with `force` whatever XDP program is there.

    Returns:
        One sentence for each thing removed or put back; empty when there was nothing to do. What was left alone because
        it is in use or not ours is logged, and what cannot be put back now.

    Raises:
        NoSuchInterfaceError, NoSuchNamespaceError: there is no such device.
        PrivilegeError: needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
    """
    device = netdev.find(netdev_name, netns)
    done = knobs.restore(netdev_name, netns)  # first: some go back only while the program is there
    with netdev.in_netns(netns):
        hook = xdp.look(device.index)
        if hook.parts and not force:
            for part in hook.parts:
                if part.owner and not part.owner.alive:
                    xdp.remove_part(hook, part)
                    done.append(f"{device.name}: removed {part}, left behind by process {part.owner.pid}")
                else:
                    log.info("%s: left alone %s", device.name, part)
        elif hook.program:
            owner = hook.program.owner
            if force or (owner and not owner.alive):
                whose = f", left behind by process {owner.pid}" if owner and not owner.alive else ""
                xdp.remove(hook)
                done.append(f"{device.name}: removed {hook.program}{whose}")
            else:
                user = f", process {owner.pid} uses it" if owner else ", not ours"
                log.info("%s: left alone %s%s", device.name, hook.program, user)
        for directory, inside in xdp.stale_pins(xdp.look(device.index)):
            if inside and all(part.owner and not part.owner.alive for part in inside):
                if not _only_ours(directory):
                    log.warning("%s: left alone the pins in %s: others may write there", device.name, directory)
                    continue
                for pin in directory.iterdir():
                    pin.unlink()
                directory.rmdir()
                done.append(f"{device.name}: removed the pins in {directory}")
    return done


def _only_ours(directory: Path) -> bool:
    """Whether it is a directory, no link to one, that only root or this user may write to."""
    found = directory.lstat()
    mine = found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and mine
