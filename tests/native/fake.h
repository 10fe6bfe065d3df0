/* SPDX-License-Identifier: BSD-3-Clause */
/* The kernel's side of a port with rings in plain memory. */
#ifndef FAKE_H
#define FAKE_H

#include "check.h"

enum { FILL, COMP, RX, TX };

static inline uint32_t fake_waiting(struct afp_port *port, int which)
{
	return port->mock[which].producer - port->mock[which].consumer;
}

static inline struct afp_port *fake_port(struct afp_table *t, struct afp_pool *p, uint32_t size, uint32_t level)
{
	struct afp_port *port = afp_port_new(t, p, level);

	CHECK(port);
	CHECK_EQ(afp_port_mock(port, size, size, size, size), 0);
	return port;
}

/* A port on a pool of its own, which `port->pool` is. */
static inline struct afp_port *fake_pair(struct afp_table *t, uint32_t size, uint32_t level)
{
	return fake_port(t, afp_pool_create(t, 64, 0), size, level);
}

/* The port is closed, and its pool, of which no frame may be out. */
static inline void fake_close(struct afp_port *port)
{
	struct afp_pool *p = port->pool;

	afp_port_free(port);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

/* Let all indices start here, so that they wrap. */
static inline void fake_start(struct afp_port *port, uint32_t index)
{
	for (int i = 0; i < 4; i++)
		port->mock[i].producer = port->mock[i].consumer = index;
	port->fill.cached_prod = port->tx.cached_prod = index;
	port->fill.cached_cons = index + port->fill.size;
	port->tx.cached_cons = index + port->tx.size;
	port->rx.cached_prod = port->rx.cached_cons = index;
	port->comp.cached_prod = port->comp.cached_cons = index;
}

static inline uint64_t fake_take_fill(struct afp_port *port)
{
	struct afp_mock_ring *m = &port->mock[FILL];

	CHECK(fake_waiting(port, FILL));
	return ((uint64_t *)m->entries)[m->consumer++ & (m->size - 1)];
}

static inline struct xdp_desc fake_take_tx(struct afp_port *port)
{
	struct afp_mock_ring *m = &port->mock[TX];

	CHECK(fake_waiting(port, TX));
	return ((struct xdp_desc *)m->entries)[m->consumer++ & (m->size - 1)];
}

static inline void fake_rx(struct afp_port *port, uint64_t addr, uint32_t len)
{
	struct afp_mock_ring *m = &port->mock[RX];

	CHECK(fake_waiting(port, RX) < m->size);
	((struct xdp_desc *)m->entries)[m->producer++ & (m->size - 1)] = (struct xdp_desc){addr, len, 0};
}

static inline void fake_comp(struct afp_port *port, uint64_t addr)
{
	struct afp_mock_ring *m = &port->mock[COMP];

	CHECK(fake_waiting(port, COMP) < m->size);
	((uint64_t *)m->entries)[m->producer++ & (m->size - 1)] = addr;
}

/* n packets of `len` bytes, each filled with its number. */
static inline void fake_deliver(struct afp_table *t, struct afp_port *port, uint32_t n, uint32_t len, uint8_t number)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = fake_take_fill(port) + 256;

		memset(t->area + addr, number + (int)i, len);
		fake_rx(port, addr, len);
	}
}

/* Send and complete everything; how many. The last packet's first byte goes to *first. */
static inline uint32_t fake_send(struct afp_port *port)
{
	uint32_t n = 0;

	while (fake_waiting(port, TX) && fake_waiting(port, COMP) < port->mock[COMP].size) {
		fake_comp(port, fake_take_tx(port).addr);
		n++;
	}
	return n;
}

#endif
