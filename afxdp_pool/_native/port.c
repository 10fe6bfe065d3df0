/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames between a pool and the kernel's rings: see port.h. */
#include "metadata.h"
#include "multi.h"
#include "requests.h"

int afp_port_fill(struct afp_port *port, uint32_t n)
{
	struct afp_table *t = port->table;
	/* POOL becomes FILL, held by this port, the next generation: one addition, as the fields do not overflow. */
	const uint64_t change = word_make(1, port->id, AFP_FILL, 0, 0, 0) - word_make(0, 0, AFP_POOL, 0, 0, 0);
	uint32_t done = 0;
	int err;

	if (unlikely(!port->pool || !port->fill.ring))
		return 0;
	err = port_bind_pool(port);
	if (unlikely(err))
		return err;
	while (done < n) {
		uint32_t frames[AFP_REFILL], index = 0;
		uint32_t want = n - done < AFP_REFILL ? n - done : AFP_REFILL;
		uint32_t room = xsk_prod_nb_free(&port->fill, want);
		uint32_t got = afp_pool_take(port->pool, frames, room < want ? room : want);

		if (!got)
			break;
		xsk_ring_prod__reserve(&port->fill, got, &index);
		for (uint32_t i = 0; i < got; i++) {
			uint64_t w;

			if (unlikely(__builtin_add_overflow(word_load(t, frames[i]), change, &w)))
				afp_wrap_generation(t, frames[i], &w);
			word_store(t, frames[i], w);
			*xsk_ring_prod__fill_addr(&port->fill, index + i) = (uint64_t)frames[i] << t->frame_shift;
		}
		for (uint32_t i = 0; unlikely(t->block_frames) && i < got; i++)
			*xsk_ring_prod__fill_addr(&port->fill, index + i) = frame_addr(t, frames[i]);
		xsk_ring_prod__submit(&port->fill, got);
		done += got;
		if (got < want)
			break;
	}
	if (done)
		bump(&port->stat[P_FILL], done);
	return (int)done;
}

uint32_t afp_port_receive(struct afp_port *port, struct afp_desc *out, uint32_t n)
{
	struct afp_table *t = port->table;
	const uint64_t filled = word_make(0, port->id, AFP_FILL, 0, 0, 0), ours = word_make(0, 0, AFP_APP, 0, 0, 1);
	const uint32_t offset_mask = t->frame_size - 1;
	uint32_t index = 0, good = 0;
	uint64_t bytes = 0;

	if (unlikely(!port->rx.ring))
		return 0;
	if (unlikely(port->by_packet))
		return afp_receive_packets(port, out, n, n);
	n = xsk_ring_cons__peek(&port->rx, n, &index);
	if (!n)
		return 0;
	for (uint32_t i = 0; i < n; i++) {
		struct xdp_desc desc = *xsk_ring_cons__rx_desc(&port->rx, index + i);
		uint32_t frame = frame_direct(t, desc.addr);
		uint64_t w;

		if (unlikely(frame == AFP_NO_FRAME))
			continue;
		w = word_load(t, frame);
		if (unlikely((w & (AFP_STATE_MASK | AFP_HOLDER_MASK)) != filled ||
			     desc.len > t->frame_size - (desc.addr & offset_mask)))
			continue;
		word_store(t, frame, w - filled + ours);
		out[good++] = (struct afp_desc){desc.addr, desc.len, (uint16_t)desc.options, word_gen(w)};
		bytes += desc.len;
	}
	xsk_ring_cons__release(&port->rx, n);
	bump(&port->stat[P_RX], good);
	bump(&port->stat[P_RX_BYTES], bytes);
	if (unlikely(good < n))
		bump(&port->stat[P_RX_BAD], n - good);
	if (unlikely(port->wants_metadata))
		afp_port_learn(port, out, good);
	if (unlikely(port_tapped(port)))
		afp_port_tap(port, out, good, AFP_IN);
	return good;
}

/* The common case, in one comparison: a frame of this thread's own pool, held by nobody else and not given back. */
static inline bool lend_direct(struct afp_port *port, const struct afp_pool *mine, const struct afp_desc *desc)
{
	struct afp_table *t = port->table;
	uint64_t gen = (uint64_t)desc->gen << AFP_GEN_SHIFT;
	uint32_t frame = frame_direct(t, desc->addr);

	if (unlikely(!mine || frame == AFP_NO_FRAME || word_load(t, frame) != (mine->in_app | gen) ||
		     atomic_load_explicit(&t->returned[frame], memory_order_relaxed) == desc->gen))
		return false;
	word_store(t, frame, word_in_tx(mine, port->id) | gen);
	return true;
}

#define AHEAD 12 /* packets whose heads are fetched while one is staged */

uint32_t afp_port_transmit(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused)
{
	const struct afp_table *t = port->table;
	const struct afp_pool *mine = port->pool && owned_by(port->pool, afp_self()) ? port->pool : NULL;
	struct afp_live *live = port->live;
	struct xdp_desc *ring = live ? live->ring->desc : port->tx.ring;
	const uint32_t mask = live ? AFP_LIVE_RING - 1 : port->tx.mask;
	const uint32_t index = live ? live->ring->producer : port->tx.cached_prod;
	uint32_t done;
	uint64_t bytes = 0;

	if (unlikely(!port->tx.ring))
		return 0;
	if (unlikely(port->by_packet))
		return afp_transmit_packets(port, descs, n, refused);
	if (unlikely(port->sends_requests))
		return afp_transmit_requests(port, descs, n, refused);
	n = port_tx_room(port, n);
	for (done = 0; done < n; done++) {
		const struct afp_desc *desc = &descs[done];
		enum afp_reason reason = AFP_OK;

		/* Options mean a request or a packet in several parts, for which this socket is not bound. */
		if (unlikely(!desc->len || desc->options || desc->len > t->frame_size - (desc->addr & (t->frame_size - 1))))
			reason = desc->addr < t->size ? AFP_INVALID : AFP_FOREIGN;
		else if (unlikely(!lend_direct(port, mine, desc)))
			reason = afp_port_lend(port, desc);
		if (unlikely(reason != AFP_OK)) {
			afp_refuse(port->table, refused, done, desc->addr, reason);
			break;
		}
		if (live && desc->len <= AFP_LIVE_SHORTEST) {
			/* Another core wrote it: several such lines at once are on their way here. */
			if (done + AHEAD < n)
				__builtin_prefetch((const void *)((uintptr_t)t->area + desc[AHEAD].addr));
			live_head(live, index + done, t->area + desc->addr, t->size - desc->addr);
		}
		ring[(index + done) & mask] = (struct xdp_desc){desc->addr, desc->len, 0};
		bytes += desc->len;
	}
	if (!done)
		return 0;
	if (unlikely(port_tapped(port)))
		afp_port_tap(port, descs, done, AFP_OUT);
	if (live) {
		__atomic_store_n(&live->ring->producer, index + done, __ATOMIC_RELEASE);
	} else {
		port->tx.cached_prod += done;
		xsk_ring_prod__submit(&port->tx, done);
	}
	bump(&port->stat[P_TX], done);
	bump(&port->stat[P_TX_BYTES], bytes);
	return done;
}

uint32_t afp_port_transmit_noted(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused,
				 uint32_t *done)
{
	return *done = afp_port_transmit(port, descs, n, refused);
}

uint32_t afp_port_submit(struct afp_port *port, const struct afp_desc *descs, uint32_t n, uint64_t bytes)
{
	if (!n)
		return 0;
	if (unlikely(port_tapped(port)))
		afp_port_tap(port, descs, n, AFP_OUT);
	port->tx.cached_prod += n;
	xsk_ring_prod__submit(&port->tx, n);
	bump(&port->stat[P_TX], n);
	bump(&port->stat[P_TX_BYTES], bytes);
	return n;
}

/* A reference comes back from this port's TX ring. */
static enum afp_reason back_from_tx(struct afp_port *port, struct afp_box *box, uint32_t frame)
{
	struct afp_table *t = port->table;
	uint64_t w = word_load(t, frame), next;

	if (likely(box->direct &&
		   afp_recycle_direct(t, box, frame, w, word_in_tx(box->direct, port->id) | (w & AFP_GEN_MASK))))
		return AFP_OK;
	if (unlikely(word_state(w) != AFP_TX))
		return AFP_NOT_HELD;
	if (likely(word_holder(w) == port->id))
		return afp_go_home(t, box, frame, w, AFP_TX);
	if (word_holder(w) != AFP_SEVERAL || !port->sent_clones || !port->sent_clones[frame])
		return AFP_NOT_HELD;
	for (;;) {
		if (word_refs(w) == 1) {
			enum afp_reason reason = afp_go_home(t, box, frame, w, AFP_TX);
			if (reason == AFP_OK)
				port->sent_clones[frame]--;
			return reason;
		}
		next = w - AFP_ONE_REF - AFP_ONE_TX;
		if (!word_tx(next))
			next = (next & ~(AFP_STATE_MASK | AFP_HOLDER_MASK)) | (uint64_t)AFP_APP << AFP_STATE_SHIFT;
		if (atomic_compare_exchange_weak_explicit(&t->word[frame], &w, next, memory_order_release, memory_order_relaxed)) {
			port->sent_clones[frame]--;
			return AFP_OK;
		}
	}
}

/* `stride` bytes from entry to entry, each beginning with an address. Stops at the first there is no memory to post. */
static inline __attribute__((always_inline)) uint32_t come_home(struct afp_port *port, const void *ring, size_t stride,
								uint32_t mask, uint32_t index, uint32_t n, bool direct)
{
	struct afp_table *t = port->table;
	struct afp_box box;
	uint32_t bad = 0, i;

	afp_box_open(&box, n);
#define ADDRESS(i) *(const uint64_t *)((const uint8_t *)ring + ((index + (i)) & mask) * stride)
/* Linux 6.18 gives an odd address back as the even one before it, which may be the last of another frame. */
#define FRAME_AT(i) (direct ? frame_direct(t, ADDRESS(i)) : frame_of(t, ADDRESS(i) | 1))
	for (i = 0; i < n; i++) {
		uint32_t frame = FRAME_AT(i);
		enum afp_reason reason = frame == AFP_NO_FRAME ? AFP_FOREIGN : back_from_tx(port, &box, frame);

		if (unlikely(reason == AFP_NO_MEMORY))
			break;
		bad += reason != AFP_OK;
	}
	ACQUIRE_FRAMES(t, k, i, FRAME_AT(k));
#undef FRAME_AT
#undef ADDRESS
	afp_box_flush(&box);
	bump(&port->stat[P_COMPLETED], i - bad);
	if (unlikely(bad))
		bump(&port->stat[P_COMP_BAD], bad);
	return i;
}

uint32_t afp_port_come_home(struct afp_port *port, const struct xdp_desc *ring, uint32_t mask, uint32_t index, uint32_t n)
{
	return come_home(port, ring, sizeof(*ring), mask, index, n, true);
}

uint32_t afp_port_complete(struct afp_port *port, uint32_t n)
{
	uint32_t told = port->live ? afp_live_tell(port->live, n) : 0;

	return told + afp_socket_complete(port, n - told);
}

uint32_t afp_socket_complete(struct afp_port *port, uint32_t n)
{
	uint64_t before = port_count(port, P_COMPLETED);
	uint32_t index = 0, done, home;

	if (unlikely(!port->comp.ring))
		return 0;
	n = xsk_ring_cons__peek(&port->comp, n, &index);
	if (!n)
		return 0;
	if (unlikely(port->stamps))
		afp_port_keep_stamps(port, index, n);
	if (likely(!port->table->block_frames))
		done = come_home(port, port->comp.ring, sizeof(uint64_t), port->comp.mask, index, n, true);
	else
		done = come_home(port, port->comp.ring, sizeof(uint64_t), port->comp.mask, index, n, false);
	home = (uint32_t)(port_count(port, P_COMPLETED) - before);
	if (unlikely(port->by_packet))
		afp_count_completed(port, index, done, home);
	xsk_ring_cons__cancel(&port->comp, n - done); /* the rest stays in the ring until there is memory to post them */
	xsk_ring_cons__release(&port->comp, done);
	return home;
}

int afp_port_recycle(struct afp_port *port, struct afp_turn *out)
{
	int owned = port->pool ? port_bind_pool(port) : 0;
	uint32_t want;

	*out = (struct afp_turn){.completed = afp_port_complete(port, AFP_REFILL)};
	for (uint32_t more = out->completed; more;) {
		more = afp_port_complete(port, AFP_REFILL);
		out->completed += more;
	}
	want = port->pool && port->fill.ring ? port_fill_want(port) : 0;
	if (want) {
		if (!owned)
			(void)afp_port_fill(port, want);
		/* Few are no danger: it is topped up in bulk, and packets that arrive will bring the next turn. */
		if (port_in_fill(port) <= port->fill_level / 2)
			out->missing = port->fill_level - port_in_fill(port);
	}
	if (port->tx.ring && port_pending(port))
		out->error = -afp_port_kick(port);
	if (!out->error)
		out->error = afp_port_ask(port);
	out->waiting = port->rx.ring ? xsk_cons_nb_avail(&port->rx, UINT32_MAX) : 0;
	out->in_tx = port_in_tx(port);
	return owned;
}

/* The socket is closed, so the kernel has let go: every frame it had comes home. Frames are found by their words. */
void afp_port_reclaim(struct afp_port *port)
{
	struct afp_table *t = port->table;
	struct afp_box box = {.self = afp_self(), .room = AFP_REFILL};
	uint64_t filled = 0, sent = 0;

	for (uint32_t frame = 0; frame < t->nframes; frame++) {
		uint64_t w = word_load(t, frame);
		bool mine = word_holder(w) == port->id;

		if (mine && word_state(w) == AFP_FILL) {
			/* The port's own for a moment, as if it had been received. */
			uint64_t ours = word_make(word_gen(w), 0, AFP_APP, word_owner(w), 0, 1);

			word_store(t, frame, ours);
			if (likely(afp_go_home(t, &box, frame, ours, AFP_APP) == AFP_OK))
				filled++;
			else
				word_store(t, frame, w); /* no memory to post it: it stays where it was, for an audit to name */
		} else if (mine && word_state(w) == AFP_TX &&
			   atomic_load_explicit(&t->completed[frame], memory_order_relaxed) != word_gen(w)) {
			/* What is completed, and posted to its owner, is on its way home already. */
			sent += back_from_tx(port, &box, frame) == AFP_OK;
		}
		while (port->sent_clones && port->sent_clones[frame] && back_from_tx(port, &box, frame) == AFP_OK)
			sent++;
		/* Flush often: a box has room for so many posts a pool. */
		if (frame % (AFP_REFILL / 2) == 0)
			afp_box_flush(&box);
	}
	afp_box_flush(&box);
	bump(&port->stat[P_FILL_RECLAIMED], filled);
	bump(&port->stat[P_TX_RECLAIMED], sent);
}
