/* SPDX-License-Identifier: BSD-3-Clause */
/* The tx path: frames out of the pool, filled from templates, at a rate. The completion ring brings them home. */
#include "engine.h"

#include <string.h>
#include <time.h>

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
 * Does a frame hold this part of a template already? In its last life it did, and its generation says that nobody had it meanwhile; the
 * kernel only reads what is sent. Then it is as it was behind its head, and need not be copied again.
 */
static inline bool holds(const struct afp_generator *g, uint32_t frame, uint16_t gen, uint32_t part)
{
	uint32_t before, now = (part + 1) << 16 | gen;

	if (!g->written || part + 1 > UINT16_MAX || g->sequence_at + 8 > HEAD || g->checksum_at + 2 > HEAD)
		return false;
	before = g->written[frame];
	g->written[frame] = now;
	return before >> 16 == part + 1 && next_gen((uint16_t)before) == gen;
}

/* One part of a template, into a frame. */
static inline void write_part(const struct afp_generator *g, const struct afp_table *t, struct afp_desc *d, uint32_t part)
{
	bool held = holds(g, frame_of(t, d->addr), d->gen, part);

	d->len = g->offset[part + 1] - g->offset[part];
	memcpy(t->area + d->addr, g->data + g->offset[part], held && d->len > HEAD ? HEAD : d->len);
}

/* `sum`: the checksum is in the packet, and covers the number. */
static inline void write_number(const struct afp_generator *g, uint8_t *at, uint64_t sequence, bool sum)
{
	if (!g->sequence_at)
		return;
	put_be64(at + g->sequence_at, sequence);
	if (g->checksum_at && sum)
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

/* The template of this packet, and its number: template k has its own flow, so its numbers count that flow's packets. */
static inline uint32_t template_of(const struct afp_generator *g, uint64_t packet, uint64_t *sequence)
{
	*sequence = g->templates == 1 ? packet : packet / g->templates;
	return g->templates == 1 ? 0 : (uint32_t)(packet % g->templates);
}

static uint64_t tai_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_TAI, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Ask for what is to be asked for, for one packet. Whether its checksum is left to who sends it. */
static bool ask(struct afp_generator *g, struct afp_table *t, struct afp_desc *d, uint32_t which, uint64_t now)
{
	struct afp_tx_metadata request;

	if (!g->request)
		return false;
	request = g->request[which];
	if (g->stamp_every_ns && now - g->stamped_ns >= g->stamp_every_ns) {
		request.flags |= AFP_TX_TIMESTAMP;
		g->stamped_ns = now;
	}
	if (request.flags)
		afp_tx_request(d, t->area, request, now);
	return request.flags & AFP_TX_CHECKSUM;
}

/* Of the next `n` packets those that fit `room` frames: how many frames those are. */
static uint32_t frames_for(const struct afp_generator *g, uint32_t n, uint32_t room)
{
	uint32_t frames = 0;

	for (uint64_t packet = g->sent; n--; packet++) {
		uint64_t sequence;
		uint32_t which = template_of(g, packet, &sequence), parts = g->first[which + 1] - g->first[which];

		if (parts > room - frames)
			break;
		frames += parts;
	}
	return frames;
}

/* Up to n packets, each in as many frames as it needs, with what they ask for. */
static uint32_t generate_parts(struct afp_generator *g, struct afp_port *port, struct afp_desc *scratch, uint32_t n)
{
	struct afp_table *t = port->table;
	struct afp_refusals refused = {0};
	const uint64_t now = g->stamp_every_ns ? tai_ns() : 0;
	uint64_t packet = g->sent;
	uint32_t done = 0, frames = frames_for(g, n, port_tx_room(port, AFP_BATCH_MAX)), sent;
	int got = frames ? afp_pool_alloc(g->pool, scratch, frames) : 0;

	if (got <= 0)
		return 0;
	for (;; packet++) {
		struct afp_desc *d = &scratch[done];
		uint64_t sequence;
		uint32_t which = template_of(g, packet, &sequence), part = g->first[which], parts = g->first[which + 1] - part;

		if (parts > (uint32_t)got - done)
			break;
		for (uint32_t i = 0; i < parts; i++) {
			write_part(g, t, &d[i], part + i);
			d[i].options = i + 1 < parts ? AFP_CONTD : 0;
		}
		write_number(g, t->area + d->addr, sequence, !ask(g, t, d, which, now));
		done += parts;
	}
	sent = afp_port_transmit(port, scratch, done, &refused);
	if (sent < (uint32_t)got)
		afp_put(t, scratch + sent, (uint32_t)got - sent, &refused);
	n = packets_in(scratch, sent);
	g->sent += n;
	return n;
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
	if (unlikely(g->first))
		return generate_parts(g, port, scratch, n);
	if (n)
		n = port_tx_room(port, n);
	if (!n)
		return 0;
	got = afp_pool_alloc(g->pool, scratch, n);
	if (got <= 0)
		return 0;
	for (int i = 0; i < got; i++) {
		uint64_t sequence;

		write_part(g, t, &scratch[i], template_of(g, g->sent + (uint64_t)i, &sequence));
		write_number(g, t->area + scratch[i].addr, sequence, true);
	}
	sent = afp_port_transmit(port, scratch, (uint32_t)got, &refused);
	if (sent < (uint32_t)got)
		afp_put(t, scratch + sent, (uint32_t)got - sent, &refused);
	g->sent += sent;
	return sent;
}
