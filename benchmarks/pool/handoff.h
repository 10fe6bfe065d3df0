/* SPDX-License-Identifier: BSD-3-Clause */
/* Batches from the owner to one returner: a bounded queue, one writer, one reader, filled and emptied in place. */
#ifndef HANDOFF_H
#define HANDOFF_H

#include "bench.h"

#include <stdatomic.h>

#define HANDOFF_SLOTS 16

struct slot {
	uint32_t n;
	_Alignas(64) uint64_t items[2 * BULK_MAX]; /* room for items of up to 16 bytes */
};

struct handoff {
	_Alignas(64) _Atomic uint32_t head;
	_Alignas(64) _Atomic uint32_t tail;
	struct slot slots[HANDOFF_SLOTS];
};

/* The slot to fill next, or NULL: the reader is behind. */
static inline struct slot *handoff_reserve(struct handoff *h)
{
	uint32_t head = atomic_load_explicit(&h->head, memory_order_relaxed);

	if (head - atomic_load_explicit(&h->tail, memory_order_acquire) == HANDOFF_SLOTS)
		return NULL;
	return &h->slots[head % HANDOFF_SLOTS];
}
static inline void handoff_submit(struct handoff *h)
{
	atomic_store_explicit(&h->head, atomic_load_explicit(&h->head, memory_order_relaxed) + 1, memory_order_release);
}
static inline struct slot *handoff_peek(struct handoff *h)
{
	uint32_t tail = atomic_load_explicit(&h->tail, memory_order_relaxed);

	return tail == atomic_load_explicit(&h->head, memory_order_acquire) ? NULL : &h->slots[tail % HANDOFF_SLOTS];
}
static inline void handoff_release(struct handoff *h)
{
	atomic_store_explicit(&h->tail, atomic_load_explicit(&h->tail, memory_order_relaxed) + 1, memory_order_release);
}

#endif
