"""A guest with NICs that do zero-copy, booted for the tests of this folder, and for those of tests/conformance.

``python tests/nic/machine.py [arguments of pytest]``; a folder or file among these is run instead of this one.

QEMU emulates igb and virtio_net NICs, wired back to back, and the real drivers of a Debian kernel run them. The guest's
files are the host's, read-only; what it finds it writes into one folder. It ends by itself, or at a deadline.
The host's interfaces are not involved.
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
MODULES = ("9p", "9pnet_virtio", "virtio_pci", "virtio_net", "igb", "veth", "sch_netem")
SECONDS, KVM_SECONDS = 2400, 20

#: Name in the guest, MAC address, the cable it is on. i0, v0 and w0 are the engine's, i1 and v1 the far ends.
NICS = {
    "i0": ("52:54:00:00:01:10", 1),
    "i1": ("52:54:00:00:01:11", 1),
    "v0": ("52:54:00:00:02:10", 2),
    "v1": ("52:54:00:00:02:11", 2),
    "w0": ("52:54:00:00:03:10", 3),
}
_VIRTIO = "disable-legacy=on,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_csum=off"


def nic_arguments() -> Iterator[str]:
    """QEMU's arguments for the NICs. w0 is a virtio_net as it comes, whose driver refuses zero-copy."""
    for slot, (name, (mac, cable)) in enumerate(NICS.items(), 1):
        yield from ("-netdev", f"hubport,id={name},hubid={cable}")
        common = f"netdev={name},mac={mac}"
        if name.startswith("i"):  # it has SR-IOV, and wants a port of its own for that
            yield from ("-device", f"pcie-root-port,id=port{slot},chassis={slot},slot={slot}")
            yield from ("-device", f"igb,{common},bus=port{slot}")
        else:
            iommu = "" if name == "w0" else ",iommu_platform=on"
            yield from ("-device", f"virtio-net-pci,{common},{_VIRTIO}{iommu}")


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
        self.machine, self.folder = machine, folder
        self.initramfs = folder / "initramfs"
        make_initramfs(machine, self.initramfs)

    def boot(self, script: str, accel: str, seconds: float, *, show: bool = True) -> bool:
        """Run `script` in the guest; whether it ended by itself."""
        (self.folder / "run.sh").write_text(script)
        dies = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # with who waits for it here
        command = [
            *dies,
            *self.machine.qemu,
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-machine", "q35", "-accel", accel, "-cpu", "max", "-smp", "2", "-m", "2048"),
            *("-kernel", str(self.machine.vmlinuz), "-initrd", str(self.initramfs)),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0"),
            *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={self.folder},mount_tag=results,security_model=none"),
            *nic_arguments(),
        ]
        environment = {**os.environ, "LD_LIBRARY_PATH": self.machine.library_path}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
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
        print(f"tests/nic: Linux {machine.kernel.name} in QEMU ({accel.partition(',')[0]}), igb and virtio_net")
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
