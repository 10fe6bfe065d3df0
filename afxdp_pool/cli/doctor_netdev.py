"""The doctor's look at one network device: what it can do, what hurts, who is on its XDP hook."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct

from afxdp_pool import UmemConfig, hook, napi, numa
from afxdp_pool import netdev as netdevs
from afxdp_pool.cli.defects import known
from afxdp_pool.cli.finding import Finding
from afxdp_pool.errors import AfXdpError, NoSuchInterfaceError
from afxdp_pool.knobs import left, shown
from afxdp_pool.netdev import Netdev, XdpFeature, flag_names
from afxdp_pool.numa import ranges
from afxdp_pool.steering import in_words
from afxdp_pool.tuning import tuned, untune

_HEADERS = 14 + 4  # Ethernet and one VLAN tag
_SIOCETHTOOL = 0x8946
_GRO, _TX_CHECKSUM, _FLAGS, _FLAG_LRO = 0x2B, 0x16, 0x25, 1 << 15


def examine(name: str, netns: str | None) -> list[Finding]:
    """All findings about the device.

    Raises:
        NoSuchNamespaceError, PrivilegeError: the namespace cannot be entered.
    """
    try:
        place = netdevs.find(name, netns)
    except NoSuchInterfaceError as error:
        return [Finding("interface", "missing", "there is none of that name", error.hint)]
    prefix = f"ip netns exec {netns} " if netns and not netns.startswith("/") else ""
    found = [_up(place, prefix), _driver(place, prefix), _mtu(place, prefix), *_features(place), _numa(place)]
    with netdevs.in_netns(netns):
        found += [_hook(place), _offloads(place, prefix), *_interrupts(place)]
    found += _changed(place)
    zero_copy = place.features is not None and XdpFeature.XSK_ZEROCOPY in place.features.flags
    found += known(os.uname().release, place.driver, zero_copy=zero_copy) if place.driver else []
    if place.driver == "veth":
        found.append(_veth())
    return found


def _up(place: Netdev, prefix: str) -> Finding:
    if place.up and not place.carrier:
        text = "up, but without carrier: nothing arrives, and what is sent is dropped"
        return Finding("interface", "warn", text, "bring its other end up, or see to the cable")
    if place.up:
        return Finding("interface", "ok", f"up, number {place.index}")
    return Finding("interface", "missing", "down", f"{prefix}ip link set {place.name} up")


def _driver(place: Netdev, prefix: str) -> Finding:
    rx, tx = place.rx_queues, place.tx_queues
    text = f"{place.driver or 'unknown'}, {rx} receive and {tx} transmit queue{'s' if tx != 1 else ''}"
    if rx > 1:
        fix = f"take all (-q all), or have one: {prefix}ethtool -L {place.name} combined 1"
        return Finding("driver", "warn", f"{text}: packets are spread over all of them", fix)
    return Finding("driver", "ok", text)


def _mtu(place: Netdev, prefix: str) -> Finding:
    longest = place.mtu + _HEADERS
    if longest <= UmemConfig(frame_size=2048).max_packet:
        return Finding("MTU", "ok", f"{place.mtu}: packets fit frames of 2048 and 4096 bytes")
    most = UmemConfig(frame_size=4096).max_packet
    if longest <= most:
        return Finding("MTU", "ok", f"{place.mtu}: packets fit frames of 4096 bytes, not of 2048")
    fix = f"--multi-buffer, or {prefix}ip link set {place.name} mtu {most - _HEADERS}"
    text = f"{place.mtu}: packets over {most} bytes fit no frame, and are dropped without --multi-buffer"
    return Finding("MTU", "warn", text, fix)


def _features(place: Netdev) -> list[Finding]:
    features = place.features
    if features is None:
        return [Finding("XDP", "warn", "the kernel does not tell (before Linux 6.3); it is tried when a port opens")]
    flags = features.flags
    if not flags & XdpFeature.BASIC or not flags & XdpFeature.REDIRECT:
        found = [Finding("XDP", "warn", "not in this driver: generic mode only, which is slower")]
    else:
        found = [Finding("XDP", "ok", "native: " + ", ".join(flag_names(flags)))]
    if flags & XdpFeature.XSK_ZEROCOPY:
        found.append(Finding("zero-copy", "ok", f"yes, {features.zc_max_segments or 1} segments"))
    else:
        found.append(Finding("zero-copy", "warn", "not in this driver: copy mode"))
    told = ", ".join(flag_names(features.rx_metadata)) or "none that XDP programs could ask for"
    done = ", ".join(flag_names(features.xsk)) or "none for packets of AF_XDP sockets"
    return [*found, Finding("RX metadata", "ok", told), Finding("TX offloads", "ok", done)]


def _numa(place: Netdev) -> Finding:
    nodes = numa.nodes()
    if len(nodes) < 2:
        return Finding("NUMA", "ok", "this machine has one node")
    if place.numa_node is None:
        return Finding("NUMA", "ok", f"{len(nodes)} nodes; the device is of none")
    cpus = numa.cpus_of(place.numa_node)
    mine = os.sched_getaffinity(0) & set(cpus)
    text = f"on node {place.numa_node}, of which this process may use {len(mine)} of {len(cpus)} CPUs"
    if mine:
        fix = f"numactl --cpunodebind={place.numa_node} --membind={place.numa_node} afxdp-pool ..."
        return Finding("NUMA", "ok", text, fix)
    return Finding("NUMA", "warn", text, f"let it run there: taskset --cpu-list {ranges(cpus)} ...")


def _hook(place: Netdev) -> Finding:
    try:
        on = hook.look(place.index)
    except AfXdpError as error:
        return Finding("XDP hook", "warn", str(error))
    if on.program is None:
        return Finding("XDP hook", "ok", "free")
    programs = on.parts or (on.program,)
    text = f"{', '.join(map(str, programs))} in {on.mode} mode"
    left = [part for part in programs if part.owner and not part.owner.alive]
    clean = _clean(place)
    if left:
        return Finding("XDP hook", "warn", f"{text}, left behind by a killed process", clean)
    if any(part.owner for part in programs):
        pids = ", ".join(str(part.owner.pid) for part in programs if part.owner)
        return Finding("XDP hook", "warn", f"{text}, in use by process {pids}", f"kill {pids}")
    if on.parts:
        return Finding("XDP hook", "ok", f"shared by libxdp's dispatcher: {text}")
    return Finding("XDP hook", "missing", f"taken: {text}", f"{clean} --force")


def _offloads(place: Netdev, prefix: str) -> Finding:
    """Offloads that make packets what a sender never sent. To be called in the device's namespace."""
    if (_ethtool(place.name, _FLAGS) or 0) & _FLAG_LRO:
        fix = f"{prefix}ethtool -K {place.name} lro off"
        return Finding("offloads", "missing", "LRO is on: drivers refuse XDP with it", fix)
    if _ethtool(place.name, _GRO) is None:
        return Finding("offloads", "ok", "the driver tells of none")
    if place.driver == "veth" and _ethtool(place.name, _TX_CHECKSUM):
        fix = f"{prefix}ethtool -K {place.name} tx off sg off tso off gso off  (and the same on its peer)"
        text = "tx checksum is on: packets of this machine's own stack carry none over a veth"
        return Finding("offloads", "warn", text, fix)
    return Finding("offloads", "ok", "none that hurts")


def _clean(place: Netdev) -> str:
    return f"afxdp-pool clean -i {place.name}" + (f" --netns {place.netns}" if place.netns else "")


def _changed(place: Netdev) -> list[Finding]:
    """What is not as the driver, or its administrator, left it: by a running process, a killed one, or nobody knows."""
    known = {(one.kind, one.key): one for one in left(place.name, place.netns)}
    found = []
    for one in known.values():
        words = in_words if one.kind == "steering" else lambda _, value: shown(value)
        key = one.key.partition(" like ")[0]
        text = f"{key} is {words(one.key, one.value)}, and was {words(one.key, one.before)}: "
        what = "NAPI" if one.kind == "napi" else one.kind
        if one.pid == 1:
            found.append(Finding(what, "ok", f"{text}kept so", f"afxdp-pool steer -i {place.name} --restore"))
        elif one.alive:
            found.append(Finding(what, "ok", f"{text}process {one.pid} wants it so, and puts it back"))
        else:
            found.append(Finding(what, "warn", f"{text}left by a killed process", _clean(place)))
    values = tuned(place.name, place.netns)
    if values is None:
        return [*found, Finding("NAPI", "ok", "only root can read its values (CAP_SYS_ADMIN)")]
    found += [
        Finding("NAPI", "warn", f"{name} is {value}, by whom is not known", untune(place.name, place.netns, name))
        for name, value in values.items()
        if ("napi", name) not in known
    ]
    return found or [Finding("NAPI", "ok", "as the driver left it")]


def _interrupts(place: Netdev) -> list[Finding]:
    """Where each queue's interrupt goes, which is where the driver polls it. In the device's namespace."""
    all_told = napi.instances(place.name).values()
    threads = [
        Finding("NAPI thread", "ok", f"queue {one.queue}: {one.pid}", f"taskset --cpu-list --pid CPU {one.pid}")
        for one in all_told
        if one.pid is not None and one.values.get("threaded")
    ]
    told = [one for one in all_told if one.irq is not None]
    cpus = {one.queue: napi.cpus_of_irq(one.irq or 0) for one in told}
    if not any(cpus.values()):
        return threads
    text = ", ".join(f"queue {one.queue}: {one.irq} to CPU {cpus[one.queue] or '?'}" for one in told)
    node = set(numa.cpus_of(place.numa_node)) if place.numa_node is not None else set()
    away = [one for one in told if node and not node & set(numa.numbers(cpus[one.queue]))]
    if away:
        fix = f"echo {ranges(node)} > /proc/irq/{away[0].irq}/smp_affinity_list  (CPUs of the device's node)"
        return [Finding("interrupts", "warn", f"{text}; of another NUMA node than the device's", fix), *threads]
    single = [cpu for cpu in cpus.values() if cpu.isdigit()]
    if len(set(single)) < len(single):
        fix = f"echo CPU > /proc/irq/{told[-1].irq}/smp_affinity_list, one CPU a queue, none of them a worker's"
        return [Finding("interrupts", "warn", f"{text}; queues share a CPU", fix), *threads]
    return [Finding("interrupts", "ok", text), *threads]


def _veth() -> Finding:
    text = (
        "copy mode only; a ring of 256; packets that XDP redirects out of its peer come in only while "
        "an XDP program is on this end, or GRO"
    )
    return Finding("veth", "ok", text)


def _ethtool(name: str, command: int) -> int | None:
    """One of ethtool's values, or None when the driver does not have it."""
    request = array.array("B", struct.pack("=II", command, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), request.buffer_info()[0]))
        except OSError:
            return None
    return int(struct.unpack_from("=I", request, 4)[0])
