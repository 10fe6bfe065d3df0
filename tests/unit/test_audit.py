"""The audit finds what is wrong and names it. Corruption of every kind is planted in C: tests/native/test_audit.c."""

from __future__ import annotations

import pytest
from support import conserved, elsewhere, small_port

from afxdp_pool import STATES, Audit, AuditError, FramePool, Umem
from afxdp_pool.audit import describe_word
from afxdp_pool.testing.rings import FakeKernel


def test_every_state_is_counted_where_the_frame_is() -> None:
    with conserved(256) as umem, FramePool(umem) as pool:
        port = small_port(pool)
        kernel = FakeKernel(port)
        port.fill(20)
        kernel.deliver(4)
        received = port.receive()
        assert port.transmit(received[:3]) == 3
        posted = pool.alloc(5)
        elsewhere(lambda: pool.put(posted))
        audit = umem.audit().check()
        assert (audit.umem, audit.pool, audit.fill, audit.app, audit.tx) == (192, 44, 16, 1, 3)
        assert audit.inbox == 5
        assert sum(umem.count_states().values()) == 256
        states = umem.states()
        assert [int((states == i).sum()) for i in range(5)] == [192, 44, 16, 1, 3]
        assert str(audit) == "256 frames: umem 192, pool 44, fill 16, app 1, tx 3; all accounted for"
        pool.put(received[3:])


def test_frames_in_flight_fail_an_idle_check_only() -> None:
    with conserved(64) as umem, FramePool(umem) as pool:
        batch = pool.alloc(2)
        audit = umem.audit().check()
        assert not audit.idle
        with pytest.raises(AuditError, match="2 with the application"):
            audit.check(idle=True)
        pool.put(batch)


def test_a_counter_that_lies_is_named() -> None:
    with Umem(256) as umem, FramePool(umem) as pool:
        pool.put(pool.alloc(64))
        pool.native.ncache -= 1  # forget one frame
        audit = umem.audit()
        assert (audit.ok, audit.wrong) == (False, 1)
        assert "marked free, but no list has it (pool, pool 1, 0 references, 0 in TX)" in audit.problems[0]
        with pytest.raises(AuditError, match="1 wrong"):
            audit.check()
        assert "1 WRONG" in str(audit)


def test_of_many_problems_the_first_64_are_named() -> None:
    with Umem(256) as umem, FramePool(umem) as pool:
        pool.put(pool.alloc(128))
        pool.native.ncache -= 100
        audit = umem.audit()
        assert (audit.wrong, len(audit.problems)) == (100, 64)
        with pytest.raises(AuditError, match="36 more"):
            audit.check()


def test_counts_that_do_not_add_up_are_not_ok() -> None:
    assert Audit(10, 5, 1, 1, 1, 1, 0, (), 0).ok is False
    assert Audit(9, 5, 1, 1, 1, 1, 0, (), 0).ok is True


def test_a_word_is_described_in_plain_text() -> None:
    assert STATES == ("umem", "pool", "fill", "app", "tx")
    assert describe_word(7 << 40 | 4 << 36 | 3 << 24 | 1 << 12 | 1) == "tx, pool 3, port 7, 1 references, 1 in TX"
    assert "several ports" in describe_word(255 << 40 | 4 << 36 | 2 << 12 | 2)
    assert describe_word(7 << 36).startswith("state 7")
