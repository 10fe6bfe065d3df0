/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pools and ports against a kernel that writes any address, length, option and index into the rings, and an application that
 * shows any descriptor. No access outside of the Umem and the rings, no frame twice at home, none lost, the audit whole at all times.
 */
#include "input.h"

#define TAP_RING 4096u

struct stage {
	struct afp_live live;
	struct afp_live_ring ring;
};

static struct input *playing;

/* In place of BPF_PROG_RUN: takes some of the frames, and says anything about them. */
static int play(struct afp_live *live, uint32_t n, uint32_t longest)
{
	static const int errors[] = {0, 0, 0, 0, -4, -11, -12, -22};
	struct afp_live_ring *ring = live->ring;
	uint32_t some = take(playing, 1) & 1 ? n : below(playing, n + 1 < 256 ? n + 1 : 256);

	CHECK(longest >= AFP_LIVE_SHORTEST && longest <= AFP_LIVE_LONGEST);
	ring->consumer += some;
	ring->delivered += below(playing, 64);
	ring->dropped += below(playing, 4);
	ring->error = -(int)below(playing, 2);
	ring->pools_left = (int8_t)take(playing, 1);
	return errors[below(playing, 8)];
}

static struct afp_desc any_desc(struct world *w, struct input *in)
{
	struct afp_desc d;

	if (w->nheld && take(in, 1) & 3) { /* of a frame we hold, or held, with or without a mistake */
		d = w->held[below(in, w->nheld)];
		switch (take(in, 1) & 7) {
		case 0:
			d.gen += 1;
			break;
		case 1:
			d.addr ^= take(in, 8);
			break;
		case 2:
			d.len = (uint32_t)take(in, 4);
			break;
		}
		return d;
	}
	return (struct afp_desc){any_address(w, in), (uint32_t)take(in, 2), (uint16_t)(take(in, 1) & 1), (uint16_t)take(in, 1)};
}

static void send(struct world *w, struct input *in)
{
	struct afp_port *port = w->port[below(in, PORTS)];
	struct afp_refusals refused = {0};
	uint32_t n = below(in, 24), sent;

	if (take(in, 1) & 1) { /* ours, from the last on */
		n = n < w->nheld ? n : w->nheld;
		w->nheld -= n;
		for (uint32_t i = 0; i < n; i++)
			w->held[w->nheld + i].len = w->held[w->nheld + i].len ? w->held[w->nheld + i].len : 60;
		sent = afp_port_transmit(port, w->held + w->nheld, n, &refused);
		memmove(w->held + w->nheld, w->held + w->nheld + sent, (n - sent) * sizeof(w->held[0]));
		w->nheld += n - sent;
	} else {
		struct afp_desc d = any_desc(w, in);

		CHECK(afp_port_transmit(port, &d, 1, &refused) <= 1);
	}
	CHECK(refused.n <= 1);
}

static void give_back(struct world *w, struct input *in)
{
	struct afp_refusals refused = {0};
	struct afp_desc some[16];
	uint32_t n = below(in, 16), done, from = w->nheld ? below(in, w->nheld) : 0;

	switch (take(in, 1) & 3) {
	case 0: /* anything */
		for (uint32_t i = 0; i < n; i++)
			some[i] = any_desc(w, in);
		CHECK_EQ(afp_put(&w->t, some, n, &refused) + refused.n, n);
		break;
	case 1: /* one more reference each: all of them ours, or refused */
		for (uint32_t i = 0; i < n; i++)
			some[i] = any_desc(w, in);
		if (w->nheld + n <= HELD && !afp_keep_all(&w->t, some, n, &done))
			hold(w, some, n);
		break;
	default: /* ours */
		n = n < w->nheld - from ? n : w->nheld - from;
		afp_put_all(&w->t, w->held + from, n);
		memmove(w->held + from, w->held + from + n, (w->nheld - from - n) * sizeof(w->held[0]));
		w->nheld -= n;
	}
}

static void get(struct world *w, struct input *in)
{
	struct afp_pool *pool = w->pool[below(in, 2)];
	struct afp_desc some[64];
	uint32_t n = below(in, 64), size = (uint32_t)take(in, 2) & 0xfff;
	int got = take(in, 1) & 1 ? afp_pool_alloc_fragments(pool, some, n, size) : afp_pool_alloc(pool, some, n);

	CHECK(got <= (int)n);
	if (got > 0)
		hold(w, some, (uint32_t)got);
}

static void take_tap(struct afp_tap_ring *ring)
{
	static uint8_t out[TAP_RING];
	static uint32_t starts[TAP_RING / 32];
	uint64_t n = afp_tap_take(ring, out, TAP_RING);

	CHECK(afp_tap_walk(out, n, starts) <= TAP_RING / 32);
}

static void step(struct world *w, struct input *in, struct stage *stage)
{
	uint32_t i = below(in, PORTS), levels[4];
	struct afp_port *port = w->port[i];
	struct afp_desc some[64];
	struct afp_turn turn;

	switch (take(in, 1) % 14) {
	case 0:
		CHECK(afp_port_fill(port, below(in, 64)) >= AFP_CLOSED);
		break;
	case 1:
		hold(w, some, afp_port_receive(port, some, below(in, 64)));
		break;
	case 2:
	case 3:
		send(w, in);
		break;
	case 4:
	case 5:
		give_back(w, in);
		break;
	case 6:
		get(w, in);
		break;
	case 7:
		afp_port_complete(port, below(in, 64));
		break;
	case 8:
		afp_port_kick(port);
		break;
	case 9:
		afp_port_recycle(port, &turn);
		afp_port_ring_levels(port, levels);
		break;
	case 10:
		serve(w, in);
		break;
	case 11:
	case 12:
		lie(w, in);
		break;
	case 13:
		if (below(in, 8)) { /* from here on frames of the pool go by its inbox */
			afp_pool_unbind(w->pool[below(in, 2)]);
			break;
		}
		if (i == 1)
			afp_live_forget(&stage->live);
		afp_port_free(port);
		open_port(w, i);
		if (i == 1)
			afp_port_set_live(w->port[i], &stage->live);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t tapped[TAP_RING];
	static struct stage stage;
	static struct world w;
	struct input in = {data, size};
	struct afp_tap_ring ring = {tapped, TAP_RING, 0, 0};
	struct afp_tap tap = {.ring = &ring, .ways = 3};

	playing = &in;
	begin(&w, &in);
	stage.ring.producer = stage.ring.consumer = (uint32_t)take(&in, 4);
	stage.ring.pools_left = 0;
	afp_live_init(&stage.live, &stage.ring, -1, take(&in, 1) & 1 ? 1 : AFP_LIVE_LEAST);
	afp_live_play(&stage.live, play, NULL);
	afp_port_set_live(w.port[1], &stage.live);
	tap.snaplen = (uint32_t)take(&in, 2);
	afp_port_set_tap(w.port[0], &tap);
	for (uint32_t n = 0; in.left; n++) {
		step(&w, &in, &stage);
		if (n % 8 == 0)
			check_whole(&w.t);
		take_tap(&ring);
	}
	end(&w);
	return 0;
}
