/* SPDX-License-Identifier: BSD-3-Clause */
/* A port over rings in plain memory: the honest kernel, the lying one, and the one that goes away. */
#include "fake.h"

#include <unistd.h>

static uint32_t transmit(struct afp_port *port, const struct afp_desc *d, uint32_t n)
{
	struct afp_refusals refused = {0};

	return afp_port_transmit(port, d, n, &refused);
}

static void packets_go_round_across_the_wrap_of_every_index(struct afp_table *t)
{
	struct afp_port *port = fake_pair(t, 32, 32);
	struct afp_port_stats s;
	struct afp_desc d[64];

	fake_start(port, UINT32_MAX - 50);
	for (int round = 0; round < 30; round++) {
		CHECK_EQ(afp_port_fill(port, 20), 20);
		fake_deliver(t, port, 20, 100, (uint8_t)round);
		CHECK_EQ(afp_port_receive(port, d, 64), 20);
		for (int i = 0; i < 20; i++)
			CHECK_EQ(t->area[d[i].addr + 99], (uint8_t)(round + i));
		CHECK_EQ(transmit(port, d, 20), 20);
		CHECK_EQ(fake_send(port), 20);
		CHECK_EQ(afp_port_complete(port, 64), 20);
		check_whole(t);
	}
	afp_port_read_stats(port, &s);
	CHECK_EQ(s.rx_packets, 600);
	CHECK_EQ(s.tx_completed, 600);
	CHECK_EQ(s.rx_bytes, 60000);
	CHECK_EQ(s.tx_bytes, 60000);
	fake_close(port);
}

static void full_rings_are_counts(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 8, 8);
	struct afp_desc d[20];

	fake_start(port, UINT32_MAX - 3);
	CHECK_EQ(afp_port_fill(port, 100), 8);
	CHECK_EQ(afp_port_fill(port, 1), 0);
	CHECK_EQ(afp_pool_alloc(p, d, 20), 20);
	for (int i = 0; i < 20; i++)
		d[i].len = 1;
	CHECK_EQ(transmit(port, d, 20), 8);
	CHECK_EQ(transmit(port, d + 8, 12), 0);
	fake_take_tx(port);
	CHECK_EQ(transmit(port, d + 8, 12), 1);
	fake_comp(port, d[0].addr);
	CHECK_EQ(fake_send(port), 7);
	CHECK_EQ(afp_port_complete(port, 3), 3);
	CHECK_EQ(fake_send(port), 1);
	/* libxdp looks for new entries when it has none left of those it saw. */
	CHECK_EQ(afp_port_complete(port, 64) + afp_port_complete(port, 64), 6);
	CHECK_EQ(put(t, d + 9, 11), 11);
	fake_close(port);
}

static void every_lie_is_counted_and_harmless(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 64, 16);
	struct afp_desc d[64], held[4];
	struct afp_port_stats s;
	uint64_t x = SEED, filled;

	CHECK_EQ(afp_pool_alloc(p, held, 4), 4);
	for (int i = 0; i < 4; i++)
		held[i].len = 60;
	CHECK_EQ(afp_port_fill(port, 1), 1);
	filled = fake_take_fill(port);
	CHECK_EQ(transmit(port, held, 2), 2);
	for (int round = 0; round < 2000; round++) {
		for (int i = 0; i < 32; i++) {
			uint64_t addr;

			next_random(&x);
			/* Half of them inside the Umem; never what was really handed over. */
			addr = x & 1 ? x : (x >> 8) % t->size;
			if (frame_of(t, addr) == frame_of(t, filled) || frame_of(t, addr) == frame_of(t, held[0].addr) ||
			    frame_of(t, addr) == frame_of(t, held[1].addr))
				addr = t->size;
			fake_rx(port, addr, (uint32_t)(x >> 32));
			fake_comp(port, addr);
		}
		CHECK_EQ(afp_port_receive(port, d, 64), 0);
		CHECK_EQ(afp_port_complete(port, 64), 0);
	}
	/* Right address, wrong length: one byte beyond the frame. */
	fake_rx(port, filled + 256, FRAME_SIZE - 255);
	fake_rx(port, filled, UINT32_MAX);
	CHECK_EQ(afp_port_receive(port, d, 64), 0);
	fake_rx(port, filled + 256, FRAME_SIZE - 256);
	CHECK_EQ(afp_port_receive(port, d, 64), 1);
	CHECK_EQ(put(t, d, 1), 1);
	afp_port_read_stats(port, &s);
	CHECK_EQ(s.rx_bad, 64002);
	CHECK_EQ(s.completion_bad, 64000);
	check_whole(t);
	fake_comp(port, held[1].addr);
	fake_comp(port, held[1].addr);
	fake_comp(port, held[0].addr + 77);
	CHECK_EQ(afp_port_complete(port, 64), 2);
	CHECK_EQ(put(t, held + 2, 2), 2);
	fake_close(port);
}

static void anothers_frame_is_no_packet_of_ours(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *mine = fake_port(t, p, 64, 16), *its = fake_port(t, p, 64, 16);
	struct afp_port_stats s;
	struct afp_desc d[4];
	uint64_t addr;

	CHECK_EQ(afp_port_fill(mine, 4), 4);
	CHECK_EQ(afp_port_fill(its, 4), 4);
	addr = fake_take_fill(its) + 256;
	fake_rx(mine, addr, 60);
	CHECK_EQ(afp_port_receive(mine, d, 4), 0);
	afp_port_read_stats(mine, &s);
	CHECK_EQ(s.rx_bad, 1);
	check_whole(t);
	fake_rx(its, addr, 60);
	CHECK_EQ(afp_port_receive(its, d, 4), 1);
	CHECK_EQ(put(t, d, 1), 1);
	afp_port_free(mine);
	fake_close(its);
}

/* RX returns what is in FILL, COMPLETION what is in TX, each its own port's. */
static void each_ring_returns_what_it_was_given(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *mine = fake_port(t, p, 64, 16), *its = fake_port(t, p, 64, 16);
	struct afp_port_stats s;
	struct afp_desc d, none;
	uint64_t filled;

	CHECK_EQ(afp_port_fill(mine, 1), 1);
	filled = fake_take_fill(mine);
	CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
	d.len = 60;
	CHECK_EQ(transmit(mine, &d, 1), 1);
	fake_comp(mine, filled);
	fake_rx(mine, d.addr, 60);
	fake_comp(its, d.addr);
	fake_comp(its, filled);
	CHECK_EQ(afp_port_complete(mine, 64), 0);
	CHECK_EQ(afp_port_receive(mine, &none, 1), 0);
	CHECK_EQ(afp_port_complete(its, 64), 0);
	afp_port_read_stats(mine, &s);
	CHECK_EQ(s.completion_bad, 1);
	CHECK_EQ(s.rx_bad, 1);
	afp_port_read_stats(its, &s);
	CHECK_EQ(s.completion_bad, 2);
	check_whole(t);
	CHECK_EQ(audit(t).state[AFP_FILL], 1);
	CHECK_EQ(audit(t).state[AFP_TX], 1);
	CHECK_EQ(fake_send(mine), 1);
	CHECK_EQ(afp_port_complete(mine, 64), 1);
	afp_port_free(mine);
	fake_close(its);
}

/* The first completion came while nobody owned the pool, and waits in its inbox; the second comes to the owner. */
static void a_completion_that_is_posted_is_not_honoured_again(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 64, 16);
	struct afp_port_stats s;
	struct afp_desc d[4];

	CHECK_EQ(afp_pool_alloc(p, d, 4), 4);
	for (int i = 0; i < 4; i++)
		d[i].len = 60;
	CHECK_EQ(transmit(port, d, 4), 4);
	CHECK_EQ(afp_pool_unbind(p), 0);
	fake_comp(port, d[0].addr);
	CHECK_EQ(afp_port_complete(port, 64), 1);
	CHECK_EQ(afp_pool_bind(p), 0);
	fake_comp(port, d[1].addr);
	fake_comp(port, d[0].addr);
	fake_comp(port, d[2].addr);
	fake_comp(port, d[3].addr);
	CHECK_EQ(afp_port_complete(port, 64), 3);
	afp_port_read_stats(port, &s);
	CHECK_EQ(s.completion_bad, 1);
	check_whole(t);
	CHECK_EQ(afp_pool_collect(p), 1);
	fake_close(port);
}

static void what_the_kernel_would_refuse_is_refused_here(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 64, 16);
	struct afp_desc d;
	const struct {
		uint32_t offset, len;
		int good;
	} at[] = {{0, 0, 0}, {0, 1, 1}, {0, 4096, 1}, {0, 4097, 0}, {1, 4096, 0}, {4095, 1, 1}, {4095, 2, 0}, {256, UINT32_MAX, 0}};

	for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		struct afp_refusals refused = {0};

		CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
		d.addr += at[i].offset;
		d.len = at[i].len;
		CHECK_EQ(afp_port_transmit(port, &d, 1, &refused), at[i].good);
		CHECK_EQ(refused.n, !at[i].good);
		if (at[i].good) {
			CHECK_EQ(fake_send(port), 1);
			CHECK_EQ(afp_port_complete(port, 1), 1);
		} else {
			CHECK_EQ(refused.item[0].reason, AFP_INVALID);
			CHECK_EQ(put(t, &d, 1), 1);
		}
	}
	fake_close(port);
}

static void clones_come_home_by_any_way(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port[3] = {fake_port(t, p, 64, 16), fake_port(t, p, 64, 16), fake_port(t, p, 64, 16)};
	struct afp_refusals refused = {0};

	/* Bit i of `lost`: port i closes instead of completing. */
	for (unsigned lost = 0; lost < 8; lost++) {
		struct afp_desc d;

		CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
		d.len = 60;
		for (int i = 0; i < 3; i++)
			CHECK_EQ(afp_ref(t, &d, 1, &refused), 1);
		for (int i = 0; i < 3; i++)
			CHECK_EQ(transmit(port[i], &d, 1), 1);
		check_whole(t);
		for (int i = 0; i < 3; i++) {
			if (lost & 1u << i) {
				afp_port_free(port[i]);
				port[i] = fake_port(t, p, 64, 16);
			} else {
				CHECK_EQ(fake_send(port[i]), 1);
				CHECK_EQ(afp_port_complete(port[i], 1), 1);
			}
			check_whole(t);
		}
		CHECK_EQ(put(t, &d, 1), 1);
		CHECK_EQ(put(t, &d, 1), 0);
	}
	for (int i = 0; i < 3; i++)
		afp_port_free(port[i]);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

/* Generation 0 is never given out, and claims of the number that comes next are of lives long over. */
static void generations_wrap_on_their_way_through_fill(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 64, 64);
	struct afp_refusals refused = {0};
	struct afp_desc d[64];

	CHECK_EQ(afp_pool_alloc(p, d, 64), 64);
	for (int i = 0; i < 64; i++) {
		uint32_t frame = frame_of(t, d[i].addr);

		word_store(t, frame, word_load(t, frame) | AFP_GEN_MASK);
		d[i].gen = UINT16_MAX;
		atomic_store(&t->returned[frame], 1);
		atomic_store(&t->completed[frame], 1);
	}
	CHECK_EQ(put(t, d, 64), 64);
	CHECK_EQ(afp_port_fill(port, 64), 64);
	check_whole(t);
	fake_deliver(t, port, 64, 60, 0);
	CHECK_EQ(afp_port_receive(port, d, 64), 64);
	for (int i = 0; i < 64; i++)
		CHECK_EQ(d[i].gen, 1);
	CHECK_EQ(afp_ref(t, d, 64, &refused), 64);
	CHECK_EQ(put(t, d, 64), 64);
	CHECK_EQ(transmit(port, d, 64), 64);
	CHECK_EQ(fake_send(port), 64);
	CHECK_EQ(afp_port_complete(port, 64), 64);
	fake_close(port);
}

static void what_is_with_a_ring_is_not_put(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 8, 8);
	struct afp_refusals refused = {0};
	struct afp_desc d[2];

	CHECK_EQ(afp_pool_alloc(p, d, 2), 2);
	d[0].len = d[1].len = 60;
	CHECK_EQ(transmit(port, d, 1), 1);
	CHECK_EQ(afp_put(t, d, 1, &refused), 0);
	CHECK_EQ(refused.item[0].reason, AFP_NOT_HELD);
	/* Of two references one: the other is its holder's still. */
	CHECK_EQ(afp_ref(t, d + 1, 1, &refused), 1);
	CHECK_EQ(transmit(port, d + 1, 1), 1);
	CHECK_EQ(put(t, d + 1, 1), 1);
	CHECK_EQ(put(t, d + 1, 1), 0);
	CHECK_EQ(transmit(port, d, 2), 0);
	CHECK_EQ(afp_ref(t, d, 2, &refused), 0);
	check_whole(t);
	CHECK_EQ(audit(t).state[AFP_TX], 2);
	CHECK_EQ(fake_send(port), 2);
	CHECK_EQ(afp_port_complete(port, 8), 2);
	CHECK_EQ(put(t, d, 2), 0);
	fake_close(port);
}

/* Who has how many clones is counted in a byte, port by port. */
static void a_port_takes_255_clones_of_one_frame(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port[2] = {fake_port(t, p, 512, 8), fake_port(t, p, 512, 8)};
	struct afp_refusals refused = {0};
	struct afp_desc d;

	CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
	d.len = 60;
	for (int i = 0; i < 600; i++)
		CHECK_EQ(afp_ref(t, &d, 1, &refused), 1);
	for (int i = 0; i < 2; i++) {
		for (int n = 0; n < 255; n++)
			CHECK_EQ(transmit(port[i], &d, 1), 1);
		refused.n = 0;
		CHECK_EQ(afp_port_transmit(port[i], &d, 1, &refused), 0);
		CHECK_EQ(refused.item[0].reason, AFP_TOO_MANY_REFS);
	}
	check_whole(t);
	CHECK_EQ(fake_send(port[0]), 255);
	CHECK_EQ(afp_port_complete(port[0], 512), 255);
	CHECK_EQ(transmit(port[0], &d, 1), 1);
	for (int i = 0; i < 2; i++)
		afp_port_free(port[i]);
	for (int i = 0; i < 90; i++)
		CHECK_EQ(put(t, &d, 1), 1);
	CHECK_EQ(put(t, &d, 1), 0);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void closing_reclaims_all_and_only_its_own(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0), *other = afp_pool_create(t, 64, 0);
	struct afp_port *mine = fake_port(t, p, 64, 64), *its = fake_port(t, other, 64, 64);
	struct afp_desc d[40];
	struct afp_port_stats s;

	CHECK_EQ(afp_port_fill(mine, 64), 64);
	CHECK_EQ(afp_port_fill(its, 64), 64);
	CHECK_EQ(afp_pool_alloc(other, d, 40), 40);
	for (int i = 0; i < 40; i++)
		d[i].len = 60;
	CHECK_EQ(transmit(mine, d, 30), 30);
	CHECK_EQ(transmit(its, d + 30, 10), 10);
	afp_port_close(mine);
	afp_port_close(mine);
	check_whole(t);
	CHECK_EQ(audit(t).state[AFP_FILL], 64);
	CHECK_EQ(audit(t).state[AFP_TX], 10);
	afp_port_read_stats(mine, &s);
	CHECK_EQ(s.fill_reclaimed, 64);
	CHECK_EQ(s.tx_reclaimed, 30);
	fake_close(mine);
	fake_close(its);
}

static void a_pool_may_close_before_its_ports(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 64, 64);
	struct afp_desc d[8];

	CHECK_EQ(afp_port_fill(port, 64), 64);
	CHECK_EQ(afp_pool_alloc(p, d, 8), 8);
	for (int i = 0; i < 8; i++)
		d[i].len = 60;
	CHECK_EQ(transmit(port, d, 8), 8);
	CHECK_EQ(afp_pool_destroy(p), 0);
	fake_send(port);
	CHECK_EQ(afp_port_complete(port, 64), 8);
	fake_deliver(t, port, 10, 60, 0);
	CHECK_EQ(afp_port_receive(port, d, 8), 8);
	CHECK_EQ(put(t, d, 8), 8);
	CHECK_EQ(afp_port_fill(port, 1), AFP_CLOSED);
	CHECK_EQ(afp_pool_life(p), AFP_DETACHED);
	afp_port_free(port);
	CHECK_EQ(afp_pool_life(p), AFP_DEAD);
	CHECK_EQ(t->nfree, FRAMES);
}

static void fill_is_wanted_in_bulk_but_never_left_empty(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);

	for (uint32_t level = 1; level <= 256; level += level < 8 ? 1 : 31) {
		struct afp_port *port = fake_port(t, p, 256, level);

		CHECK_EQ(port_fill_want(port), level);
		CHECK_EQ(afp_port_fill(port, level), level);
		CHECK_EQ(port_fill_want(port), 0);
		for (uint32_t left = level; left; left--) {
			struct afp_desc d;

			fake_deliver(t, port, 1, 60, 0);
			CHECK_EQ(afp_port_receive(port, &d, 1), 1);
			CHECK_EQ(put(t, &d, 1), 1);
		}
		CHECK_EQ(port_fill_want(port), level);
		afp_port_free(port);
	}
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void a_port_without_a_pool_never_fills(struct afp_table *t)
{
	struct afp_port *port = fake_port(t, NULL, 8, 8);

	CHECK_EQ(afp_port_fill(port, 8), 0);
	CHECK_EQ(afp_port_zero_copy(port), -9 /* EBADF */);
	CHECK_EQ(afp_port_kick(port), 0);
	afp_port_free(port);
}

static void port_numbers_run_from_1_to_254(struct afp_table *t)
{
	struct afp_port *port[255];

	for (uint32_t i = 1; i <= 254; i++) {
		port[i] = afp_port_new(t, NULL, 1);
		CHECK_EQ(port[i]->id, i);
	}
	CHECK(!afp_port_new(t, NULL, 1));
	afp_port_free(port[100]);
	port[100] = afp_port_new(t, NULL, 1);
	CHECK_EQ(port[100]->id, 100);
	for (uint32_t i = 1; i <= 254; i++)
		afp_port_free(port[i]);
}

static void a_turn_does_what_the_rings_need(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 40), *other = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 64, 32);
	struct afp_turn turn;
	struct afp_desc d[64];

	CHECK_EQ(afp_port_recycle(port, &turn), 0);
	CHECK_EQ(turn.missing, 0);
	CHECK_EQ(turn.waiting, 0);
	CHECK_EQ(fake_waiting(port, FILL), 32);
	fake_deliver(t, port, 32, 60, 1);
	CHECK_EQ(afp_port_recycle(port, &turn), 0);
	CHECK_EQ(turn.waiting, 32);
	CHECK_EQ(turn.missing, 0);
	CHECK_EQ(afp_port_receive(port, d, 64), 32);
	CHECK_EQ(afp_port_recycle(port, &turn), 0);
	CHECK_EQ(turn.missing, 24); /* the quota leaves it eight */
	CHECK_EQ(transmit(port, d, 32), 32);
	CHECK_EQ(afp_port_recycle(port, &turn), 0);
	CHECK_EQ(turn.in_tx, 32);
	CHECK_EQ(turn.completed, 0);
	CHECK_EQ(fake_send(port), 32);
	CHECK_EQ(afp_port_recycle(port, &turn), 0);
	CHECK_EQ(turn.completed, 32);
	CHECK_EQ(turn.in_tx, 0);
	CHECK_EQ(turn.missing, 0);
	CHECK_EQ(fake_waiting(port, FILL), 32);
	check_whole(t);
	afp_port_free(port);

	/* Without room in FILL, and when the pool is closed. */
	port = fake_port(t, other, 64, 32);
	CHECK_EQ(afp_pool_destroy(other), 0);
	CHECK_EQ(afp_port_recycle(port, &turn), AFP_CLOSED);
	CHECK_EQ(turn.missing, 32);
	afp_port_close(port);
	CHECK_EQ(afp_port_recycle(port, &turn), AFP_CLOSED);
	CHECK_EQ(turn.missing, 0);
	afp_port_free(port);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

/* What FILL will hold is chosen before there is a socket; whatever comes of that, the frames are home again. */
static void a_lease_that_fails_takes_nothing(struct afp_table *t)
{
	const struct afp_port_config config = {.fill_size = 16, .comp_size = 16, .rx_size = 16, .tx_size = 16};
	struct afp_pool *p = afp_pool_create(t, 0, 0);

	for (uint32_t most = 0; most <= 16; most += 4) {
		struct afp_port *port = afp_port_new(t, p, 12);
		const uint64_t *stock;
		int fd[2] = {-1, -1};

		CHECK_EQ(afp_lease_stock(port, 16, most), most < 12 ? most : 12);
		stock = port->mock[FILL].entries;
		for (uint32_t i = 0; i < port->mock[FILL].producer; i++)
			CHECK_EQ(word_state(t->word[stock[i] / t->frame_size]), AFP_FILL);
		if (most % 8 == 0) { /* with what is no AF_XDP socket; else without any */
			CHECK_EQ(pipe(fd), 0);
			CHECK(afp_lease_take(port, fd[0], &config) < 0);
			CHECK_EQ(port->fd, fd[0]);
			CHECK_EQ(close(fd[1]), 0);
		}
		afp_port_free(port);
		CHECK_EQ(close(fd[0]), -1); /* the port has closed it */
	}
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static const struct test tests[] = {
	{"packets_go_round_across_the_wrap_of_every_index", packets_go_round_across_the_wrap_of_every_index, 0},
	{"full_rings_are_counts", full_rings_are_counts, 0},
	{"every_lie_is_counted_and_harmless", every_lie_is_counted_and_harmless, 0},
	{"anothers_frame_is_no_packet_of_ours", anothers_frame_is_no_packet_of_ours, 0},
	{"each_ring_returns_what_it_was_given", each_ring_returns_what_it_was_given, 0},
	{"a_completion_that_is_posted_is_not_honoured_again", a_completion_that_is_posted_is_not_honoured_again, 0},
	{"what_the_kernel_would_refuse_is_refused_here", what_the_kernel_would_refuse_is_refused_here, 0},
	{"clones_come_home_by_any_way", clones_come_home_by_any_way, 0},
	{"generations_wrap_on_their_way_through_fill", generations_wrap_on_their_way_through_fill, 0},
	{"what_is_with_a_ring_is_not_put", what_is_with_a_ring_is_not_put, 0},
	{"a_port_takes_255_clones_of_one_frame", a_port_takes_255_clones_of_one_frame, 0},
	{"closing_reclaims_all_and_only_its_own", closing_reclaims_all_and_only_its_own, 0},
	{"a_pool_may_close_before_its_ports", a_pool_may_close_before_its_ports, 0},
	{"fill_is_wanted_in_bulk_but_never_left_empty", fill_is_wanted_in_bulk_but_never_left_empty, 0},
	{"a_port_without_a_pool_never_fills", a_port_without_a_pool_never_fills, 0},
	{"a_lease_that_fails_takes_nothing", a_lease_that_fails_takes_nothing, 0},
	{"port_numbers_run_from_1_to_254", port_numbers_run_from_1_to_254, 0},
	{"a_turn_does_what_the_rings_need", a_turn_does_what_the_rings_need, 0},
};

TESTS_MAIN(tests)
