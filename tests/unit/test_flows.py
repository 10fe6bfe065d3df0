"""Flow rules: as the kernel's own header lays them out, and back."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afxdp_pool import ConfigError, FlowRule
from afxdp_pool.ethtool import RULE_SIZE

# The same rules in C: fields and masks (m) of struct ethtool_rx_flow_spec.
IN_C = {
    "udp4": ("f.flow_type = UDP_V4_FLOW; f.h_u.udp_ip4_spec.pdst = htons(4242); f.m_u.udp_ip4_spec.pdst = 0xffff;"
             "f.h_u.udp_ip4_spec.ip4dst = htonl(0x0a000000); f.m_u.udp_ip4_spec.ip4dst = htonl(0xff000000);"
             "f.ring_cookie = 3; f.location = 7;",
             FlowRule(3, protocol=17, port=4242, network="10.0.0.0/8", location=7)),
    "tcp6": ("f.flow_type = TCP_V6_FLOW; f.h_u.tcp_ip6_spec.psrc = htons(80); f.m_u.tcp_ip6_spec.psrc = 0xffff;"
             "f.h_u.tcp_ip6_spec.ip6src[0] = htonl(0xfd000000); f.m_u.tcp_ip6_spec.ip6src[0] = htonl(0xff000000);"
             "f.ring_cookie = RX_CLS_FLOW_DISC; f.location = RX_CLS_LOC_ANY;",
             FlowRule("drop", protocol=6, source_port=80, source_network="fd00::/8")),
    "ip4": ("f.flow_type = IP_USER_FLOW | FLOW_MAC_EXT; f.h_u.usr_ip4_spec.ip_ver = ETH_RX_NFC_IP4;"
            "f.h_u.usr_ip4_spec.proto = 47; f.m_u.usr_ip4_spec.proto = 0xff;"
            "memcpy(f.h_ext.h_dest, mac, 6); memset(f.m_ext.h_dest, 0xff, 6); f.ring_cookie = 1;",
            FlowRule(1, protocol=47, mac="02:00:00:00:00:01", location=0)),
    "ip6": ("f.flow_type = IPV6_USER_FLOW; f.h_u.usr_ip6_spec.l4_proto = 58; f.m_u.usr_ip6_spec.l4_proto = 0xff;"
            "f.ring_cookie = 2; f.location = 1;", FlowRule(2, protocol=58, ip=6, location=1)),
    "ether": ("f.flow_type = ETHER_FLOW | FLOW_EXT; memcpy(f.h_u.ether_spec.h_dest, mac, 6);"
              "memset(f.m_u.ether_spec.h_dest, 0xff, 6); f.h_u.ether_spec.h_proto = htons(0x88f7);"
              "f.m_u.ether_spec.h_proto = 0xffff; f.h_ext.vlan_tci = htons(5 << 13 | 100);"
              "f.m_ext.vlan_tci = htons(0xefff); f.ring_cookie = 0; f.location = 2;",
              FlowRule(0, mac="02-00-00-00-00-01", ethertype=0x88F7, vlan=100, vlan_priority=5, location=2)),
}  # fmt: skip


def test_as_the_kernel_s_header_has_it(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    lines = [
        "#include <linux/ethtool.h>",
        "#include <arpa/inet.h>",
        "#include <stdio.h>",
        "#include <string.h>",
        "static void show(struct ethtool_rx_flow_spec *f)",
        '{ for (unsigned i = 0; i < sizeof(*f); i++) printf("%02x", ((unsigned char *)f)[i]); puts(""); }',
        "int main(void) { unsigned char mac[6] = {2, 0, 0, 0, 0, 1}; struct ethtool_rx_flow_spec f;",
        *("memset(&f, 0, sizeof(f)); " + code + " show(&f);" for code, _ in IN_C.values()),
        "return 0; }",
    ]
    (tmp_path / "rules.c").write_text("\n".join(lines))
    subprocess.run([compiler, "-o", tmp_path / "rules", tmp_path / "rules.c"], check=True, timeout=60)
    shown = subprocess.run([tmp_path / "rules"], capture_output=True, text=True, check=True, timeout=10).stdout.split()
    for theirs, (_, rule) in zip(shown, IN_C.values(), strict=True):
        assert len(theirs) == 2 * RULE_SIZE
        assert rule.pack().hex() == theirs, str(rule)
        assert FlowRule.unpack(bytes.fromhex(theirs)) == rule


@given(
    protocol=st.sampled_from([None, 6, 17, 47, 132]),
    port=st.none() | st.integers(0, 65535),
    source=st.none() | st.ip_addresses(v=4).map(str),
    vlan=st.none() | st.integers(0, 4095),
    mac=st.none() | st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")),
    queue=st.integers(0, 255) | st.just("drop"),
)
def test_there_and_back(**fields: object) -> None:
    try:
        rule = FlowRule(
            fields["queue"],  # type: ignore[arg-type]
            **{
                {"source": "source_network"}.get(name, name): value for name, value in fields.items() if name != "queue"
            },  # type: ignore[arg-type]
        )
    except ConfigError:
        return  # a port without a protocol that has some, or nothing at all
    assert FlowRule.unpack(rule.pack()) == rule


@given(st.binary(min_size=RULE_SIZE, max_size=RULE_SIZE))
def test_whatever_a_driver_tells_is_read_or_not(raw: bytes) -> None:
    rule = FlowRule.unpack(raw)
    assert rule is None or FlowRule.unpack(rule.pack()) == rule


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "would take every packet"),
        ({"port": 53}, "ports are those of a protocol"),
        ({"port": 53, "protocol": 1}, "ports are those of a protocol"),
        ({"protocol": 17, "port": 65536}, "port is 0 to 65535"),
        ({"vlan": 4096}, "vlan is 0 to 4095"),
        ({"network": "10.0.0.1/8"}, "host bits set"),
        ({"network": "10.0.0.0/8", "source_network": "fd00::/8"}, "exclude each other"),
        ({"network": "10.0.0.0/8", "ip": 6}, "exclude each other"),
        ({"ip": 5}, "no IP version 5"),
        ({"mac": "02:00"}, "not a MAC address"),
        ({"ethertype": 0x0806, "protocol": 17}, "do not go with fields of IP"),
    ],
)
def test_rules_that_mean_nothing(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FlowRule(0, **fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no queue -1"):
        FlowRule(-1, protocol=17)


def test_a_rule_as_people_write_it() -> None:
    rule = FlowRule("drop", protocol=17, port=53, source_network="fd00::1", location=3)
    assert str(rule) == "ip=6,protocol=17,port=53,source_network=fd00::1/128,queue=drop,location=3"
    assert str(FlowRule(1, ethertype=0x88F7)) == "ethertype=0x88f7,queue=1"


def test_a_rule_that_chooses_by_more_is_none_of_ours() -> None:
    spec = bytearray(FlowRule(1, protocol=17, port=53).pack())
    assert FlowRule.unpack(bytes(spec)) is not None
    spec[4 + 52 + 20 + 12] = 0xFF  # the mask of TOS
    assert FlowRule.unpack(bytes(spec)) is None
