/* SPDX-License-Identifier: BSD-3-Clause */
/* Live-frame transmit: which way staged packets go, and the runs. See live.h. */
#include "live.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <string.h>

#include "engine.h"

#ifndef BPF_F_TEST_XDP_LIVE_FRAMES
#define BPF_F_TEST_XDP_LIVE_FRAMES (1u << 1) /* Linux 5.18 */
#endif
#define INTERRUPTIONS 8

/* What the pages are made of before the program writes to them. */
static const uint8_t blank[4096];

static int run_program(struct afp_live *live, uint32_t n, uint32_t longest)
{
	LIBBPF_OPTS(bpf_test_run_opts, options,
		.data_in = blank,
		.data_size_in = longest,
		.repeat = (int)n,
		.batch_size = AFP_LIVE_BATCH,
		.flags = BPF_F_TEST_XDP_LIVE_FRAMES,
	);

	return bpf_prog_test_run_opts(live->program, &options) ? -errno : 0;
}

void afp_live_init(struct afp_live *live, struct afp_live_ring *ring, int program, uint32_t least)
{
	memset(live, 0, sizeof(*live));
	live->ring = ring;
	live->program = program;
	live->least = least;
	live->longest = AFP_LIVE_LONGEST;
	live->run = run_program;
	live->home = ring->producer = ring->consumer;
}

void afp_live_play(struct afp_live *live, afp_live_run run, void *user)
{
	live->run = run;
	live->user = user;
}

void afp_live_read_stats(const struct afp_live *live, struct afp_live_stats *out)
{
	uint64_t *field = &out->frames;

	for (int i = 0; i < AFP_LIVE_STATS; i++)
		field[i] = atomic_load_explicit(&live->stat[i], memory_order_relaxed);
}

void afp_port_set_live(struct afp_port *port, struct afp_live *live)
{
	port->live = port->by_packet ? NULL : live; /* what goes by packet has no stage */
}

uint32_t afp_live_tell(struct afp_live *live, uint32_t n)
{
	n = n < live->untold ? n : live->untold;
	live->untold -= n;
	return n;
}

void afp_live_forget(struct afp_live *live)
{
	live->home = live->ring->consumer = live->ring->producer;
	live->untold = 0;
}

static void highest(_Atomic uint64_t *stat, uint64_t value)
{
	if (value > atomic_load_explicit(stat, memory_order_relaxed))
		atomic_store_explicit(stat, value, memory_order_relaxed);
}

static void in_trouble(struct afp_live *live, enum afp_trouble trouble, int error, uint64_t not_before_ns)
{
	live->trouble = (int)trouble;
	live->error = error;
	live->not_before_ns = not_before_ns;
}

/* Frames that are copied out come home. False when there was no memory to post some of them: then nothing moves on. */
static bool bring_home(struct afp_port *port)
{
	struct afp_live *live = port->live;
	uint32_t n = live->ring->consumer - live->home;

	if (n)
		live->home += afp_port_come_home(port, live->ring->desc, AFP_LIVE_RING - 1, live->home, n);
	return live->home == live->ring->consumer;
}

static inline bool goes_live(const struct afp_live *live, uint32_t len)
{
	return len >= AFP_LIVE_MINIMUM && len <= live->longest;
}

/* Packets at the head of the stage that one run can take, and the longest of them; or, if *live_ones is false, that it can't. */
static uint32_t head_of(const struct afp_live *live, uint32_t n, bool *live_ones, uint32_t *longest)
{
	const struct xdp_desc *desc = live->ring->desc;
	uint32_t at = live->ring->consumer, i, most = AFP_LIVE_SHORTEST;

	n = n < AFP_LIVE_SLICE ? n : AFP_LIVE_SLICE;
	*live_ones = goes_live(live, desc[at & (AFP_LIVE_RING - 1)].len);
	for (i = 0; i < n; i++) {
		uint32_t len = desc[(at + i) & (AFP_LIVE_RING - 1)].len;

		if (goes_live(live, len) != *live_ones)
			break;
		most = len > most ? len : most;
	}
	*longest = most;
	return i;
}

/* One run. False when no frame of it went anywhere: they are staged still. */
static bool send_live(struct afp_live *live, uint32_t n, uint32_t longest, uint64_t now)
{
	struct afp_live_ring *ring = live->ring;
	const uint32_t from = ring->consumer;
	const uint64_t delivered = ring->delivered, dropped = ring->dropped;
	uint64_t sent, took, refused, left;
	int err, tries = 0;

	ring->error = 0;
	do {
		/* A signal ends a run early; the consumer index says where. */
		err = live->run(live, n - (ring->consumer - from), longest);
	} while (err == -EINTR && ring->consumer - from < n && ++tries < INTERRUPTIONS);
	__atomic_store_n(&ring->task, 0, __ATOMIC_RELAXED);
	live->last_ns = afp_now_ns();
	took = live->last_ns - now;
	n = ring->consumer - from;
	sent = ring->delivered - delivered;
	refused = ring->dropped - dropped;
	left = (uint64_t)__atomic_load_n(&ring->pools_left, __ATOMIC_RELAXED);

	bump(&live->stat[L_SLICES], 1);
	highest(&live->stat[L_LONGEST], took);
	if (unlikely(took > AFP_LIVE_STALL_NS))
		bump(&live->stat[L_STALLS], 1);
	atomic_store_explicit(&live->stat[L_POOLS], left, memory_order_relaxed);
	highest(&live->stat[L_POOLS_MOST], left);
	if (unlikely(err && err != -EINTR && !n)) {
		bool passes = err == -ENOMEM || err == -ENOSPC || err == -EAGAIN || err == -EBUSY;

		in_trouble(live, AFP_LIVE_FAILED, -err, passes ? live->last_ns + AFP_LIVE_RETRY_NS : UINT64_MAX);
		return false;
	}
	if (unlikely(n && !sent && (!refused || ring->error < 0))) {
		/* Nobody has these frames: they go by the socket, which waits, or says what is wrong. */
		in_trouble(live, refused ? AFP_LIVE_UNABLE : AFP_LIVE_SILENT, -ring->error, live->last_ns + AFP_LIVE_RETRY_NS);
		ring->consumer = from;
		bump(&live->stat[L_RESENT], n);
		return false;
	}
	bump(&live->stat[L_FRAMES], n);
	bump(&live->stat[L_DELIVERED], sent);
	bump(&live->stat[L_DROPPED], n - sent);
	return n > 0;
}

/* Into the socket's TX ring, as far as that has room; how many. */
static uint32_t move_to_socket(struct afp_port *port, uint32_t n)
{
	struct afp_live *live = port->live;
	uint32_t room = xsk_prod_nb_free(&port->tx, n), at = port->tx.cached_prod;

	n = n < room ? n : room;
	for (uint32_t i = 0; i < n; i++)
		*xsk_ring_prod__tx_desc(&port->tx, at + i) = live->ring->desc[(live->home + i) & (AFP_LIVE_RING - 1)];
	port->tx.cached_prod += n;
	xsk_ring_prod__submit(&port->tx, n);
	live->ring->consumer = live->home += n;
	return n;
}

enum way { BY_SOCKET, LIVE, WAIT };

static enum way choose(struct afp_port *port, uint32_t n, uint64_t now)
{
	struct afp_live *live = port->live;
	int64_t left = __atomic_load_n(&live->ring->pools_left, __ATOMIC_RELAXED);
	int32_t under_way;

	if (n < (left > 0 && live->least < AFP_LIVE_LARGE ? AFP_LIVE_LARGE : live->least))
		return BY_SOCKET;
	if (unlikely(live->trouble && now < live->not_before_ns))
		return BY_SOCKET;
	if (unlikely(left > 0)) {
		if (left >= AFP_LIVE_POOLS) {
			in_trouble(live, AFP_LIVE_POOLED, 0, now);
			return BY_SOCKET;
		}
		if (now - live->last_ns < AFP_LIVE_SELDOM_NS)
			return BY_SOCKET;
	}
	/* What went by the socket leaves first. Less than none: a completion of what is still staged, by a kernel that lies. */
	under_way = (int32_t)(port_in_tx(port) - (live->ring->producer - live->home));
	if (unlikely(under_way > 0)) {
		under_way -= (int32_t)afp_socket_complete(port, (uint32_t)under_way);
		if (under_way && !live->waiting_ns)
			live->waiting_ns = now;
		if (under_way)
			return now - live->waiting_ns < AFP_LIVE_WAIT_NS ? WAIT : BY_SOCKET;
	}
	live->waiting_ns = 0;
	return LIVE;
}

int afp_live_kick(struct afp_port *port)
{
	const uint64_t completed = port_count(port, P_COMPLETED);
	struct afp_live *live = port->live;
	int err = 0;

	if (unlikely(!port->tx.ring))
		return 0;
	live->held = 0;
	if (ring_pending(&port->tx))
		err = afp_socket_kick(port);
	while (!err && bring_home(port) && live_staged(live)) {
		uint64_t now = afp_now_ns();
		uint32_t longest, n;
		bool fits;
		enum way way;

		n = head_of(live, live_staged(live), &fits, &longest);
		way = fits ? choose(port, n, now) : BY_SOCKET;
		if (way == WAIT)
			break;
		if (way == LIVE && send_live(live, n, longest, now))
			continue;
		n = move_to_socket(port, n);
		err = afp_socket_kick(port);
		if (!n || ring_pending(&port->tx))
			break; /* the rest next time: completions make room */
	}
	live->untold += (uint32_t)(port_count(port, P_COMPLETED) - completed);
	return err;
}
