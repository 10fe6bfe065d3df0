"""The machine of test_pool_model.py with what holds packets besides: `Frame`, `Frames`, and fragments of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from model_pool import FRAME_SIZE
from test_pool_model import POOLS, PORTS, PoolMachine

from afxdp_pool import DESC, Batch, DoubleFreeError, Frame, FrameGoneError, Frames, PoolError

which_pool, which_port = st.integers(0, POOLS - 1), st.integers(0, PORTS - 1)


@dataclass
class Held:
    """Packets that give themselves back: which of them are gone already, from the first on."""

    what: Frames | Frame
    descs: list[Any]
    gone: int = 0

    @property
    def rest(self) -> list[Any]:
        return self.descs[self.gone :]


class HoldingMachine(PoolMachine):
    """`held` are references of the application's, as `descs`; `fragments` too, of which each has one."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []
        self.fragments: list[Any] = []
        self.gone_fragments: list[Any] = []

    def teardown(self) -> None:
        for held in self.held:
            held.what.close()
        if self.fragments:
            self.umem.put(self.batch(self.fragments))
        for pool in self.pools:
            pool.flush()
        super().teardown()

    def packets(self, descs: list[Any]) -> Batch:
        made = Batch(np.array(descs, DESC), self.umem.data, frame_size=FRAME_SIZE, umem=self.umem)
        made.len[:] = 60
        return made

    def references(self) -> list[Any]:
        return [*self.descs, *(desc for held in self.held for desc in held.rest)]

    # Frame and Frames -----------------------------------------------------------------------------------------------

    @rule(data=st.data(), how=st.sampled_from(["keep", "take over", "keep one"]))
    def hold(self, data: st.DataObject, how: str) -> None:
        picked = self.pick(data, 1 if how == "keep one" else 12)
        if not picked:
            return
        batch = self.packets(picked)
        what: Frames | Frame
        if how == "take over":
            what = Frames(batch)
        else:
            what = batch.keep(0) if how == "keep one" else batch.keep()
            for desc in picked:
                self.model.ref(self.frame(desc))
            self.descs.extend(picked)
        self.held.append(Held(what, picked))

    def some(self, data: st.DataObject) -> tuple[Held, Any, list[Any]]:
        """What is held, a part of it that is not gone, and the part's descriptors."""
        held = data.draw(st.sampled_from(self.held))
        if isinstance(held.what, Frame):
            return held, held.what, held.rest
        n = data.draw(st.integers(0, len(held.rest)))
        return held, held.what[held.gone : held.gone + n], held.rest[:n]

    def left(self, held: Held) -> None:
        assert (held.what.left if isinstance(held.what, Frames) else not held.what.closed) == len(held.rest)
        if not held.rest:
            self.held.remove(held)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), which=which_port)
    def send_what_is_held(self, data: st.DataObject, which: int) -> None:
        held, part, descs = self.some(data)
        sent = self.ports[which].transmit(part)
        for desc in descs[:sent]:
            self.model.send(self.frame(desc), self.port_keys[which])
        self.stale.extend(descs[:sent])
        held.gone += sent
        self.left(held)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), remote=st.booleans())
    def put_what_is_held(self, data: st.DataObject, remote: bool) -> None:
        held, part, descs = self.some(data)
        batch = part.batch if isinstance(part, Frame) else part
        assert self.run(remote, lambda: self.umem.put(batch)) == len(descs)
        for desc in descs:
            self.model.put(self.frame(desc), remote=remote)
        self.stale.extend(descs)
        held.gone += len(descs)
        self.left(held)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), remote=st.booleans(), forget=st.booleans())
    def let_go(self, data: st.DataObject, remote: bool, forget: bool) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if forget:
            remote = False
            with pytest.warns(ResourceWarning, match="given back just now"):
                held.what = None  # type: ignore[assignment]
        else:
            self.run(remote, held.what.close)
            held.what.close()
            assert held.what.closed
        for desc in held.rest:
            self.model.put(self.frame(desc), remote=remote)
        self.stale.extend(held.rest)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def clone(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        if isinstance(held.what, Frame):
            self.held.append(Held(held.what.clone(), list(held.descs)))
            self.model.ref(self.frame(held.descs[0]))

    @precondition(lambda self: any(held.gone for held in self.held))
    @rule(data=st.data(), send=st.booleans())
    def use_what_is_gone(self, data: st.DataObject, send: bool) -> None:
        held = data.draw(st.sampled_from([held for held in self.held if held.gone]))
        assert isinstance(held.what, Frames)
        call: Any = self.ports[0].transmit if send else self.umem.put
        with pytest.raises(FrameGoneError):
            call(held.what[data.draw(st.integers(0, held.gone - 1)) :])

    # Fragments ------------------------------------------------------------------------------------------------------

    @rule(which=which_pool, n=st.integers(0, 30), size=st.integers(1, FRAME_SIZE))
    def cut(self, which: int, n: int, size: int) -> None:
        pool, key = self.pools[which], self.keys[which]
        before = pool.stats()
        batch = pool.alloc_fragments(n, size)
        got = [(int(desc["addr"]), int(desc["len"])) for desc in batch.descs]
        self.collected(which, before)
        if 2 * -(-size // 64) * 64 > FRAME_SIZE:
            self.model.take(key, [addr // FRAME_SIZE for addr, _ in got])
            self.descs.extend(desc.copy() for desc in batch.descs)
            return
        assert got == self.model.cut(key, n, size, [addr // FRAME_SIZE for addr, _ in got])
        self.fragments.extend(desc.copy() for desc in batch.descs)

    def pick_fragments(self, data: st.DataObject) -> list[Any]:
        data.draw(st.randoms(use_true_random=False)).shuffle(self.fragments)
        n = data.draw(st.integers(0, min(30, len(self.fragments))))
        picked, self.fragments = self.fragments[:n], self.fragments[n:]
        return picked

    @precondition(lambda self: self.fragments)
    @rule(data=st.data(), remote=st.booleans(), held=st.booleans())
    def put_fragments(self, data: st.DataObject, remote: bool, held: bool) -> None:
        picked = self.pick_fragments(data)
        if held and picked:  # by who takes them over
            self.run(remote, Frames(self.packets(picked)).close)
        else:
            assert self.run(remote, lambda: self.umem.put(self.batch(picked))) == len(picked)
        for desc in picked:
            self.model.put(self.frame(desc), remote=remote)
        self.gone_fragments.extend(picked)

    @precondition(lambda self: self.fragments)
    @rule(data=st.data(), which=which_port)
    def send_fragments(self, data: st.DataObject, which: int) -> None:
        picked = self.pick_fragments(data)
        sent = self.ports[which].transmit(self.batch(picked))
        for desc in picked[:sent]:
            self.model.send(self.frame(desc), self.port_keys[which])
        self.gone_fragments.extend(picked[:sent])
        self.fragments.extend(picked[sent:])

    @precondition(lambda self: self.gone_fragments)
    @rule(data=st.data(), remote=st.booleans())
    def use_a_fragment_that_is_gone(self, data: st.DataObject, remote: bool) -> None:
        batch = self.batch([data.draw(st.sampled_from(self.gone_fragments))])
        with pytest.raises(DoubleFreeError):
            self.run(remote, lambda: self.umem.put(batch))
        if self.ports[0].ring_levels()["tx"] < 32:
            with pytest.raises(DoubleFreeError):
                self.ports[0].transmit(batch)

    @precondition(lambda self: self.fragments)
    @rule(data=st.data())
    def a_fragment_has_one_reference(self, data: st.DataObject) -> None:
        with pytest.raises(PoolError):
            self.packets([data.draw(st.sampled_from(self.fragments))]).keep()


HoldingMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestHoldingModel = HoldingMachine.TestCase
