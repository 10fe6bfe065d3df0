/* SPDX-License-Identifier: BSD-3-Clause */
/* Fragments: they lie side by side inside their frame, each is given away once, and the frame comes home with the last. */
#include "fake.h"

#define MOST 256
#define BLOCKS (FRAMES * FRAME_SIZE / AFP_FRAGMENT_ALIGN)

static uint32_t cut(struct afp_pool *p, struct afp_desc *d, uint32_t n, uint32_t size)
{
	int got = afp_pool_alloc_fragments(p, d, n, size);

	CHECK(got >= 0);
	return (uint32_t)got;
}

static enum afp_reason refused_put(struct afp_table *t, const struct afp_desc *d)
{
	struct afp_refusals refused = {0};

	CHECK_EQ(afp_put(t, d, 1, &refused), 0);
	return refused.item[0].reason;
}

/* Whatever sizes are mixed and in whatever order they are put: no byte is two fragments'. */
static void no_byte_is_in_two_fragments(struct afp_table *t)
{
	static uint8_t taken[BLOCKS];
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_desc d[MOST];
	uint64_t x = SEED;
	uint32_t n = 0;

	memset(taken, 0, sizeof(taken));
	for (int round = 0; round < 20000; round++) {
		uint32_t size = 1 + (uint32_t)(next_random(&x) % (x & 1 << 20 ? 200 : FRAME_SIZE)), some = 1 + x / 7 % 8;

		if (n + some > MOST || x % 5 == 0) {
			while (n > MOST / 2) {
				uint32_t i = (uint32_t)(next_random(&x) % n);

				for (uint32_t at = 0; at < d[i].len; at += AFP_FRAGMENT_ALIGN)
					taken[(d[i].addr + at) / AFP_FRAGMENT_ALIGN] = 0;
				CHECK_EQ(put(t, &d[i], 1), 1);
				d[i] = d[--n];
			}
			continue;
		}
		some = cut(p, d + n, some, size);
		for (uint32_t end = n + some; n < end; n++) {
			CHECK(d[n].len >= size);
			CHECK_EQ(d[n].addr % AFP_FRAGMENT_ALIGN, 0);
			CHECK_EQ(frame_of(t, d[n].addr), frame_of(t, d[n].addr + d[n].len - 1));
			memset(t->area + d[n].addr, (int)n, d[n].len);
			for (uint32_t at = 0; at < d[n].len; at += AFP_FRAGMENT_ALIGN)
				CHECK_EQ(taken[(d[n].addr + at) / AFP_FRAGMENT_ALIGN]++, 0);
		}
		if (round % 100 == 0)
			check_whole(t);
	}
	CHECK_EQ(put(t, d, n), n);
	CHECK_EQ(afp_pool_destroy(p), 0);
	CHECK_EQ(t->nfree, FRAMES);
}

static void the_tail_goes_to_the_last(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_desc d[3];

	CHECK_EQ(cut(p, d, 3, 1100), 3);
	CHECK_EQ(d[0].len, 1152);
	CHECK_EQ(d[1].len, 1152);
	CHECK_EQ(d[2].len, FRAME_SIZE - 2 * 1152);
	CHECK_EQ(put(t, d, 3), 3);
	CHECK_EQ(afp_pool_alloc_fragments(p, d, 1, FRAME_SIZE + 1), AFP_TOO_LARGE);
	CHECK_EQ(afp_pool_alloc_fragments(p, d, 1, 0), AFP_TOO_LARGE);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void a_fragment_is_given_away_once(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = fake_port(t, p, 8, 8);
	struct afp_refusals refused = {0};
	struct afp_desc d[3], beside;

	CHECK_EQ(cut(p, d, 3, 256), 3);
	CHECK_EQ(afp_ref(t, d, 1, &refused), 0); /* it could not be told which of them comes back */
	CHECK_EQ(refused.item[0].reason, AFP_FRAGMENT);
	CHECK_EQ(put(t, d, 1), 1);
	CHECK_EQ(refused_put(t, d), AFP_NOT_HELD);
	beside = d[1];
	beside.addr += AFP_FRAGMENT_ALIGN; /* inside of it, where none begins */
	CHECK_EQ(refused_put(t, &beside), AFP_NOT_HELD);
	refused.n = 0;
	CHECK_EQ(afp_port_transmit(port, d, 1, &refused), 0);
	CHECK_EQ(afp_port_transmit(port, d + 1, 1, &refused), 1);
	CHECK_EQ(afp_port_transmit(port, d + 1, 1, &refused), 0);
	CHECK_EQ(refused_put(t, d + 1), AFP_NOT_HELD);
	CHECK_EQ(put(t, d + 2, 1), 1);
	check_whole(t);
	CHECK_EQ(fake_send(port), 1);
	CHECK_EQ(afp_port_complete(port, 8), 1);
	CHECK_EQ(afp_pool_flush(p), 0);
	CHECK_EQ(t->nfree, FRAMES);
	afp_port_free(port);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

/* All out by two ports at once, a part put, one port closed: all come home. */
static void fragments_come_home_by_any_way(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port[2] = {fake_port(t, p, 64, 64), fake_port(t, p, 64, 64)};
	struct afp_refusals refused = {0};
	struct afp_desc d[60];

	for (int round = 0; round < 40; round++) {
		CHECK_EQ(cut(p, d, 60, 60 + 10 * (uint32_t)round), 60);
		CHECK_EQ(afp_port_transmit(port[0], d, 20, &refused), 20);
		CHECK_EQ(afp_port_transmit(port[1], d + 20, 20, &refused), 20);
		CHECK_EQ(put(t, d + 40, 20), 20);
		CHECK_EQ(fake_send(port[0]), 20);
		CHECK_EQ(afp_port_complete(port[0], 64), 20);
		check_whole(t);
		if (round % 2) {
			afp_port_free(port[1]);
			port[1] = fake_port(t, p, 64, 64);
		} else {
			CHECK_EQ(fake_send(port[1]), 20);
			CHECK_EQ(afp_port_complete(port[1], 64), 20);
		}
	}
	CHECK_EQ(afp_pool_flush(p), 0);
	CHECK_EQ(t->nfree, FRAMES);
	afp_port_free(port[0]);
	afp_port_free(port[1]);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void a_pool_closes_while_fragments_are_out(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_desc d[2];

	CHECK_EQ(cut(p, d, 2, 100), 2);
	CHECK_EQ(afp_pool_destroy(p), 0);
	CHECK_EQ(afp_pool_life(p), AFP_DETACHED);
	CHECK_EQ(put(t, d, 1), 1);
	CHECK_EQ(afp_pool_life(p), AFP_DETACHED);
	CHECK_EQ(put(t, d + 1, 1), 1);
	afp_table_reap(t);
	CHECK_EQ(afp_pool_life(p), AFP_DEAD);
	CHECK_EQ(t->nfree, FRAMES);
}

static const struct test tests[] = {
	{"no_byte_is_in_two_fragments", no_byte_is_in_two_fragments, 0},
	{"the_tail_goes_to_the_last", the_tail_goes_to_the_last, 0},
	{"a_fragment_is_given_away_once", a_fragment_is_given_away_once, 0},
	{"fragments_come_home_by_any_way", fragments_come_home_by_any_way, 0},
	{"a_pool_closes_while_fragments_are_out", a_pool_closes_while_fragments_are_out, 0},
};

TESTS_MAIN(tests)
