/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a device is asked to do for packets it sends: checksums, timestamps, a time to send at (Documentation/networking/
 * xsk-tx-metadata.rst). The request lies in the frame before the packet, and the descriptor's options say that there is one.
 *
 *     | struct afp_tx_metadata, 24 bytes, the kernel's | a number of the application's | the packet
 *
 * A port whose socket was made for requests keeps that much free before every packet it sends: the kernel sees to it. Timestamps
 * come back with completions, when the frame goes home: the port keeps them, each with its packet's number.
 *
 * Concurrency: requests are made by who holds the packets, stamps kept by the port's thread and taken by one other.
 */
#ifndef AFXDP_POOL_REQUESTS_H
#define AFXDP_POOL_REQUESTS_H

#include "fields.h"
#include "port.h"

/* Newer than the headers of the oldest distribution that is built on. */
#ifndef XDP_UMEM_TX_SW_CSUM
#define XDP_UMEM_TX_SW_CSUM (1 << 1)
#endif
#ifndef XDP_UMEM_TX_METADATA_LEN
#define XDP_UMEM_TX_METADATA_LEN (1 << 2)
#endif

#define AFP_STAMPS 8192 /* kept until they are taken; a power of two */

enum afp_request { AFP_ASK_TIMESTAMP = AFP_TX_TIMESTAMP, AFP_ASK_CHECKSUM = AFP_TX_CHECKSUM, AFP_ASK_LAUNCH = AFP_TX_LAUNCH_TIME };

struct afp_stamp {
	uint64_t number, timestamp;
};

/* Stamps of one port, between its thread and who takes them. */
struct afp_stamps {
	uint64_t head, tail, lost;
	struct afp_stamp ring[AFP_STAMPS];
	uint16_t asked[]; /* [nframes] how far into it the packet begins that is in TX with a stamp to come; 0: none is */
};

/* Ask for one thing for each packet with where[i] (NULL: all), whose values are one a packet: launch times, or numbers for
 * timestamps. done[i]: asked; else the packet has no room, is a fragment, no checksum a device could fill in, or not held. */
void afp_tx_ask(const struct afp_table *t, const struct afp_packets *p, enum afp_request what, const uint64_t *values,
		const uint8_t *where, uint8_t *done);

/* The port sends requests, and keeps stamps if `stamps`. Before it has sent anything. 0 or -ENOMEM. */
int afp_port_want_requests(struct afp_port *port, bool stamps);
void afp_port_forget_requests(struct afp_port *port);
/* What the packet's descriptor asks for, or nothing; false: the kernel would not take that. */
bool afp_request_read(const struct afp_table *t, const struct afp_desc *desc, struct afp_tx_metadata *request);
/* The packet, lent to TX, asks for that: its stamp is waited for. */
void afp_request_noted(struct afp_port *port, const struct afp_desc *desc, const struct afp_tx_metadata *request);
/* afp_port_transmit() of such a port, where packets are in one frame each. */
uint32_t afp_transmit_requests(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused);
/* Frames at these places of the completion ring come home: their stamps are taken. */
void afp_port_keep_stamps(struct afp_port *port, uint32_t index, uint32_t n);
/* Up to n stamps, oldest first; how many. lost: how many there was no room for, so far. */
uint32_t afp_port_take_stamps(struct afp_port *port, struct afp_stamp *out, uint32_t n, uint64_t *lost);

/* A socket over the table's memory with room for requests, which libxdp can make from 1.5 on only: its descriptor, not bound. */
int afp_socket_register(void *area, uint64_t size, uint32_t frame_size, uint32_t headroom, uint32_t flags,
			const struct afp_port_config *c);
int afp_socket_bind(int fd, const struct afp_port_config *c);

#endif
