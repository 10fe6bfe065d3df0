/* SPDX-License-Identifier: BSD-3-Clause */
/* Records of packets: each is found by its packet's descriptor, whatever becomes of it, and by no other. */
#include "fake.h"
#include "metadata.h"

#define MAGIC 0x316d7278
#define RECORD ((uint32_t)sizeof(struct afp_rx_metadata))

static void tell(struct afp_table *t, uint64_t addr, uint32_t hash)
{
	struct afp_rx_metadata told = {.hash = hash, .arrival = 7ull << 50, .present = AFP_RX_HASH | AFP_RX_ARRIVAL, .magic = MAGIC};

	memcpy(t->area + addr - RECORD, &told, RECORD);
}

static void records_follow_their_descriptors(struct afp_table *t)
{
	struct afp_port *port = fake_pair(t, 64, 32);
	struct afp_desc d[8], moved;

	CHECK_EQ(afp_port_want_metadata(port), 0);
	CHECK_EQ(afp_port_want_metadata(port), 0);
	for (uint32_t round = 0; round < 20; round++) {
		CHECK_EQ(afp_port_fill(port, 4), 4);
		for (uint32_t i = 0; i < 4; i++) {
			/* Any headroom, so any alignment. */
			uint64_t addr = fake_take_fill(port) + 256 + round;

			memset(t->area + addr - RECORD, 0xa5, RECORD); /* of whoever had the frame before */
			if (i % 2)
				tell(t, addr, round * 4 + i);
			fake_rx(port, addr, 60);
		}
		CHECK_EQ(afp_port_receive(port, d, 8), 4);
		for (uint32_t i = 0; i < 4; i++) {
			const struct afp_rx_metadata *known = afp_rx_known(t, &d[i]), in_frame = afp_rx_metadata(t->area + d[i].addr);

			CHECK(known);
			CHECK_EQ(known->hash, i % 2 ? round * 4 + i : 0);
			CHECK_EQ(known->present, i % 2 ? AFP_RX_HASH | AFP_RX_ARRIVAL : 0);
			CHECK_EQ(in_frame.hash, known->hash);
			CHECK_EQ(in_frame.present, known->present);
			CHECK_EQ(in_frame.magic, 0);
			moved = d[i];
			moved.addr += 40;
			CHECK(afp_rx_known(t, &moved) == known);
			moved.gen++;
			CHECK(!afp_rx_known(t, &moved));
		}
		CHECK_EQ(put(t, d, 4), 4);
	}
	moved.addr = t->size;
	CHECK(!afp_rx_known(t, &moved));
	fake_close(port);
}

static void at_a_frames_start_is_no_room_for_one(struct afp_table *t)
{
	struct afp_port *port = fake_pair(t, 64, 32);
	struct afp_desc d;

	CHECK_EQ(afp_port_want_metadata(port), 0);
	/* Also at the start of the Umem, where what lies in front of it is somebody else's. */
	for (uint32_t offset = 0; offset <= RECORD; offset += 8) {
		CHECK_EQ(afp_port_fill(port, 1), 1);
		fake_rx(port, fake_take_fill(port) + offset, 60);
		CHECK_EQ(afp_port_receive(port, &d, 1), 1);
		CHECK_EQ(afp_rx_known(t, &d) != NULL, offset == RECORD);
		CHECK_EQ(put(t, &d, 1), 1);
	}
	fake_close(port);
}

/* Once round all generations, a descriptor of the same number must not find the record of a life 65535 lives ago. */
static void generations_that_wrap_forget(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 1);
	struct afp_port *knowing = fake_port(t, p, 8, 1), *other = fake_port(t, p, 8, 1);
	struct afp_desc first, d = {0};
	uint64_t addr;

	CHECK_EQ(afp_port_want_metadata(knowing), 0);
	CHECK_EQ(afp_port_fill(knowing, 1), 1);
	addr = fake_take_fill(knowing) + 256;
	tell(t, addr, 1);
	fake_rx(knowing, addr, 60);
	CHECK_EQ(afp_port_receive(knowing, &first, 1), 1);
	CHECK_EQ(put(t, &first, 1), 1);
	for (uint32_t life = 0; life < 65535; life++) {
		CHECK_EQ(afp_port_fill(other, 1), 1);
		fake_rx(other, fake_take_fill(other) + 256, 60);
		CHECK_EQ(afp_port_receive(other, &d, 1), 1);
		if (life < 65534)
			CHECK(!afp_rx_known(t, &d));
		CHECK_EQ(put(t, &d, 1), 1);
	}
	CHECK_EQ(d.addr, first.addr);
	CHECK_EQ(d.gen, first.gen);
	CHECK(!afp_rx_known(t, &d));
	afp_port_free(knowing);
	fake_close(other);
}

static const struct test tests[] = {
	{"records_follow_their_descriptors", records_follow_their_descriptors, 0},
	{"at_a_frames_start_is_no_room_for_one", at_a_frames_start_is_no_room_for_one, 0},
	{"generations_that_wrap_forget", generations_that_wrap_forget, 0},
};

TESTS_MAIN(tests)
