"""Messages of a broker and its clients: what is sent arrives, what makes no sense is refused, no descriptor leaks."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afxdp_pool import BrokerError, ConfigError, PortConfig, UmemConfig, wire
from afxdp_pool.errors import AfXdpError

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a connection; afterwards there are no more descriptors than before."""
    before = len(os.listdir("/proc/self/fd"))
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.settimeout(20.0)
    other.settimeout(20.0)
    with one, other:
        yield one, other
    assert len(os.listdir("/proc/self/fd")) == before


REQUEST = wire.SocketRequest(
    "eth9", 3, UmemConfig(512, 2048, 64), PortConfig(fill_size=64, fill_level=2, transmit="socket"), b"\0" * 16
)


def test_a_message_arrives_with_its_descriptor(pair: Pair) -> None:
    one, other = pair
    with open(os.devnull) as file:
        wire.send(one, wire.line("/x", "a", 7), fd=file.fileno())
        message = wire.receive(other)
    assert message is not None
    assert (message.verb, message.words, message.stock) == ("/x", ("a", "7"), b"")
    assert message.fd >= 0
    assert not os.get_inheritable(message.fd)
    message.close()
    message.close()


def test_the_end_is_no_message(pair: Pair) -> None:
    pair[0].close()
    assert wire.receive(pair[1]) is None


def test_silence_has_an_end(pair: Pair) -> None:
    pair[1].settimeout(0.01)
    with pytest.raises(BrokerError, match="no answer came in time"):
        wire.receive(pair[1])


def test_one_end_gone_is_an_error_and_no_signal(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(BrokerError, match=r"sending /x failed: .*EPIPE"):
        wire.send(pair[1], "/x")


@pytest.mark.parametrize("number", [2, 3, 4, 5, 100])
def test_several_descriptors_are_refused_and_closed(pair: Pair, number: int) -> None:
    with open(os.devnull) as file:
        fds = array.array("i", [file.fileno()] * number)
        pair[0].sendmsg([b"/x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        with pytest.raises(BrokerError, match="more than one descriptor"):
            wire.receive(pair[1])


def test_a_long_message_is_refused_and_its_descriptor_closed(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with open(os.devnull) as file:
        fds = array.array("i", [file.fileno()])
        pair[0].sendmsg([b"/x" * 50_000], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        with pytest.raises(BrokerError, match="too long"):
            wire.receive(pair[1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.binary(min_size=1, max_size=200) | st.text(max_size=60).map(lambda text: f"/{text}".encode()))
def test_any_bytes_are_a_message_or_refused(pair: Pair, data: bytes) -> None:
    with open(os.devnull) as file:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))
        pair[0].sendmsg([data], [rights])
        try:
            message = wire.receive(pair[1])
        except BrokerError:
            return
    assert message is not None
    assert message.verb.startswith("/")
    message.close()


@given(st.lists(st.text(max_size=50), max_size=20))
def test_a_line_is_always_a_message(words: list[str]) -> None:
    message = wire.Message.parse(wire.line("/xsk_nak", *words).encode())
    assert message.verb == "/xsk_nak"


@given(
    st.sampled_from(["auto", "copy", "zero-copy"]),
    st.integers(1, 1 << 20),
    st.sampled_from([2, 64, 4096]),
    st.booleans(),
    st.sampled_from(["socket", False]),
    st.integers(0, 1000),
)
def test_a_request_says_what_it_was_made_of(mode, frames, size, receive, transmit, us) -> None:  # type: ignore[no-untyped-def]
    port = PortConfig(
        fill_size=size,
        fill_level=2,
        comp_size=size,
        mode=mode,
        receive=receive,
        transmit=transmit if receive else "socket",
        need_wakeup=bool(us % 2),
        busy_poll_us=us,
    )
    asked = replace(REQUEST, umem=UmemConfig(frames, 4096), port=port)
    message = wire.Message.parse(asked.text().encode() + b"\0" + asked.stock)
    read = wire.SocketRequest.read(message)
    # A ring that was not asked for has no size.
    same = replace(read.port, rx_size=port.rx_size, tx_size=port.tx_size)
    assert replace(read, port=same) == asked


def read(text: str, stock: bytes = b"") -> wire.SocketRequest:
    return wire.SocketRequest.read(wire.Message.parse(text.encode() + (b"\0" + stock if stock else b"")))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("frames=512", "frames=0"), "0 frames"),
        (("frames=512", "frames=-1"), "'-1' is not a number"),
        (("frames=512", "frames=99999999999"), "is not a number"),
        (("frames=512", "frames=9999999999"), "frames are not possible"),
        (("frame_size=2048", "frame_size=1"), "frame of 1 bytes"),
        (("headroom=64", "headroom=4000"), "headroom 4000"),
        (("fill=64", "fill=63"), "fill_size 63"),
        (("fill=64, ", ""), "lacks fill"),
        (("fill=64", "fill=64, fill=64"), "there twice"),
        (("fill=64", "fill"), "no part of /xsk_fd"),
        (("fill=64", "full=64"), "no part of /xsk_fd"),
        (("comp=2048", "comp=4194304"), "comp_size"),
        (("auto", "fast"), "mode 'fast'"),
        (("eth9, 3", "eth9, x"), "'x' is not a number"),
        (("/xsk_fd, eth9, 3, auto", "/xsk_fd, eth9"), "lacks frame"),
        (("busy_poll_budget=64", "busy_poll_budget=0"), "busy polling"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(change: tuple[str, str], text: str) -> None:
    good = REQUEST.text()
    assert change[0] in good
    with pytest.raises(ConfigError, match=text):
        read(good.replace(*change))


def test_addresses_that_are_none_or_too_many_are_refused() -> None:
    assert read(REQUEST.text(), b"\0" * 8 * 64).port.fill_level == 64
    for stock in (b"\0" * 9, b"\0" * 8 * 65):
        with pytest.raises(ConfigError, match="bytes of addresses"):
            read(REQUEST.text(), stock)


@settings(max_examples=500)
@given(st.lists(st.sampled_from([*REQUEST.text().split(", "), "x=1", "", "rx=0", "tx=0", "fill=3"]), max_size=16))
def test_any_words_are_a_request_or_refused(words: list[str]) -> None:
    try:
        read(wire.line(wire.SOCKET, *words))
    except AfXdpError as error:
        assert isinstance(error, ConfigError)  # noqa: PT017
