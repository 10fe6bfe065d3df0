"""Where the supported libxdp, libbpf and kernel headers differ: what each does by itself, and that it is the same here.

Which of the two is expected is said by the version alone. `make test-debian12` and `make test-debian13` take one branch
each, and would fail on the other's.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest

from afxdp_pool import hook as xdp
from afxdp_pool._native import ffi, lib
from afxdp_pool.errors import NoSuchInterfaceError
from afxdp_pool.info import library_version
from afxdp_pool.netdev import in_netns
from afxdp_pool.program import XdpProgram
from afxdp_pool.testing import Lab

ROOT = Path(__file__).resolve().parents[2]
#: Constants that the C defines for itself where the headers are older: header, value, since which Linux.
NEWER_THAN_DEBIAN_12 = {
    "BPF_F_XDP_DEV_BOUND_ONLY": ("linux/bpf.h", 1 << 6, (6, 3)),
    "XDP_USE_SG": ("linux/if_xdp.h", 1 << 4, (6, 6)),
    "XDP_UMEM_TX_SW_CSUM": ("linux/if_xdp.h", 1 << 1, (6, 8)),
    "XDP_UMEM_TX_METADATA_LEN": ("linux/if_xdp.h", 1 << 2, (6, 11)),
    "XDP_MAX_TX_SKB_BUDGET": ("linux/if_xdp.h", 9, (6, 17)),
}


def version(library: str) -> tuple[int, ...]:
    return tuple(int(part) for part in library_version(library).split(".")[:2])


def descriptors() -> set[int]:
    """Those this process has open, without that of the listing."""
    listed = os.listdir("/proc/self/fd")
    return {int(fd) for fd in listed if os.path.lexists(f"/proc/self/fd/{fd}")}


def preprocessed(text: str) -> str:
    """What the C preprocessor makes of a text."""
    flags = subprocess.run(["pkg-config", "--cflags", "libxdp", "libbpf"], check=True, capture_output=True, text=True)
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-E", "-P", f"-I{ROOT}/afxdp_pool/_native", "-xc", "-"]
    return subprocess.run(
        [*command, *flags.stdout.split()], input=text, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("library", ["libxdp", "libbpf"])
def test_what_is_loaded_is_what_it_was_built_against(library: str) -> None:
    asked = subprocess.run(["pkg-config", "--modversion", library], check=True, capture_output=True, text=True)
    assert version(library) == tuple(int(part) for part in asked.stdout.split(".")[:2])
    assert version(library) >= {"libxdp": (1, 3), "libbpf": (1, 1)}[library]


@pytest.mark.parametrize("name", NEWER_THAN_DEBIAN_12)
def test_a_constant_is_that_of_the_headers_where_they_have_it(name: str) -> None:
    header, value, since = NEWER_THAN_DEBIAN_12[name]
    told = preprocessed(
        f"#include <{header}>\n#include <linux/version.h>\n#ifdef {name}\nhas\n#endif\nLINUX_VERSION_CODE"
    )
    code = int(told.split()[-1])
    assert (told.split()[-2] == "has") == ((code >> 16, code >> 8 & 255) >= since)
    told = preprocessed(
        f'#include "engine.h"\n#include "requests.h"\n#include "bpf_glue.h"\n#include "live.h"\n= {name}'
    )
    number = re.sub(r"[()uU\s]", "", told.rpartition("=")[2])
    assert eval(number) == value


def test_a_device_that_is_gone(lab: Lab) -> None:
    """libbpf says so since it asks for the device's features as well; before, that there is nothing on it."""
    link = lab.veth("gone").near
    with in_netns(link.netns):
        subprocess.run(["ip", "link", "del", link.name], check=True)
        told = lib.afp_xdp_query(link.ifindex, ffi.new("struct afp_hook *"))
        assert told == (-errno.ENODEV if version("libbpf") >= (1, 2) else 0)
        assert xdp.look(link.ifindex) == xdp.Hook(link.ifindex, "", None)
    with pytest.raises(NoSuchInterfaceError):
        XdpProgram(link.name, netns=link.netns)


@pytest.mark.parametrize("by", ["libxdp itself", "us"])
def test_descriptors_kept_when_a_program_comes_off(lab: Lab, by: str) -> None:
    """libxdp before 1.5 keeps one, and with it the program; that is why it is not asked to take a lone program off."""
    link = lab.veth("a").near
    with XdpProgram(link.name, netns=link.netns, attach="libxdp") as program, in_netns(link.netns):
        before = descriptors()
        attachment = program._libxdp
        assert attachment is not None
        if by == "us":
            attachment.detach()
        else:
            assert lib.xdp_program__detach(attachment._program, link.ifindex, lib.XDP_MODE_NATIVE, 0) == 0
        assert xdp.look(link.ifindex).program is None
        kept = descriptors() - before
        for fd in kept:
            os.close(fd)
    assert len(kept) == (1 if by != "us" and version("libxdp") < (1, 5) else 0)
