/* SPDX-License-Identifier: BSD-3-Clause */
/* The tx path: frames out of the pool, filled from templates, at a rate. The completion ring brings them home. */
#include "engine.h"

#include <string.h>

static inline void put_be64(uint8_t *at, uint64_t value)
{
	value = __builtin_bswap64(value);
	memcpy(at, &value, sizeof(value));
}

/* RFC 1624: fold the sequence number, zero in the template, into the template's checksum. */
static inline void add_to_checksum(uint8_t *at, uint64_t sequence)
{
	uint32_t sum = (uint16_t)~(uint16_t)(at[0] << 8 | at[1]);

	sum += (sequence & 0xffff) + (sequence >> 16 & 0xffff) + (sequence >> 32 & 0xffff) + (sequence >> 48);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	if (!sum)
		sum = 0xffff; /* 0 would say "no checksum" (RFC 768) */
	at[0] = (uint8_t)(sum >> 8);
	at[1] = (uint8_t)sum;
}

#define HEAD 64 /* bytes that are always written: what changes from packet to packet is among them, as a rule */

/*
 * Does a frame hold this template already? In its last life it did, and its generation says that nobody had it meanwhile; the
 * kernel only reads what is sent. Then it is as it was behind its head, and need not be copied again.
 */
static inline bool holds(const struct afp_generator *g, uint32_t frame, uint16_t gen, uint32_t which)
{
	uint32_t before, now = (which + 1) << 16 | gen;

	if (!g->written || which + 1 > UINT16_MAX || g->sequence_at + 8 > HEAD || g->checksum_at + 2 > HEAD)
		return false;
	before = g->written[frame];
	g->written[frame] = now;
	return before >> 16 == which + 1 && next_gen((uint16_t)before) == gen;
}

static inline void write_packet(const struct afp_generator *g, uint8_t *at, uint32_t which, uint64_t sequence, bool held)
{
	uint32_t len = g->offset[which + 1] - g->offset[which];

	memcpy(at, g->data + g->offset[which], held && len > HEAD ? HEAD : len);
	if (!g->sequence_at)
		return;
	put_be64(at + g->sequence_at, sequence);
	if (g->checksum_at)
		add_to_checksum(at + g->checksum_at, sequence);
}

/* How many packets the rate allows now. */
static uint32_t allowance(const struct afp_generator *g, uint32_t batch, uint64_t *next_ns)
{
	double due;

	if (g->count && g->count - g->sent < batch)
		batch = (uint32_t)(g->count - g->sent);
	if (g->rate <= 0)
		return batch;
	due = (double)(afp_now_ns() - g->started_ns) * 1e-9 * g->rate + 1.0 - (double)g->sent;
	if (due < 1.0) {
		*next_ns = g->started_ns + (uint64_t)((double)g->sent / g->rate * 1e9) + 1;
		return 0;
	}
	return due < batch ? (uint32_t)due : batch;
}

uint32_t afp_generate(struct afp_generator *g, struct afp_port *port, struct afp_desc *scratch, uint32_t batch, uint64_t *next_ns)
{
	struct afp_table *t = port->table;
	struct afp_refusals refused = {0};
	uint32_t n, sent;
	int got;

	*next_ns = UINT64_MAX;
	if (!g->started_ns)
		g->started_ns = afp_now_ns();
	n = allowance(g, batch, next_ns);
	if (n)
		n = port_tx_room(port, n);
	if (!n)
		return 0;
	got = afp_pool_alloc(g->pool, scratch, n);
	if (got <= 0)
		return 0;
	for (int i = 0; i < got; i++) {
		uint64_t sequence = g->sent + (uint64_t)i;
		uint32_t which = g->templates == 1 ? 0 : (uint32_t)(sequence % g->templates);

		scratch[i].len = g->offset[which + 1] - g->offset[which];
		/* Template k has its own flow, so its sequence numbers count that flow's packets. */
		write_packet(g, t->area + scratch[i].addr, which, g->templates == 1 ? sequence : sequence / g->templates,
			     holds(g, frame_of(t, scratch[i].addr), scratch[i].gen, which));
	}
	sent = afp_port_transmit(port, scratch, (uint32_t)got, &refused);
	if (sent < (uint32_t)got)
		afp_put(t, scratch + sent, (uint32_t)got - sent, &refused);
	g->sent += sent;
	return sent;
}
