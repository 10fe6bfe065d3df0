/* SPDX-License-Identifier: BSD-3-Clause */
/* The worker's loop over rings in plain memory. A run ends at a deadline that is past: after one round. */
#include "fake.h"

struct bench {
	struct afp_pool *p;
	struct afp_port *port[2];
	struct afp_engine *e;
};

static struct bench set(struct afp_table *t, uint32_t batch)
{
	struct bench b = {.p = afp_pool_create(t, 64, 0), .e = calloc(1, sizeof(struct afp_engine))};

	CHECK(b.e);
	CHECK_EQ(afp_engine_init(b.e, t, batch, 0), 0);
	for (int i = 0; i < 2; i++) {
		b.port[i] = fake_port(t, b.p, 64, 64);
		fake_start(b.port[i], UINT32_MAX - 70);
		CHECK_EQ(afp_engine_add(b.e, b.port[i]), i);
	}
	return b;
}

static void clear(struct bench *b)
{
	afp_engine_fini(b->e);
	free(b->e);
	for (int i = 0; i < 2; i++)
		afp_port_free(b->port[i]);
	CHECK_EQ(afp_pool_destroy(b->p), 0);
}

static void rounds(struct bench *b, int n)
{
	for (int i = 0; i < n; i++) {
		int why = afp_engine_run(b->e, 0);

		/* The clock is read on every 16th busy round only. */
		CHECK_EQ(why, AFP_RAN_DEADLINE);
	}
}

static struct afp_engine_stats stats(const struct bench *b)
{
	struct afp_engine_stats s;

	afp_engine_read_stats(b->e, &s);
	return s;
}

static void forward_drop_reflect(struct afp_table *t)
{
	struct bench b = set(t, 16);

	b.e->route[0].verdict = AFP_FORWARD | 1;
	b.e->route[1].verdict = AFP_REFLECT;
	b.e->route[1].rewrite = AFP_SWAP_MAC | AFP_SET_SRC;
	memset(b.e->route[1].src, 0xab, 6);
	rounds(&b, 1);
	for (int round = 1; round <= 20; round++) {
		uint64_t addr;

		fake_deliver(t, b.port[0], 15, 64, 1);
		addr = ((uint64_t *)b.port[1]->mock[FILL].entries)[b.port[1]->mock[FILL].consumer & 63] + 256;
		fake_deliver(t, b.port[1], 1, 64, 9);
		rounds(&b, 1);
		CHECK_EQ(fake_waiting(b.port[1], TX), 16);
		CHECK_EQ(t->area[addr], 9);
		CHECK_EQ(t->area[addr + 6], 0xab);
		CHECK_EQ(t->area[addr + 12], 9);
		CHECK_EQ(fake_send(b.port[1]), 16);
		rounds(&b, 1);
		CHECK_EQ(stats(&b).forwarded, 15 * round);
		CHECK_EQ(stats(&b).reflected, round);
		check_whole(t);
	}
	CHECK_EQ(stats(&b).refused, 0);
	clear(&b);
}

static void back_pressure_leaves_packets_in_rx(struct afp_table *t)
{
	struct bench b = set(t, 64);
	uint32_t done = 0;

	b.e->route[0].verdict = AFP_FORWARD | 1;
	b.e->route[1].receive = 0;
	for (int i = 0; i < 5; i++) {
		rounds(&b, 1);
		fake_deliver(t, b.port[0], 20, 64, 0);
	}
	rounds(&b, 2);
	CHECK_EQ(fake_waiting(b.port[1], TX), 64);
	CHECK_EQ(fake_waiting(b.port[0], RX), 36);
	CHECK_EQ(b.e->received, 64);
	while (done < 100) {
		done += fake_send(b.port[1]);
		rounds(&b, 2);
	}
	CHECK_EQ(stats(&b).forwarded, 100);
	CHECK_EQ(stats(&b).refused + stats(&b).dropped, 0);
	clear(&b);
}

/* Whatever a handler leaves in descriptors and verdicts, each packet is sent once, dropped once, or kept. */
static void no_handler_can_lose_a_frame(struct afp_table *t)
{
	struct bench b = set(t, 32);
	uint64_t x = SEED;
	struct afp_desc kept[FRAMES];
	uint32_t nkept = 0, total = 0;

	for (int round = 0; round < 3000; round++) {
		uint32_t in = round & 1, n;

		CHECK_EQ(afp_engine_poll(b.e, 0), AFP_RAN_DEADLINE);
		n = fake_waiting(b.port[in], FILL);
		n = n < 24 ? n : 24;
		fake_deliver(t, b.port[in], n, 64, 0);
		if (!n)
			continue;
		CHECK_EQ(afp_engine_poll(b.e, UINT64_MAX), AFP_RAN_BATCH);
		CHECK_EQ(b.e->busy_port, in);
		CHECK_EQ(b.e->busy_n, n);
		total += n;
		for (uint32_t i = 0; i < n; i++) {
			next_random(&x);
			b.e->verdicts[i] = (uint8_t[]){0, 1, 2, 0x80, 0x81, 0x82, 0xff, 3}[x & 7];
			if (b.e->verdicts[i] == AFP_KEEP)
				kept[nkept++] = b.e->descs[i];
			switch (x >> 8 & 15) {
			case 0:
				b.e->descs[i].addr = x;
				break;
			case 1:
				b.e->descs[i].addr = b.e->descs[(x >> 16) % n].addr;
				break;
			case 2:
				b.e->descs[i].len = (uint32_t)(x >> 20);
				break;
			case 3:
				b.e->descs[i].gen++;
				break;
			case 4:
				memset(&b.e->descs[i], 0, sizeof(b.e->descs[i]));
				break;
			case 5:
				put(t, &b.e->descs[i], 1); /* and gives it back behind the engine's back */
				break;
			}
		}
		afp_engine_dispatch(b.e);
		CHECK_EQ(b.e->busy_n, 0);
		fake_send(b.port[0]);
		fake_send(b.port[1]);
		if (nkept > 100) {
			put(t, kept, nkept);
			nkept = 0;
		}
		if (round % 100 == 0)
			check_whole(t);
	}
	put(t, kept, nkept);
	CHECK(total > 10000);
	CHECK_EQ(stats(&b).dropped + stats(&b).reflected + stats(&b).forwarded + stats(&b).kept + stats(&b).refused, total);
	CHECK_EQ(audit(t).state[AFP_APP], 0);
	CHECK_EQ(afp_engine_drain(b.e, UINT64_MAX), 0);
	clear(&b);
}

static void a_handler_is_only_given_what_every_port_can_send(struct afp_table *t)
{
	struct bench b = set(t, 64);
	struct afp_refusals refused = {0};
	struct afp_desc d[60];

	CHECK_EQ(afp_engine_poll(b.e, 0), AFP_RAN_DEADLINE);
	CHECK_EQ(afp_pool_alloc(b.p, d, 60), 60);
	for (int i = 0; i < 60; i++)
		d[i].len = 60;
	CHECK_EQ(afp_port_transmit(b.port[1], d, 60, &refused), 60);
	fake_deliver(t, b.port[0], 20, 64, 0);
	CHECK_EQ(afp_engine_poll(b.e, UINT64_MAX), AFP_RAN_BATCH);
	CHECK_EQ(b.e->busy_n, 4);
	memset(b.e->verdicts, AFP_FORWARD | 1, 4);
	CHECK_EQ(afp_engine_dispatch(b.e), 0);
	CHECK_EQ(afp_engine_poll(b.e, 0), AFP_RAN_DEADLINE);
	CHECK_EQ(fake_waiting(b.port[0], RX), 16);
	clear(&b);
}

static void ports_take_turns(struct afp_table *t)
{
	struct bench b = set(t, 4);

	CHECK_EQ(afp_engine_poll(b.e, 0), AFP_RAN_DEADLINE);
	for (int i = 0; i < 2; i++)
		fake_deliver(t, b.port[i], 16, 64, 0);
	for (uint32_t turn = 0; turn < 8; turn++) {
		CHECK_EQ(afp_engine_poll(b.e, UINT64_MAX), AFP_RAN_BATCH);
		CHECK_EQ(b.e->busy_port, turn & 1);
		memset(b.e->verdicts, AFP_DROP, 4);
		CHECK_EQ(afp_engine_dispatch(b.e), 0);
	}
	clear(&b);
}

static void stop_and_limits_end_a_run(struct afp_table *t)
{
	struct bench b = set(t, 4);

	afp_engine_stop(b.e);
	CHECK_EQ(afp_engine_run(b.e, UINT64_MAX), AFP_RAN_STOP);
	fake_deliver(t, b.port[0], 8, 64, 0);
	CHECK_EQ(afp_engine_poll(b.e, UINT64_MAX), AFP_RAN_STOP);
	afp_engine_clear_stop(b.e);
	b.e->packet_limit = 8;
	CHECK_EQ(afp_engine_run(b.e, UINT64_MAX), AFP_RAN_COUNT);
	CHECK_EQ(b.e->received, 8);
	clear(&b);
}

static void the_generator_sends_count_packets(struct afp_table *t)
{
	struct bench b = set(t, 16);
	const uint8_t data[60 + 100] = {1, [60] = 2};
	const uint32_t offset[3] = {0, 60, 160};
	struct afp_generator g = {.pool = b.p, .port = 0, .templates = 2, .data = data, .offset = offset, .count = 301, .sequence_at = 8};
	uint64_t seen = 0;

	b.e->route[0].receive = b.e->route[1].receive = 0;
	b.e->generator = &g;
	while (seen < 301) {
		int why = afp_engine_run(b.e, 0);

		CHECK_EQ(why, g.sent == 301 ? AFP_RAN_COUNT : AFP_RAN_DEADLINE);
		while (fake_waiting(b.port[0], TX)) {
			struct xdp_desc d = fake_take_tx(b.port[0]);

			CHECK_EQ(d.len, seen % 2 ? 100 : 60);
			CHECK_EQ(t->area[d.addr], seen % 2 ? 2 : 1);
			CHECK_EQ(t->area[d.addr + 15], (uint8_t)(seen / 2));
			fake_comp(b.port[0], d.addr);
			seen++;
		}
	}
	CHECK_EQ(g.sent, 301);
	CHECK_EQ(afp_engine_drain(b.e, UINT64_MAX), 0);
	clear(&b);
}

struct spoiler {
	uint64_t x;
	uint32_t batches, stop_after;
	struct afp_engine *e;
};

/* A compiled handler that does its worst: verdicts that mean nothing, descriptors of other frames, or of none. */
static void spoil(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port, void *user)
{
	struct spoiler *s = user;

	CHECK(port < 2 && size == (uint64_t)FRAMES * FRAME_SIZE);
	for (uint32_t i = 0; i < n; i++) {
		CHECK_EQ(verdicts[i], AFP_DROP);
		next_random(&s->x);
		umem[descs[i].addr] = (uint8_t)s->x;
		verdicts[i] = (uint8_t[]){0, 1, 0x80, 0x81}[s->x & 3];
		if (s->x % 97 == 0)
			verdicts[i] = 0x85;
		if (s->x % 7 == 0)
			descs[i].addr = s->x % 5 ? descs[s->x % n].addr : s->x;
		if (s->x % 11 == 0)
			descs[i].len = (uint32_t)s->x;
	}
	if (++s->batches == s->stop_after)
		afp_engine_stop(s->e);
}

static void no_compiled_handler_can_lose_a_frame(struct afp_table *t)
{
	struct bench b = set(t, 16);
	struct spoiler s = {.x = SEED, .e = b.e};
	uint32_t total = 0, bad = 0;

	CHECK_EQ(afp_engine_run_compiled(b.e, 0, spoil, &s), AFP_RAN_DEADLINE);
	for (int round = 0; round < 2000; round++) {
		uint32_t n = fake_waiting(b.port[round & 1], FILL);
		int why;

		n = n < 40 ? n : 40;
		fake_deliver(t, b.port[round & 1], n, 64, 0);
		total += n;
		while ((why = afp_engine_run_compiled(b.e, 0, spoil, &s)) == AFP_RAN_VERDICT)
			bad += b.e->bad_verdicts;
		CHECK_EQ(why, AFP_RAN_DEADLINE);
		CHECK_EQ(b.e->busy_n, 0);
		fake_send(b.port[0]);
		fake_send(b.port[1]);
		if (round % 100 == 0)
			check_whole(t);
	}
	while (fake_waiting(b.port[0], RX) || fake_waiting(b.port[1], RX)) {
		int why = afp_engine_run_compiled(b.e, 0, spoil, &s);

		CHECK(why == AFP_RAN_DEADLINE || why == AFP_RAN_VERDICT);
		bad += why == AFP_RAN_VERDICT ? b.e->bad_verdicts : 0;
		fake_send(b.port[0]);
		fake_send(b.port[1]);
	}
	CHECK(total > 10000 && bad > 10);
	CHECK_EQ(stats(&b).dropped + stats(&b).reflected + stats(&b).forwarded + stats(&b).refused, total);
	CHECK(stats(&b).refused > bad);
	fake_deliver(t, b.port[0], 8, 64, 0);
	s.stop_after = s.batches + 1;
	CHECK_EQ(afp_engine_run_compiled(b.e, UINT64_MAX, spoil, &s), AFP_RAN_STOP);
	CHECK_EQ(audit(t).state[AFP_APP], 0);
	fake_send(b.port[0]);
	fake_send(b.port[1]);
	CHECK_EQ(afp_engine_drain(b.e, UINT64_MAX), 0);
	clear(&b);
}

/* A turn: the verdicts of the last batch carried out, the next one brought. */
static void one_call_a_batch(struct afp_table *t)
{
	struct bench b = set(t, 4);

	CHECK_EQ(afp_engine_turn(b.e, 0, -1), ~(int64_t)AFP_RAN_DEADLINE);
	fake_deliver(t, b.port[1], 12, 64, 0);
	CHECK_EQ(afp_engine_turn(b.e, UINT64_MAX, -1), 1 << 16 | 4);
	CHECK_EQ(afp_engine_turn(b.e, UINT64_MAX, AFP_REFLECT), 1 << 16 | 4);
	CHECK_EQ(stats(&b).reflected, 4);
	b.e->verdicts[2] = AFP_FORWARD | 0;
	CHECK_EQ(afp_engine_turn(b.e, UINT64_MAX, -1), 1 << 16 | 4);
	CHECK_EQ(stats(&b).dropped, 3);
	CHECK_EQ(stats(&b).forwarded, 1);
	CHECK_EQ(afp_engine_turn(b.e, UINT64_MAX, 3), ~(int64_t)AFP_RAN_VERDICT);
	CHECK_EQ(b.e->bad_verdicts, 4);
	b.e->packet_limit = 14;
	fake_deliver(t, b.port[0], 4, 64, 0);
	CHECK_EQ(afp_engine_turn(b.e, UINT64_MAX, -1), 4);
	CHECK_EQ(afp_engine_turn(b.e, UINT64_MAX, AFP_DROP), ~(int64_t)AFP_RAN_COUNT);
	CHECK_EQ(fake_send(b.port[0]) + fake_send(b.port[1]), 5);
	CHECK_EQ(afp_engine_drain(b.e, UINT64_MAX), 0);
	clear(&b);
}

static void more_ports_than_an_engine_has_are_refused(struct afp_table *t)
{
	struct afp_engine *e = calloc(1, sizeof(*e));
	struct afp_port *port = fake_port(t, NULL, 2, 1);

	CHECK_EQ(afp_engine_init(e, t, 4096, 0), 0);
	CHECK_EQ(e->batch, AFP_BATCH_MAX);
	for (int i = 0; i < AFP_ENGINE_PORTS; i++)
		CHECK_EQ(afp_engine_add(e, port), i);
	CHECK_EQ(afp_engine_add(e, port), -1);
	afp_engine_fini(e);
	free(e);
	afp_port_free(port);
}

static const struct test tests[] = {
	{"forward_drop_reflect", forward_drop_reflect, 0},
	{"back_pressure_leaves_packets_in_rx", back_pressure_leaves_packets_in_rx, 0},
	{"no_handler_can_lose_a_frame", no_handler_can_lose_a_frame, 0},
	{"a_handler_is_only_given_what_every_port_can_send", a_handler_is_only_given_what_every_port_can_send, 0},
	{"no_compiled_handler_can_lose_a_frame", no_compiled_handler_can_lose_a_frame, 0},
	{"one_call_a_batch", one_call_a_batch, 0},
	{"ports_take_turns", ports_take_turns, 0},
	{"stop_and_limits_end_a_run", stop_and_limits_end_a_run, 0},
	{"the_generator_sends_count_packets", the_generator_sends_count_packets, 0},
	{"more_ports_than_an_engine_has_are_refused", more_ports_than_an_engine_has_are_refused, 0},
};

TESTS_MAIN(tests)
