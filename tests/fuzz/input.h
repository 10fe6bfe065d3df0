/* SPDX-License-Identifier: BSD-3-Clause */
/* A fuzzer's input, read from front to end (behind it come zeros), and a world of two pools and three ports for it to play with. */
#ifndef INPUT_H
#define INPUT_H

#include "../native/fake.h"
#include "headers.h"

struct input {
	const uint8_t *at;
	size_t left;
};

static inline uint64_t take(struct input *in, size_t width)
{
	uint64_t v = 0;
	size_t n = width < in->left ? width : in->left;

	memcpy(&v, in->at, n);
	in->at += n;
	in->left -= n;
	return v;
}

static inline uint32_t below(struct input *in, uint32_t limit)
{
	return (uint32_t)take(in, 1) % limit;
}

#define UMEM_FRAMES 192u
#define UMEM_FRAME_SIZE 2048u
#define RING 32u
#define PORTS 3u
#define HELD 256u

struct world {
	struct afp_table t;
	struct afp_pool *pool[2];
	struct afp_port *port[PORTS];
	struct afp_desc held[HELD]; /* a reference each */
	uint32_t nheld;
	uint8_t multi; /* which ports have packets of several frames: bits. Not the second, which sends live */
};

/* The same memory for every input: its bytes are no concern of the engine's. */
static inline uint8_t *umem_area(void)
{
	static uint8_t *area;

	if (!area)
		area = aligned_alloc(4096, (size_t)UMEM_FRAMES * 4096);
	CHECK(area);
	return area;
}

static inline void open_port(struct world *w, uint32_t i)
{
	w->port[i] = fake_port(&w->t, i == 2 ? w->pool[1] : w->pool[0], RING, RING / 2);
	w->port[i]->multi_buffer = w->multi >> i & 1;
	w->port[i]->by_packet |= w->port[i]->multi_buffer;
	w->port[i]->max_frames = w->port[i]->multi_buffer ? 4 : 1;
}

static inline void begin(struct world *w, struct input *in)
{
	uint32_t index = (uint32_t)take(in, 4);

	memset(w, 0, sizeof(*w));
	w->multi = in->left >> 1 & 5; /* of its length, so that inputs found before still mean what they meant */
	if (in->left >> 4 & 1)
		CHECK_EQ(afp_table_init_unaligned(&w->t, umem_area(), UMEM_FRAMES, UMEM_FRAME_SIZE + 17, 0), 0);
	else
		CHECK_EQ(afp_table_init(&w->t, umem_area(), UMEM_FRAMES, UMEM_FRAME_SIZE, 0), 0);
	for (int i = 0; i < 2; i++)
		CHECK((w->pool[i] = afp_pool_create(&w->t, 16, i ? 100 : 0)));
	for (uint32_t i = 0; i < PORTS; i++) {
		open_port(w, i);
		fake_start(w->port[i], index);
	}
}

static inline void hold(struct world *w, const struct afp_desc *descs, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (w->nheld < HELD)
			w->held[w->nheld++] = descs[i];
		else
			CHECK_EQ(put(&w->t, &descs[i], 1), 1);
	}
}

/* An address, often of a frame, at times of none. */
static inline uint64_t any_address(const struct world *w, struct input *in)
{
	uint8_t how = (uint8_t)take(in, 1);

	if (how < 224)
		return frame_addr(&w->t, how % UMEM_FRAMES) + (take(in, 1) << 3);
	return take(in, 8);
}

/* Whatever a kernel might write into the rings that it fills, and into any index. */
static inline void lie(struct world *w, struct input *in)
{
	struct afp_port *port = w->port[below(in, PORTS)];
	uint32_t which = below(in, 4), n = below(in, RING);
	struct afp_mock_ring *m = &port->mock[which];

	if (which == RX) {
		for (uint32_t i = 0; i < n; i++)
			((struct xdp_desc *)m->entries)[m->producer++ & (m->size - 1)] =
				(struct xdp_desc){any_address(w, in), (uint32_t)take(in, 2) << (take(in, 1) & 17), (uint32_t)take(in, 1)};
	} else if (which == COMP) {
		for (uint32_t i = 0; i < n; i++)
			((uint64_t *)m->entries)[m->producer++ & (m->size - 1)] = any_address(w, in);
	} else {
		uint32_t ring = below(in, 4), value = (uint32_t)take(in, 4);

		if (ring == RX || ring == COMP)
			port->mock[ring].producer = value;
		else
			port->mock[ring].consumer = value;
		port->mock[ring].flags = which;
	}
}

/* What an honest kernel does. */
static inline void serve(struct world *w, struct input *in)
{
	struct afp_port *port = w->port[below(in, PORTS)];
	uint32_t n = below(in, RING), len = (uint32_t)take(in, 2) % (UMEM_FRAME_SIZE - 256);

	/* A kernel that lied about its indices before may find nonsense there: it goes by the entries. */
	for (uint32_t i = 0; i < n && fake_waiting(port, FILL) - 1 < RING && fake_waiting(port, RX) < RING; i++)
		fake_rx(port, fake_take_fill(port) + 256, len);
	for (uint32_t i = 0; i < n && fake_waiting(port, TX) - 1 < RING && fake_waiting(port, COMP) < RING; i++)
		fake_comp(port, fake_take_tx(port).addr);
}

/* Everything is given back; whatever the kernel did meanwhile, every frame is at home. */
static inline void end(struct world *w)
{
	struct afp_refusals refused = {0};

	check_whole(&w->t);
	for (uint32_t i = 0; i < PORTS; i++)
		afp_port_free(w->port[i]);
	for (uint32_t i = 0; i < w->nheld; i++)
		afp_put(&w->t, &w->held[i], 1, &refused);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(afp_pool_destroy(w->pool[i]), 0);
	check_whole(&w->t);
	CHECK_EQ(w->t.nfree, UMEM_FRAMES);
	afp_table_fini(&w->t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
