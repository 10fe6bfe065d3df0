"""A guest with NICs that do zero-copy, booted for the tests of this folder, and for those of tests/conformance.

``python tests/nic/machine.py [arguments of pytest]``; a folder or file among these is run instead of this one.

QEMU emulates igb, virtio_net and vmxnet3 NICs, wired back to back, and a Debian kernel's own drivers run them. The
guest's files are the host's, read-only; what it finds it writes into one folder. It ends by itself, or at a deadline.
The host's interfaces are not involved: QEMU runs in a network namespace of its own, which goes when it ends.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from packages import Machine, Missing, get_machine

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
MODULES = ("9p", "9pnet_virtio", "virtio_pci", "virtio_net", "igb", "vmxnet3", "veth", "sch_netem")
SECONDS, KVM_SECONDS = 2400, 20
QUEUES = 2  # of v0

#: Name in the guest, MAC address, the cable it is on. Those of number 0 are the engine's, of number 1 the far ends.
NICS = {
    "i0": ("52:54:00:00:01:10", 1),
    "i1": ("52:54:00:00:01:11", 1),
    "v0": ("52:54:00:00:02:10", 2),
    "v1": ("52:54:00:00:02:11", 2),
    "w0": ("52:54:00:00:03:10", 3),
    "x0": ("52:54:00:00:04:10", 4),
    "x1": ("52:54:00:00:04:11", 4),
}
_VIRTIO = "disable-legacy=on,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_csum=off"
#: The cable between v0 and v1 where there are tap devices: QEMU gives a NIC several queues, and a hash of each packet,
#: on no other. The bridge learns nothing, as QEMU's own hub, and
#: is not to drop what the host's netfilter finds wrong in a packet.
TAP_CABLE = """
quiet="net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
unfiltered="net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"
for one in $quiet $unfiltered; do sysctl -qw "$one" 2>/dev/null; done
set -e
ip link add cable type bridge stp_state 0 ageing_time 0 mcast_snooping 0
ip tuntap add v0 mode tap vnet_hdr multi_queue
ip tuntap add v1 mode tap vnet_hdr
for tap in v0 v1; do ip link set "$tap" mtu 9200 master cable; ip link set "$tap" up; done
ip link set cable up
exec "$@"
"""


def in_own_namespace(*command: str) -> list[str]:
    """That command in a network namespace that has the cable of tap devices and nothing else."""
    return ["unshare", "--net", "sh", "-c", TAP_CABLE, "cable", *command]


def taps() -> bool:
    """Whether this machine has tap devices for the guest."""
    return subprocess.run(in_own_namespace("true"), capture_output=True, timeout=60).returncode == 0


def nic_arguments(tap_cable: bool) -> Iterator[str]:
    """QEMU's arguments for the NICs. w0 is a virtio_net as it comes, whose driver refuses zero-copy."""
    for slot, (name, (mac, cable)) in enumerate(NICS.items(), 1):
        common, more = f"netdev={name},mac={mac}", ""
        if name.startswith("v") and tap_cable:
            queues = f",queues={QUEUES}" if name == "v0" else ""
            more = ",mq=on,rss=on,hash=on" if name == "v0" else ""
            yield from ("-netdev", f"tap,id={name},ifname={name},script=no,downscript=no,vhost=off{queues}")
        else:
            yield from ("-netdev", f"hubport,id={name},hubid={cable}")
        if name.startswith("i"):  # it has SR-IOV, and wants a port of its own for that
            yield from ("-device", f"pcie-root-port,id=port{slot},chassis={slot},slot={slot}")
            yield from ("-device", f"igb,{common},bus=port{slot}")
        elif name.startswith("x"):
            yield from ("-device", f"vmxnet3,{common}")
        else:
            iommu = "" if name == "w0" else ",iommu_platform=on"
            yield from ("-device", f"virtio-net-pci,{common},{_VIRTIO}{iommu}{more}")


def module_files(kernel: Path, names: Sequence[str]) -> list[Path]:
    """The modules, each after those it depends on. What is built in has no file."""
    files = {re.sub(r"\.ko.*", "", path.name).replace("-", "_"): path for path in kernel.glob("kernel/**/*.ko*")}
    ordered: dict[Path, None] = {}

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in ordered:
            return
        found = re.search(rb"\0depends=([^\0]*)\0", contents(path))
        for other in found[1].decode().split(",") if found else ():
            add(other)
        ordered[path] = None

    for name in names:
        add(name)
    return list(ordered)


def contents(module: Path) -> bytes:
    """A module as the kernel takes it."""
    data = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(data)
    if module.suffix == ".ko":
        return data
    raise Missing(f"{module.name} is compressed in a way that is not read here")


def make_initramfs(machine: Machine, out: Path) -> None:
    """Busybox, the modules and init.sh, as a cpio archive."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        (root / "bin").mkdir()
        (root / "modules").mkdir()
        shutil.copy(machine.busybox, root / "bin" / "busybox")
        shutil.copy(HERE / "init.sh", root / "init")
        (root / "init").chmod(0o755)
        names = []
        for path in module_files(machine.kernel, MODULES):
            names.append(re.sub(r"\.ko.*", ".ko", path.name))
            (root / "modules" / names[-1]).write_bytes(contents(path))
        (root / "modules" / "list").write_text("".join(f"{name}\n" for name in names))
        listed = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        archive = subprocess.run(
            [str(machine.busybox), "cpio", "-o", "-H", "newc"], cwd=root, input=listed.encode(), capture_output=True
        )
        out.write_bytes(archive.stdout)


def guest_script(arguments: Sequence[str]) -> str:
    """What the guest runs: names and places for the NICs, then pytest."""
    lines = [
        "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1 "
        f"PYTHONPATH={shlex.quote(str(HERE))} AFXDP_POOL_NIC_GUEST=/mnt "
        "AFXDP_CONFORMANCE_RESULTS=/mnt/conformance.json",
        "ulimit -l unlimited; sysctl -qw vm.nr_hugepages=64",
        "ip link set lo up; ip netns add engine; ip netns add traffic",
        f"cd {shlex.quote(str(REPOSITORY))}",
    ]
    for name, (mac, _) in NICS.items():
        space = "traffic" if name.endswith("1") else "engine"
        lines += [
            f"old=$(grep -l {mac} /sys/class/net/*/address | cut -d/ -f5)",
            f'ip link set "$old" name {name} && ip link set {name} netns {space}',
            f"ip netns exec {space} sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1",
            f"ip -n {space} link set {name} up; ip netns exec {space} ethtool -L {name} combined 1 2>/dev/null",
            f"ip netns exec {space} ethtool -K {name} rxhash on >/dev/null 2>&1",  # virtio_net tells no hash without
        ]
    colour = "yes" if sys.stdout.isatty() else "no"
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        "-p",
        "in_guest",
        "--timeout=400",
        f"--color={colour}",
        "--confcutdir",
        str(HERE),
        *(() if any(Path(one.partition("::")[0]).exists() for one in arguments) else (str(HERE),)),
    ]
    lines += [
        "[ -z \"$(ip -br link | grep -v '^lo')\" ] || { echo 'a NIC has no place'; exit 1; }",
        f"{shlex.join([*pytest, *arguments])} 2>&1",
        "echo $? > /mnt/code",
        "dmesg > /mnt/dmesg",
    ]
    return "\n".join(lines) + "\n"


class Guest:
    """A machine, ready to boot. `folder` is what it writes to."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine, self.folder, self.taps = machine, folder, taps()
        self.initramfs = folder / "initramfs"
        make_initramfs(machine, self.initramfs)

    def boot(self, script: str, accel: str, seconds: float, *, show: bool = True) -> bool:
        """Run `script` in the guest; whether it ended by itself."""
        (self.folder / "run.sh").write_text(script)
        dies = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # with who waits for it here
        qemu = ["env", f"LD_LIBRARY_PATH={self.machine.library_path}", *self.machine.qemu]
        command = [
            *dies,
            *(in_own_namespace(*qemu) if self.taps else qemu),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-machine", "q35", "-accel", accel, "-cpu", "max", "-smp", "2", "-m", "2048"),
            *("-kernel", str(self.machine.vmlinuz), "-initrd", str(self.initramfs)),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0"),
            *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={self.folder},mount_tag=results,security_model=none"),
            *nic_arguments(self.taps),
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            late = threading.Timer(seconds, process.kill)
            late.start()
            try:
                for line in process.stdout:
                    text = line.decode(errors="replace").replace("\r", "")
                    if show and "is not connected to host network" not in text:
                        print(text, end="", flush=True)
            finally:
                process.kill()
                late.cancel()
        return process.returncode == 0

    def accelerator(self) -> str:
        """``"kvm"`` where a guest with these NICs boots under it, else software emulation."""
        alive = self.folder / "alive"
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.boot("echo yes > /mnt/alive\n", "kvm", KVM_SECONDS, show=False)
        return "kvm" if alive.exists() else "tcg,thread=multi"


def main(arguments: Sequence[str]) -> int:
    """Boot it, run the tests, say how it went."""
    if os.geteuid() != 0:
        print("tests/nic: skipped: the guest reads this machine's files as root; run it as root")
        return 0
    try:
        machine = get_machine()
    except Missing as error:
        print(f"tests/nic: skipped: {error}")
        return 0
    with tempfile.TemporaryDirectory(prefix="afxdp-nic-") as made:
        folder = Path(made)
        guest = Guest(machine, folder)
        accel = guest.accelerator()
        if not guest.taps:
            print("tests/nic: no tap devices can be made here: virtio_net has one queue, and tells no hash")
        print(
            f"tests/nic: Linux {machine.kernel.name} in QEMU ({accel.partition(',')[0]}), igb, virtio_net and vmxnet3"
        )
        ended = guest.boot(guest_script(arguments), accel, SECONDS)
        for name in ("results.json", "conformance.json", "dmesg"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(folder / name, HERE / f"last-{name}")  # for whoever asks why; not committed
        code = folder / "code"
        if not ended or not code.exists():
            print("tests/nic: the guest did not come to its end")
            return 1
        return int(code.read_text())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
