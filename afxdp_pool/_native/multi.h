/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Packets of several frames (multi-buffer: Documentation/networking/af_xdp.rst): consecutive descriptors, with XDP_PKT_CONTD in
 * the options of all but the last.
 *
 * Frames that are no power of two (XDP_UMEM_UNALIGNED_CHUNK_FLAG) come and go by the same functions, a packet in each: the loops
 * of port.c know shifts only.
 *
 * A packet moves whole or not at all. Of one that is incomplete in RX nothing is received; one with a bad descriptor is refused
 * with all of its frames; in TX there is room for all of it, or none goes. So no batch begins or ends within a packet.
 *
 * Concurrency and ownership: as port.h.
 */
#ifndef AFXDP_POOL_MULTI_H
#define AFXDP_POOL_MULTI_H

#include "port.h"

/* The most frames of a packet that is received. 64 KiB in the smallest frames with the most headroom are 147; what is longer, or
 * has no end in sight, is refused. */
#define AFP_PACKET_FRAMES 256u

/* Up to `packets` whole packets, in up to `room` frames. How many frames. When the next packet needs more room than was left for
 * it, and none was received, `rx_next` says how much. */
uint32_t afp_receive_packets(struct afp_port *port, struct afp_desc *out, uint32_t room, uint32_t packets);
/* Whole packets into TX, as afp_port_transmit(). How many frames. */
uint32_t afp_transmit_packets(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused);

/* Of the frames completed at these places of the ring, `home` came home: which of them are more of a packet. */
void afp_count_completed(struct afp_port *port, uint32_t index, uint32_t n, uint32_t home);

/* Frames of the packet that begins at `descs`. */
static inline uint32_t packet_frames(const struct afp_desc *descs, uint32_t n)
{
	uint32_t i = 0;

	while (i + 1 < n && descs[i].options & AFP_CONTD)
		i++;
	return i + 1;
}

static inline uint32_t packets_in(const struct afp_desc *descs, uint32_t n)
{
	uint32_t packets = 0;

	for (uint32_t i = 0; i < n; i++)
		packets += !(descs[i].options & AFP_CONTD);
	return packets;
}

#endif
