"""A DNS server that answers A queries from a table, in the frame that brought the query."""

from __future__ import annotations

import argparse
import ipaddress
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

import common
import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import VethPair

UDP, PORT = 17, 53
A, IN, TTL = 1, 1, 60
RESPONSE, AUTHORITATIVE, TRUNCATED, OPCODE, RECURSE = (
    0x8000,
    0x0400,
    0x0200,
    0x7800,
    0x0100,
)  # flags of a message (RFC 1035, 4.1.1)
FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED = 1, 3, 4
LONGEST = 512  # bytes of a message by UDP
MESSAGE = struct.Struct("!HHHHHH")
RECORD = struct.Struct("!HHHIH4s")
EXAMPLE = ["pool.example=192.0.2.1", "two.pool.example=192.0.2.2", "two.pool.example=192.0.2.3"]
NAME_OF_THE_QUESTION = 0xC000 | MESSAGE.size  # a pointer to it (4.1.4)


@dataclass
class Server:
    """The handler. `table` has addresses by name, the name as it is in a message, in lower case."""

    table: Mapping[bytes, list[bytes]]
    answered: int = 0

    def __call__(self, batch: ap.Batch) -> npt.NDArray[np.uint8]:
        """Write each reply over its query; what is no query is dropped."""
        verdicts = batch.verdicts
        for i, packet in enumerate(batch):
            reply = self.reply(bytes(packet))
            if reply:
                batch.write(i, reply)
                verdicts[i] = ap.TX
        self.answered += batch.fill_checksums(where=verdicts == ap.TX)
        return verdicts

    def reply(self, packet: bytes) -> bytes | None:
        """The packet that answers a packet, its checksums still 0, if it is a query in plain IPv4."""
        if packet[12:15] != b"\x08\x00\x45" or packet[23] != UDP or len(packet) < 42:
            return None
        source, target = packet[26:30], packet[30:34]
        client, port, length, _ = struct.unpack_from("!HHHH", packet, 34)
        answer = self.answer(packet[42 : 34 + length])
        if answer is None:
            return None
        udp = struct.pack("!HHHH", port, client, 8 + len(answer), 0)
        ip = struct.pack("!HHIBBH4s4s", 0x4500, 28 + len(answer), 0x4000, 64, UDP, 0, target, source)
        return packet[6:12] + packet[:6] + packet[12:14] + ip + udp + answer

    def answer(self, query: bytes) -> bytes | None:
        """The message that answers a message; None: it is no query."""
        if len(query) < MESSAGE.size:
            return None
        number, flags, questions, *_ = MESSAGE.unpack_from(query)
        if flags & RESPONSE:
            return None
        name, question = read_question(query)
        flags = RESPONSE | AUTHORITATIVE | flags & (OPCODE | RECURSE)
        if flags & OPCODE:
            return MESSAGE.pack(number, flags | NOT_IMPLEMENTED, 0, 0, 0, 0)
        if questions != 1 or not question:
            return MESSAGE.pack(number, flags | FORMAT_ERROR, 0, 0, 0, 0)
        if name not in self.table:
            return MESSAGE.pack(number, flags | NO_SUCH_NAME, 1, 0, 0, 0) + question
        addresses = self.table[name] if question.endswith(struct.pack("!HH", A, IN)) else []
        records = [RECORD.pack(NAME_OF_THE_QUESTION, A, IN, TTL, 4, address) for address in addresses]
        if MESSAGE.size + len(question) + len(records) * RECORD.size > LONGEST:
            flags, records = flags | TRUNCATED, []
        return MESSAGE.pack(number, flags, 1, len(records), 0, 0) + question + b"".join(records)


def read_question(query: bytes) -> tuple[bytes, bytes]:
    """The first question's name, and the question as it came; empty when there is none."""
    at = MESSAGE.size
    while at < len(query) and 0 < query[at] < 64:  # 64 and more are pointers, which the first name cannot have
        at += 1 + query[at]
    if at + 5 > len(query) or query[at]:
        return b"", b""
    return query[MESSAGE.size : at + 1].lower(), query[MESSAGE.size : at + 5]


def wire_name(name: str) -> bytes:
    """``example.com`` as it is in a message."""
    return b"".join(bytes([len(label)]) + label.lower().encode() for label in name.split(".") if label) + b"\0"


def record(text: str) -> tuple[bytes, bytes]:
    """``example.com=192.0.2.1`` as name and address."""
    name, _, address = text.partition("=")
    return wire_name(name), ipaddress.IPv4Address(address).packed


def demo(pair: VethPair) -> None:
    """A host asks with `dig`, through its kernel's own stack."""
    if not shutil.which("dig"):
        print("(no dig here: nothing was asked. Debian and Ubuntu have it in bind9-dnsutils.)")
        return
    for question in (["pool.example"], ["two.Pool.example"], ["nobody.example"], ["pool.example", "AAAA"]):
        command = ["dig", f"@{pair.near.ipv4}", "+tries=1", "+time=2", "+noall", "+comments", "+answer", *question]
        with in_netns(pair.far.netns):
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        status = next((line.split("status: ")[1].split(",")[0] for line in said if "status: " in line), "no answer")
        found = [line.split()[-1] for line in said if line and not line.startswith(";")]
        print(f"dig {' '.join(question)}:", *[status, *found])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="append", type=record, metavar="NAME=ADDRESS", help="an A record; repeat")
    with common.place(__doc__, "wire", hosts=True, parser=parser) as here:
        table: dict[bytes, list[bytes]] = {}
        for name, address in here.args.record or map(record, EXAMPLE):
            table.setdefault(name, []).append(address)
        server = Server(table)
        options = replace(here.options, rules=[ap.Rule(protocol=UDP, port=PORT)])  # the rest is the kernel's
        with ap.handle(here.names, server, options=options) as forwarder:
            here.run(forwarder, demo)
            print(f"{server.answered} answered")
