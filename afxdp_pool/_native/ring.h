/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The four rings of a port. The ring operations are libxdp's inlines (xdp/xsk.h); what is added here is what a port needs
 * beside them, and rings over any buffer, so that a test can play the kernel's side without a kernel.
 *
 * A ring is single-producer, single-consumer. Publishing is a store-release of the producer index after the entries are
 * written; consuming is a load-acquire of it before they are read, and a store-release of the consumer index after
 * (net/xdp/xsk_queue.h draws the pairs). Indices are free-running 32-bit numbers: they wrap, and the mask maps them.
 */
#ifndef AFXDP_POOL_RING_H
#define AFXDP_POOL_RING_H

#include <stdlib.h>
#include <xdp/xsk.h>

/* XDP_MAX_TX_SKB_BUDGET: Linux 6.18, newer than the headers of the oldest distribution supported. */
#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9
#endif
/* XDP_USE_SG: Linux 6.6. */
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif

/* A ring in plain memory: what mmap gives for a socket's ring. */
struct afp_mock_ring {
	uint32_t producer;
	uint32_t consumer;
	uint32_t flags;
	uint32_t size;
	void *entries; /* uint64_t[size] or struct xdp_desc[size] */
};

/* Entries published to a producer ring that the other side has not consumed. */
static inline uint32_t ring_pending(const struct xsk_ring_prod *r)
{
	return *r->producer - __atomic_load_n(r->consumer, __ATOMIC_ACQUIRE);
}

#endif
