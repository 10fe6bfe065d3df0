/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A tap: copies of the packets that a port receives and sends, for another thread to write to a file.
 *
 * They lie in a ring as pcapng Enhanced Packet Blocks (draft-ietf-opsawg-pcapng, section 4.3), ready to be written as they are. The
 * port's thread never waits: a packet the ring has no room for is dropped here, and counted. Timestamps are the time of the batch, or
 * what is known of each packet received.
 *
 * Concurrency: one thread puts blocks into a ring, that of the ports whose taps share it; one takes them out.
 */
#ifndef AFXDP_POOL_TAP_H
#define AFXDP_POOL_TAP_H

#include <stdint.h>

struct afp_desc;
struct afp_port;

enum afp_way { AFP_IN, AFP_OUT };

struct afp_tap_ring {
	uint8_t *data;
	uint64_t size; /* bytes, a power of two */
	uint64_t head; /* bytes ever put in */
	uint64_t tail; /* bytes ever taken out */
};

struct afp_tap {
	struct afp_tap_ring *ring;
	uint32_t interface, queue; /* as the blocks name them */
	uint32_t snaplen;
	uint32_t ways;             /* 1 << AFP_IN, 1 << AFP_OUT */
	uint32_t stamp;            /* AFP_RX_TIMESTAMP, AFP_RX_ARRIVAL, or 0: which time, where it is known */
	uint64_t tai_ahead_ns;     /* of CLOCK_REALTIME */
	uint64_t taken, dropped;   /* packets */
};

/* Tap a port, or no longer (NULL). When it returns, the port's thread has let go of the tap there was before. Any thread. */
void afp_port_set_tap(struct afp_port *port, struct afp_tap *tap);
void afp_port_tap(struct afp_port *port, const struct afp_desc *descs, uint32_t n, enum afp_way way);

/* Copy out what is in the ring, up to `size` bytes of it; how many. Whole blocks, if `size` is the ring's. */
uint64_t afp_tap_take(struct afp_tap_ring *ring, uint8_t *out, uint64_t size);
/* taken, dropped */
void afp_tap_counts(const struct afp_tap *tap, uint64_t *out);
/* Where each block of `data` begins; how many there are. */
uint32_t afp_tap_walk(const uint8_t *data, uint64_t size, uint32_t *starts);

#endif
