/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests and their answers: by frame and in the ring's order, also of frames that several hold, and none of another life. */
#include "fake.h"
#include "headers.h"
#include "multi.h"
#include "requests.h"

#include <stddef.h>

static struct afp_port *asking_port(struct afp_table *t, struct afp_pool *p)
{
	struct afp_port *port = fake_port(t, p, 64, 32);

	CHECK_EQ(afp_port_want_requests(port, true), 0);
	return port;
}

/* Frames of the pool, each with its packet behind the room for a request. */
static void make(struct afp_table *t, struct afp_pool *p, struct afp_desc *d, uint32_t n)
{
	CHECK_EQ(afp_pool_alloc(p, d, n), n);
	for (uint32_t i = 0; i < n; i++) {
		d[i].addr += AFP_TX_ROOM;
		d[i].len = 60;
		memset(t->area + d[i].addr, 0, 60);
	}
}

static void ask(struct afp_table *t, struct afp_desc *d, uint32_t n, const uint64_t *numbers)
{
	const struct afp_packets packets = {.descs = d, .area = t->area, .size = t->size, .n = n};
	uint8_t done[64];

	afp_tx_ask(t, &packets, AFP_ASK_TIMESTAMP, numbers, NULL, done);
	for (uint32_t i = 0; i < n; i++)
		d[i].options |= done[i] ? AFP_TX_OPTION : 0;
}

/* The device sends what is in TX, at these times, and completes it. */
static uint32_t send_at(struct afp_table *t, struct afp_port *port, uint64_t now)
{
	uint32_t n = 0;

	while (fake_waiting(port, TX)) {
		const struct xdp_desc d = fake_take_tx(port);
		struct afp_tx_metadata request;

		if (d.options & AFP_TX_OPTION) {
			memcpy(&request, t->area + d.addr - AFP_TX_ROOM, sizeof(request));
			CHECK(request.flags & AFP_TX_TIMESTAMP);
			request.timestamp = now + n;
			memcpy(t->area + d.addr - AFP_TX_ROOM, &request, sizeof(request));
		}
		fake_comp(port, d.addr);
		n++;
	}
	return n;
}

static void stamps_come_with_their_numbers(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = asking_port(t, p);
	struct afp_refusals refused = {0};
	struct afp_stamp stamps[64];
	struct afp_desc d[32];
	uint64_t numbers[32], lost;

	for (uint64_t round = 1; round < 40; round++) {
		make(t, p, d, 32);
		for (uint32_t i = 0; i < 32; i++)
			numbers[i] = round << 32 | i;
		if (round % 2)
			ask(t, d, 32, numbers);
		CHECK_EQ(afp_port_transmit(port, d, 32, &refused), 32);
		CHECK_EQ(send_at(t, port, round * 1000), 32);
		CHECK_EQ(afp_port_complete(port, 64), 32);
		CHECK_EQ(afp_port_take_stamps(port, stamps, 64, &lost), round % 2 ? 32 : 0);
		for (uint32_t i = 0; round % 2 && i < 32; i++) {
			CHECK_EQ(stamps[i].number, numbers[i]);
			CHECK_EQ(stamps[i].timestamp, round * 1000 + i);
		}
	}
	CHECK_EQ(refused.n, 0);
	fake_close(port);
}

static void a_frame_that_several_hold_is_answered_once(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = asking_port(t, p);
	struct afp_refusals refused = {0};
	struct afp_stamp stamps[8];
	struct afp_desc d;
	uint64_t number = 5, lost;

	make(t, p, &d, 1);
	ask(t, &d, 1, &number);
	CHECK_EQ(afp_ref_all(t, &d, 1), 0);
	CHECK_EQ(afp_port_transmit(port, &d, 1, &refused), 1);
	CHECK_EQ(send_at(t, port, 9), 1);
	CHECK_EQ(afp_port_complete(port, 8), 1);
	CHECK_EQ(afp_port_take_stamps(port, stamps, 8, &lost), 1);
	/* Sent again as it is: the request still stands. */
	CHECK_EQ(afp_port_transmit(port, &d, 1, &refused), 1);
	CHECK_EQ(send_at(t, port, 10), 1);
	CHECK_EQ(afp_port_complete(port, 8), 1);
	CHECK_EQ(afp_port_take_stamps(port, stamps, 8, &lost), 1);
	CHECK_EQ(stamps[0].timestamp, 10);
	CHECK_EQ(stamps[0].number, 5);
	fake_close(port);
}

static void lies_in_the_completion_ring_are_no_answers(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = asking_port(t, p);
	struct afp_refusals refused = {0};
	struct afp_stamp stamps[8];
	struct afp_desc d[4];
	uint64_t numbers[4] = {1, 2, 3, 4}, lost, base;

	make(t, p, d, 4);
	ask(t, d, 4, numbers);
	CHECK_EQ(afp_port_transmit(port, d, 4, &refused), 4);
	while (fake_waiting(port, TX))
		(void)fake_take_tx(port);
	base = d[0].addr - AFP_TX_ROOM;
	fake_comp(port, t->size + 8);  /* no frame */
	fake_comp(port, base);         /* of the right frame, whose answer lies where it was asked for */
	fake_comp(port, d[1].addr);
	fake_comp(port, d[1].addr);    /* twice */
	CHECK_EQ(afp_port_complete(port, 8), 2);
	CHECK_EQ(afp_port_take_stamps(port, stamps, 8, &lost), 2);
	CHECK_EQ(stamps[0].number, 1);
	CHECK_EQ(stamps[1].number, 2);
	fake_comp(port, d[2].addr);
	fake_comp(port, d[3].addr);
	CHECK_EQ(afp_port_complete(port, 8), 2);
	fake_close(port);
}

/* Packets at odd addresses, which Linux 6.18 completes as the even ones before them; and of several frames, which all complete. */
static void an_answer_lies_where_it_was_asked_for(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_port *port = asking_port(t, p);
	struct afp_refusals refused = {0};
	struct afp_stamp stamps[8];
	uint64_t lost, numbers[6] = {11, 12, 13, 14, 15, 16};

	for (int several = 0; several < 2; several++) {
		struct afp_desc d[6];
		uint32_t n = 0;

		port->multi_buffer = port->by_packet = several;
		port->max_frames = 18;
		make(t, p, d, 6);
		for (uint32_t i = 0; i < 6; i++)
			d[i].addr += i;
		for (uint32_t i = 0; i < 6; i += several ? 3 : 1)
			ask(t, d + i, 1, numbers + i);
		for (uint32_t i = 0; several && i < 6; i++)
			d[i].options |= i % 3 < 2 ? AFP_CONTD : 0;
		CHECK_EQ(afp_port_transmit(port, d, 6, &refused), 6);
		while (fake_waiting(port, TX)) {
			const struct xdp_desc sent = fake_take_tx(port);
			uint64_t now = 1000 + n;

			CHECK_EQ(sent.options, several ? (n % 3 < 2) | (n % 3 ? 0 : AFP_TX_OPTION) : AFP_TX_OPTION);
			if (sent.options & AFP_TX_OPTION)
				memcpy(t->area + sent.addr - AFP_TX_ROOM + offsetof(struct afp_tx_metadata, timestamp), &now, 8);
			fake_comp(port, sent.addr & ~1ull);
			n++;
		}
		CHECK_EQ(afp_port_complete(port, 8), 6);
		n = afp_port_take_stamps(port, stamps, 8, &lost);
		CHECK_EQ(n, several ? 2 : 6);
		for (uint32_t i = 0; i < n; i++) {
			CHECK_EQ(stamps[i].number, numbers[several ? 3 * i : i]);
			CHECK_EQ(stamps[i].timestamp, 1000 + (several ? 3 * i : i));
		}
	}
	CHECK_EQ(refused.n, 0);
	fake_close(port);
}

static const struct test tests[] = {
	{"an_answer_lies_where_it_was_asked_for", an_answer_lies_where_it_was_asked_for, 0},
	{"stamps_come_with_their_numbers", stamps_come_with_their_numbers, 0},
	{"a_frame_that_several_hold_is_answered_once", a_frame_that_several_hold_is_answered_once, 0},
	{"lies_in_the_completion_ring_are_no_answers", lies_in_the_completion_ring_are_no_answers, 0},
};

TESTS_MAIN(tests)
