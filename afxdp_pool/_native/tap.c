/* SPDX-License-Identifier: BSD-3-Clause */
/* Packets copied into pcapng blocks: see tap.h. */
#include "metadata.h"
#include "multi.h"

#include <sched.h>
#include <string.h>
#include <time.h>

/* An Enhanced Packet Block is this, the packet up to a multiple of 4, and the tail. */
struct block_head {
	uint32_t type, length, interface, time_high, time_low, captured, original;
};
struct block_tail {
	uint16_t flags_code, flags_length;
	uint32_t flags;
	uint16_t queue_code, queue_length;
	uint32_t queue;
	uint32_t end_of_options;
	uint32_t length;
};
enum { PACKET_BLOCK = 6, OPTION_FLAGS = 2, OPTION_QUEUE = 6 };

static uint64_t put(const struct afp_tap_ring *ring, uint64_t at, const void *from, uint64_t n)
{
	uint64_t start = at & (ring->size - 1);
	uint64_t first = ring->size - start < n ? ring->size - start : n;

	memcpy(ring->data + start, from, first);
	memcpy(ring->data, (const uint8_t *)from + first, n - first);
	return at + n;
}

/* When the packet came, as far as that is asked for and known; else when its batch did. */
static uint64_t time_of(const struct afp_tap *tap, const struct afp_table *t, const struct afp_desc *desc, uint64_t now)
{
	const struct afp_rx_metadata *known = afp_rx_known(t, desc);

	if (!known || !(known->present & tap->stamp))
		return now;
	return tap->stamp == AFP_RX_TIMESTAMP ? known->timestamp : known->arrival - tap->tai_ahead_ns;
}

/* Up to `left` bytes of a packet, frame by frame. */
static uint64_t put_packet(const struct afp_tap_ring *ring, uint64_t at, const struct afp_table *t, const struct afp_desc *descs,
			   uint32_t left)
{
	for (; left; descs++) {
		uint32_t bytes = descs->len < left ? descs->len : left;

		at = put(ring, at, t->area + descs->addr, bytes);
		left -= bytes;
	}
	return at;
}

static void copy(struct afp_tap *tap, const struct afp_table *t, const struct afp_desc *descs, uint32_t n, bool multi, enum afp_way way)
{
	struct afp_tap_ring *ring = tap->ring;
	uint64_t head = ring->head, tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE), now;
	struct timespec ts;
	uint32_t done = 0, packets = 0;

	clock_gettime(CLOCK_REALTIME, &ts);
	now = (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
	for (uint32_t i = 0, frames; i < n; i += frames, packets++) {
		uint32_t whole = 0;

		frames = multi ? packet_frames(descs + i, n - i) : 1;
		for (uint32_t f = 0; f < frames; f++)
			whole += descs[i + f].len;
		const uint32_t captured = whole < tap->snaplen ? whole : tap->snaplen, padding = -captured & 3, none = 0;
		const uint64_t when = tap->stamp && way == AFP_IN ? time_of(tap, t, &descs[i], now) : now;
		const uint32_t length = (uint32_t)(sizeof(struct block_head) + captured + padding + sizeof(struct block_tail));

		if (head + length - tail > ring->size)
			continue; /* a shorter one may still fit */
		head = put(ring, head, &(struct block_head){PACKET_BLOCK, length, tap->interface, (uint32_t)(when >> 32),
							    (uint32_t)when, captured, whole}, sizeof(struct block_head));
		head = put_packet(ring, head, t, descs + i, captured);
		head = put(ring, head, &none, padding);
		head = put(ring, head, &(struct block_tail){OPTION_FLAGS, 4, way == AFP_IN ? 1 : 2, OPTION_QUEUE, 4, tap->queue, 0,
							    length}, sizeof(struct block_tail));
		done++;
	}
	__atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
	__atomic_store_n(&tap->taken, tap->taken + done, __ATOMIC_RELAXED);
	__atomic_store_n(&tap->dropped, tap->dropped + packets - done, __ATOMIC_RELAXED);
}

void afp_port_tap(struct afp_port *port, const struct afp_desc *descs, uint32_t n, enum afp_way way)
{
	struct afp_tap *tap = __atomic_load_n(&port->tap, __ATOMIC_RELAXED);

	/* Say which tap is in use, then look whether it is still the port's: who takes it off does the reverse. */
	__atomic_store_n(&port->tapping, tap, __ATOMIC_SEQ_CST);
	if (tap && __atomic_load_n(&port->tap, __ATOMIC_SEQ_CST) == tap && n && tap->ways >> way & 1)
		copy(tap, port->table, descs, n, port->multi_buffer, way);
	__atomic_store_n(&port->tapping, NULL, __ATOMIC_RELEASE);
}

void afp_port_set_tap(struct afp_port *port, struct afp_tap *tap)
{
	struct afp_tap *before = __atomic_exchange_n(&port->tap, tap, __ATOMIC_SEQ_CST);

	while (before && __atomic_load_n(&port->tapping, __ATOMIC_SEQ_CST) == before)
		sched_yield();
}

uint64_t afp_tap_take(struct afp_tap_ring *ring, uint8_t *out, uint64_t size)
{
	uint64_t tail = ring->tail, n = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) - tail;
	uint64_t start = tail & (ring->size - 1), first;

	if (n > size)
		n = size;
	first = ring->size - start < n ? ring->size - start : n;
	memcpy(out, ring->data + start, first);
	memcpy(out + first, ring->data, n - first);
	__atomic_store_n(&ring->tail, tail + n, __ATOMIC_RELEASE);
	return n;
}

void afp_tap_counts(const struct afp_tap *tap, uint64_t *out)
{
	out[0] = __atomic_load_n(&tap->taken, __ATOMIC_RELAXED);
	out[1] = __atomic_load_n(&tap->dropped, __ATOMIC_RELAXED);
}

uint32_t afp_tap_walk(const uint8_t *data, uint64_t size, uint32_t *starts)
{
	struct block_head head;
	uint32_t n = 0;

	for (uint64_t at = 0; at + sizeof(head) <= size; at += head.length) {
		memcpy(&head, data + at, sizeof(head));
		starts[n++] = (uint32_t)at;
	}
	return n;
}
