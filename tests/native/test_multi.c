/* SPDX-License-Identifier: BSD-3-Clause */
/* Packets of several frames: whole or not at all, against a model; under taps, clones, fragments, and a kernel that lies. */
#include "fake.h"

#define SIZE 64u
#define MOST 18u

static struct afp_port *multi_port(struct afp_table *t, struct afp_pool *p)
{
	struct afp_port *port = fake_port(t, p, SIZE, SIZE);

	port->multi_buffer = port->by_packet = true;
	port->max_frames = MOST;
	fake_start(port, UINT32_MAX - 100);
	return port;
}

static void rx(struct afp_port *port, uint64_t addr, uint32_t len, bool more)
{
	fake_rx(port, addr, len);
	((struct xdp_desc *)port->mock[RX].entries)[(port->mock[RX].producer - 1) & (SIZE - 1)].options = more;
}

/* A packet of so many frames, of which frame i has 100 + i bytes of `number` + i. */
static void deliver(struct afp_table *t, struct afp_port *port, uint32_t frames, uint8_t number)
{
	for (uint32_t i = 0; i < frames; i++) {
		uint64_t addr = fake_take_fill(port) + 256;

		memset(t->area + addr, number + (int)i, 100 + i);
		rx(port, addr, 100 + i, i + 1 < frames);
	}
}

static uint32_t transmit(struct afp_port *port, const struct afp_desc *d, uint32_t n, uint32_t *bad)
{
	struct afp_refusals refused = {0};
	uint32_t sent = afp_port_transmit(port, d, n, &refused);

	*bad = refused.n ? refused.item[0].reason : AFP_OK;
	return sent;
}

static void forwarded_whole_at_any_size_and_room(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *in = multi_port(t, p), *out = multi_port(t, p);
	uint64_t x = SEED;
	struct afp_port_stats s;
	struct afp_desc d[64];
	uint32_t waiting[SIZE], nwaiting = 0, first = 0, numbers = 0, sent = 0, packets = 0;
	uint8_t next = 0;

	for (int round = 0; round < 3000; round++) {
		uint32_t frames, room, most, got, done, bad;

		afp_port_fill(in, 64);
		frames = 1 + (uint32_t)(next_random(&x) % 6);
		while (fake_waiting(in, FILL) >= frames && fake_waiting(in, RX) + frames <= SIZE && nwaiting < SIZE) {
			deliver(t, in, frames, (uint8_t)(numbers & 63));
			waiting[(first + nwaiting++) % SIZE] = (numbers++ & 63) << 8 | frames;
			frames = 1 + (uint32_t)(next_random(&x) % 6);
		}
		room = (uint32_t)(next_random(&x) % 20);
		most = (uint32_t)(next_random(&x) % 8);
		got = afp_receive_packets(in, d, room, most);
		CHECK(got <= room && packets_in(d, got) <= most);
		if (!got)
			CHECK(!nwaiting || !most || in->rx_next > room || !room);
		for (uint32_t i = 0; i < got;) {
			uint32_t n = packet_frames(d + i, got - i), number = waiting[first] >> 8;

			CHECK_EQ(n, waiting[first] & 255);
			for (uint32_t f = 0; f < n; f++) {
				CHECK_EQ(d[i + f].len, 100 + f);
				CHECK_EQ(t->area[d[i + f].addr + 99 + f], number + f);
				CHECK_EQ(d[i + f].options, f + 1 < n);
			}
			first = (first + 1) % SIZE;
			nwaiting--;
			i += n;
			packets++;
		}
		done = transmit(out, d, got, &bad);
		CHECK_EQ(bad, AFP_OK);
		CHECK(!done || !(d[done - 1].options & AFP_CONTD));
		CHECK_EQ(put(t, d + done, got - done), got - done);
		sent += done;
		if (next++ % 3 == 0) {
			bool more = false;

			while (fake_waiting(out, TX)) {
				struct xdp_desc desc = fake_take_tx(out);

				more = desc.options;
				fake_comp(out, desc.addr);
			}
			CHECK(!more);
			while (afp_port_complete(out, 64))
				;
		}
		if (round % 64 == 0)
			check_whole(t);
	}
	CHECK(sent > 1000);
	afp_port_read_stats(in, &s);
	CHECK_EQ(s.rx_packets, packets);
	afp_port_read_stats(out, &s);
	CHECK_EQ(s.tx_packets + s.tx_parts, sent);
	CHECK_EQ(s.tx_completed + s.tx_completed_parts + port_in_tx(out), sent);
	CHECK(s.tx_packets - s.tx_completed <= port_in_tx(out));
	afp_port_free(in);
	fake_close(out);
}

/* A packet of n frames of which frame `which` is one that its holder does not have: the others stay his. */
static void refused_packets_lend_nothing(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = multi_port(t, p);
	struct afp_desc d[8], other[2];
	uint32_t bad;

	for (uint32_t which = 0; which < 5; which++) {
		for (int clones = 0; clones < 2; clones++) {
			struct afp_desc stale;

			CHECK_EQ(afp_pool_alloc(p, d, 5), 5);
			for (int i = 0; i < 5; i++) {
				d[i].len = 64;
				d[i].options = i < 4;
			}
			if (clones)
				CHECK_EQ(afp_ref_all(t, d, 5), 0);
			stale = d[which];
			d[which].gen++;
			CHECK_EQ(transmit(port, d, 5, &bad), 0);
			CHECK_EQ(bad, AFP_STALE);
			CHECK_EQ(port_in_tx(port), 0);
			d[which] = stale;
			check_whole(t);
			CHECK_EQ(transmit(port, d, 5, &bad), 5);
			CHECK_EQ(fake_send(port), 5);
			CHECK_EQ(afp_port_complete(port, 64), 5);
			if (clones)
				CHECK_EQ(put(t, d, 5), 5);
			CHECK_EQ(put(t, d, 5), 0);
		}
	}
	/* Fragments of one frame, one of them twice. */
	CHECK_EQ(afp_pool_alloc_fragments(p, d, 2, 500), 2);
	other[0] = d[0];
	other[1] = d[0];
	other[0].options = 1;
	CHECK_EQ(transmit(port, other, 2, &bad), 0);
	CHECK_EQ(bad, AFP_NOT_HELD);
	d[0].options = 1;
	CHECK_EQ(transmit(port, d, 2, &bad), 2);
	CHECK_EQ(fake_send(port), 2);
	CHECK_EQ(afp_port_complete(port, 64), 2);
	CHECK_EQ(afp_pool_flush(p), 0);
	/* No end; too many frames. */
	CHECK_EQ(afp_pool_alloc(p, d, 8), 8);
	for (int i = 0; i < 8; i++)
		d[i] = (struct afp_desc){d[i].addr, 64, 1, d[i].gen};
	CHECK_EQ(transmit(port, d, 8, &bad), 0);
	CHECK_EQ(bad, AFP_UNFINISHED);
	d[7].options = 0;
	port->max_frames = 7;
	CHECK_EQ(transmit(port, d, 8, &bad), 0);
	CHECK_EQ(bad, AFP_TOO_MANY_FRAMES);
	CHECK_EQ(put(t, d, 8), 8);
	fake_close(port);
}

/* Frames that were filled, in any order, twice, with any bit set, among addresses of none. */
static void a_kernel_that_lies_neither_loses_nor_doubles_a_frame(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = multi_port(t, p);
	struct afp_desc d[AFP_PACKET_FRAMES + 64];
	uint64_t x = SEED, got = 0;

	for (int round = 0; round < 4000; round++) {
		uint32_t n;

		if (port_in_fill(port) < 40)
			afp_port_fill(port, 20);
		for (uint32_t i = (uint32_t)(next_random(&x) % SIZE); i && fake_waiting(port, RX) < SIZE; i--) {
			uint64_t addr = (next_random(&x) % FRAMES) * FRAME_SIZE + 256;

			if (x >> 8 & 3 && fake_waiting(port, FILL))
				addr = fake_take_fill(port) + 256;
			rx(port, x >> 16 & 31 ? addr : x, (uint32_t)(x >> 24) % (FRAME_SIZE - 200), round / 100 % 2 ? x >> 40 & 1 : x >> 40 & 31);
		}
		n = afp_receive_packets(port, d, AFP_PACKET_FRAMES + 64, 64);
		CHECK(!n || !(d[n - 1].options & AFP_CONTD));
		CHECK_EQ(put(t, d, n), n);
		got += n;
		if (round % 64 == 0)
			check_whole(t);
	}
	CHECK(got > 1000);
	fake_close(port);
}

static void a_tap_copies_the_whole_packet(struct afp_table *t)
{
	static uint8_t data[1 << 14], out[1 << 14];
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = multi_port(t, p);
	struct afp_tap_ring ring = {data, sizeof(data), 77, 77};
	struct afp_tap tap = {.ring = &ring, .snaplen = 250, .ways = 3};
	struct afp_desc d[8];
	uint32_t starts[64], bad, words[2];
	uint64_t counts[2];

	afp_port_set_tap(port, &tap);
	CHECK_EQ(afp_port_fill(port, 8), 8);
	deliver(t, port, 3, 1); /* 100 + 101 + 102 bytes */
	deliver(t, port, 1, 9);
	CHECK_EQ(afp_port_receive(port, d, 8), 4);
	CHECK_EQ(transmit(port, d, 4, &bad), 4);
	CHECK_EQ(afp_tap_walk(out, afp_tap_take(&ring, out, sizeof(out)), starts), 4);
	for (int i = 0; i < 4; i++) {
		const uint8_t *block = out + starts[i];

		memcpy(words, block + 20, 8);
		CHECK_EQ(words[0], i % 2 ? 100 : 250);
		CHECK_EQ(words[1], i % 2 ? 100 : 303);
		CHECK_EQ(block[28], i % 2 ? 9 : 1);
		CHECK_EQ(block[28 + 99], i % 2 ? 9 : 1);
		if (i % 2)
			continue;
		CHECK_EQ(block[28 + 100], 2);
		CHECK_EQ(block[28 + 249], 3);
	}
	afp_tap_counts(&tap, counts);
	CHECK_EQ(counts[0], 4);
	CHECK_EQ(fake_send(port), 4);
	CHECK_EQ(afp_port_complete(port, 8), 4);
	afp_port_set_tap(port, NULL);
	fake_close(port);
}

static void a_packet_waits_for_its_end_and_for_room(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = multi_port(t, p);
	struct afp_desc d[64], single[SIZE - 2];
	struct afp_port_stats s;
	uint64_t addr[3];
	uint32_t bad;

	CHECK_EQ(afp_port_fill(port, 5), 5);
	for (int i = 0; i < 3; i++)
		addr[i] = fake_take_fill(port) + 256;
	rx(port, addr[0], 100, true);
	CHECK_EQ(afp_port_receive(port, d, 64), 0);
	rx(port, addr[1], 100, true);
	CHECK_EQ(afp_port_receive(port, d, 64), 0);
	rx(port, addr[2], 100, false);
	CHECK_EQ(afp_port_receive(port, d, 64), 3);
	CHECK_EQ(packets_in(d, 3), 1);

	CHECK_EQ(afp_pool_alloc(p, single, SIZE - 2), SIZE - 2);
	for (uint32_t i = 0; i < SIZE - 2; i++)
		single[i].len = 60;
	CHECK_EQ(transmit(port, single, SIZE - 2, &bad), SIZE - 2);
	CHECK_EQ(transmit(port, d, 3, &bad), 0);
	CHECK_EQ(bad, AFP_OK);
	check_whole(t);
	CHECK_EQ(fake_send(port), SIZE - 2);
	CHECK_EQ(afp_port_complete(port, SIZE), SIZE - 2);
	CHECK_EQ(transmit(port, d, 3, &bad), 3);
	CHECK_EQ(fake_send(port), 3);
	CHECK_EQ(afp_port_complete(port, SIZE), 3);

	/* One part by one byte too long: none of it is received. */
	rx(port, fake_take_fill(port) + 256, 100, true);
	rx(port, fake_take_fill(port) + 256, FRAME_SIZE - 255, false);
	CHECK_EQ(afp_port_receive(port, d, 64), 0);
	afp_port_read_stats(port, &s);
	CHECK_EQ(s.rx_bad, 1);
	check_whole(t);
	fake_close(port);
}

static void machine_code_is_shown_every_frame(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = multi_port(t, p);
	struct afp_desc d[16];
	const uint32_t start[] = {0, 3, 4, 6};
	struct afp_parts parts;
	uint64_t addr;
	uint8_t before;

	CHECK_EQ(afp_port_fill(port, 16), 16);
	deliver(t, port, 3, 10);
	deliver(t, port, 1, 20);
	deliver(t, port, 2, 30);
	CHECK_EQ(afp_port_receive(port, d, 16), 6);
	afp_show_parts(t, d, start, 3);
	for (uint32_t i = 0; i < 3; i++) {
		uint8_t *packet = t->area + d[start[i]].addr;

		parts = afp_parts(packet);
		CHECK_EQ(parts.count, start[i + 1] - start[i]);
		CHECK_EQ(parts.length, parts.count == 3 ? 303 : parts.count == 2 ? 201 : 100);
		for (uint32_t j = 0; j < parts.count; j++)
			CHECK_EQ(afp_part(packet, parts, j)[parts.frames[j].len - 1], 10 * (i + 1) + j);
	}
	/* No frame's, and of a packet that begins too near to its frame's start: nothing is written. */
	d[3].addr = d[3].addr - 256 + AFP_PARTS_ROOM - 1;
	addr = d[4].addr;
	d[4].addr = t->size + 256;
	before = t->area[d[3].addr - AFP_PARTS_ROOM + 1];
	afp_show_parts(t, d, start, 3);
	CHECK_EQ(t->area[d[3].addr - AFP_PARTS_ROOM + 1], before);
	d[4].addr = addr;
	CHECK_EQ(put(t, d, 6), 6);
	fake_close(port);
}

static const struct test tests[] = {
	{"machine_code_is_shown_every_frame", machine_code_is_shown_every_frame, 0},
	{"a_packet_waits_for_its_end_and_for_room", a_packet_waits_for_its_end_and_for_room, 0},
	{"forwarded_whole_at_any_size_and_room", forwarded_whole_at_any_size_and_room, 0},
	{"refused_packets_lend_nothing", refused_packets_lend_nothing, 0},
	{"a_kernel_that_lies_neither_loses_nor_doubles_a_frame", a_kernel_that_lies_neither_loses_nor_doubles_a_frame, 0},
	{"a_tap_copies_the_whole_packet", a_tap_copies_the_whole_packet, 0},
};
TESTS_MAIN(tests)
