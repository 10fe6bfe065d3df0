/* SPDX-License-Identifier: BSD-3-Clause */
/* Taps: every packet is copied once, whole, in order, across the ring's wrap; and a tap comes off while its port works. */
#include "fake.h"

#include <pthread.h>
#include <sched.h>

#define RING 4096u
#define OVERHEAD (28u + 24u)

static uint32_t word(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, 4);
	return value;
}

static struct afp_tap_ring ring_of(uint8_t *data, uint64_t start)
{
	return (struct afp_tap_ring){data, RING, start, start};
}

static void blocks_are_whole_across_the_wrap(struct afp_table *t)
{
	struct afp_port *port = fake_pair(t, 32, 32);
	uint8_t data[RING], out[RING];
	struct afp_tap_ring ring = ring_of(data, RING - 10);
	struct afp_tap tap = {&ring, 7, 3, 65, 3, 0, 0, 0, 0};
	struct afp_refusals refused = {0};
	uint32_t starts[RING / OVERHEAD + 1];
	struct afp_desc d[64];

	afp_port_set_tap(port, &tap);
	for (int round = 0; round < 50; round++) {
		const uint32_t len = 60 + (uint32_t)round % 10, kept = len < 65 ? len : 65, block = OVERHEAD + ((kept + 3) & ~3u);
		uint64_t got;

		CHECK_EQ(afp_port_fill(port, 8), 8);
		fake_deliver(t, port, 8, len, (uint8_t)round);
		CHECK_EQ(afp_port_receive(port, d, 64), 8);
		CHECK_EQ(afp_port_transmit(port, d, 8, &refused), 8);
		got = afp_tap_take(&ring, out, sizeof(out));
		CHECK_EQ(got, 16 * block);
		CHECK_EQ(afp_tap_walk(out, got, starts), 16);
		for (uint32_t i = 0; i < 16; i++) {
			const uint8_t *at = out + starts[i], *tail = at + block - 24;

			CHECK_EQ(starts[i], i * block);
			CHECK_EQ(word(at), 6);
			CHECK_EQ(word(at + 4), block);
			CHECK_EQ(word(at + block - 4), block);
			CHECK_EQ(word(at + 8), 7);
			CHECK_EQ(word(at + 20), kept);
			CHECK_EQ(word(at + 24), len);
			CHECK_EQ(at[28], (uint8_t)(round + (int)(i % 8)));
			CHECK_EQ(at[28 + kept - 1], (uint8_t)(round + (int)(i % 8)));
			CHECK_EQ(word(tail + 4), i < 8 ? 1 : 2);
			CHECK_EQ(word(tail + 12), 3);
			CHECK_EQ(word(tail + 16), 0);
		}
		CHECK_EQ(fake_send(port), 8);
		CHECK_EQ(afp_port_complete(port, 64), 8);
	}
	CHECK_EQ(tap.taken, 800);
	CHECK_EQ(tap.dropped, 0);
	fake_close(port);
}

static void what_does_not_fit_is_dropped_and_counted(struct afp_table *t)
{
	struct afp_port *port = fake_pair(t, 64, 64);
	uint8_t data[RING], out[RING];
	struct afp_tap_ring ring = ring_of(data, 0);
	struct afp_tap tap = {&ring, 0, 0, 4096, 1 << AFP_IN, 0, 0, 0, 0};
	struct afp_refusals refused = {0};
	struct afp_desc d[64];
	uint64_t counts[2];

	afp_port_set_tap(port, &tap);
	CHECK_EQ(afp_port_fill(port, 64), 64);
	fake_deliver(t, port, 50, 460, 0); /* blocks of 512: 8 fit */
	CHECK_EQ(afp_port_receive(port, d, 64), 50);
	afp_tap_counts(&tap, counts);
	CHECK_EQ(counts[0], 8);
	CHECK_EQ(counts[1], 42);
	CHECK_EQ(ring.head, RING);
	CHECK_EQ(afp_tap_take(&ring, out, sizeof(out)), RING);
	CHECK_EQ(afp_tap_take(&ring, out, sizeof(out)), 0);
	CHECK_EQ(afp_port_transmit(port, d, 50, &refused), 50); /* that way is not tapped */
	CHECK_EQ(tap.taken, 8);
	afp_port_set_tap(port, NULL);
	fake_deliver(t, port, 5, 60, 0);
	CHECK_EQ(afp_port_receive(port, d, 64), 5);
	CHECK_EQ(tap.taken, 8);
	CHECK_EQ(put(t, d, 5), 5);
	CHECK_EQ(fake_send(port), 50);
	CHECK_EQ(afp_port_complete(port, 64), 50);
	fake_close(port);
}

/* What is left between the last block and the first not taken is too short by a few bytes. */
static void a_block_that_nearly_fits_overwrites_nothing(struct afp_table *t)
{
	struct afp_port *port = fake_pair(t, 64, 64);
	uint8_t data[RING], out[RING];
	uint32_t starts[RING / OVERHEAD + 1];
	struct afp_desc d[64];

	for (uint32_t len = 60; len < 124; len += 4) {
		const uint32_t block = OVERHEAD + len, fit = RING / block;
		struct afp_tap_ring ring = ring_of(data, len * 7);
		struct afp_tap tap = {&ring, 0, 0, 4096, 1 << AFP_IN, 0, 0, 0, 0};

		afp_port_set_tap(port, &tap);
		CHECK(afp_port_fill(port, 64) >= 40);
		fake_deliver(t, port, 40, len, 1);
		CHECK_EQ(afp_port_receive(port, d, 64), 40);
		CHECK_EQ(tap.taken, fit < 40 ? fit : 40);
		CHECK_EQ(tap.taken + tap.dropped, 40);
		CHECK_EQ(afp_tap_take(&ring, out, sizeof(out)), tap.taken * block);
		CHECK_EQ(afp_tap_walk(out, tap.taken * block, starts), tap.taken);
		for (uint32_t i = 0; i < tap.taken; i++) {
			CHECK_EQ(word(out + starts[i] + 4), block);
			CHECK_EQ(out[starts[i] + 28], (uint8_t)(1 + i));
		}
		afp_port_set_tap(port, NULL);
		CHECK_EQ(put(t, d, 40), 40);
	}
	fake_close(port);
}

static int over;

/* Takes a tap of its own on and off, and lets its memory go each time. */
static void *tap_again_and_again(void *user)
{
	struct afp_port *port = user;
	uint64_t seen = 0;

	while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE) || seen < 1000) {
		struct afp_tap_ring *ring = malloc(sizeof(*ring));
		struct afp_tap *tap = malloc(sizeof(*tap));
		uint8_t *data = malloc(RING), *out = malloc(RING);
		uint32_t starts[RING / OVERHEAD + 1];
		uint64_t got = 0;

		CHECK(ring && tap && data && out);
		*ring = ring_of(data, RING / 2);
		*tap = (struct afp_tap){ring, 1, 0, 64, 1 << AFP_IN, 0, 0, 0, 0};
		afp_port_set_tap(port, tap);
		for (int i = 0; i < 100; i++) {
			got = afp_tap_take(ring, out, RING);
			if (got)
				break;
			sched_yield();
		}
		for (uint32_t i = 0, n = afp_tap_walk(out, got, starts); i < n; i++, seen++)
			CHECK_EQ(word(out + starts[i] + 4), word(out + (i + 1 < n ? starts[i + 1] : got) - 4));
		afp_port_set_tap(port, NULL);
		free(data);
		free(out);
		free(tap);
		free(ring);
	}
	return NULL;
}

static void a_tap_comes_off_while_its_port_works(struct afp_table *t)
{
	struct afp_port *port = fake_pair(t, 32, 32);
	struct afp_desc d[64];
	pthread_t thread;

	over = 0;
	CHECK_EQ(pthread_create(&thread, NULL, tap_again_and_again, port), 0);
	for (int round = 0; round < 20000 || pthread_tryjoin_np(thread, NULL); round++) {
		if (round == 20000)
			__atomic_store_n(&over, 1, __ATOMIC_RELEASE);
		CHECK_EQ(afp_port_fill(port, 8), 8);
		fake_deliver(t, port, 8, 60, (uint8_t)round);
		CHECK_EQ(afp_port_receive(port, d, 64), 8);
		CHECK_EQ(put(t, d, 8), 8);
	}
	fake_close(port);
}

static const struct test tests[] = {
	{"blocks_are_whole_across_the_wrap", blocks_are_whole_across_the_wrap, 0},
	{"what_does_not_fit_is_dropped_and_counted", what_does_not_fit_is_dropped_and_counted, 0},
	{"a_block_that_nearly_fits_overwrites_nothing", a_block_that_nearly_fits_overwrites_nothing, 0},
	{"a_tap_comes_off_while_its_port_works", a_tap_comes_off_while_its_port_works, 0},
};

TESTS_MAIN(tests)
