/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Header fields of a batch, gathered into columns and scattered back, so that array code sees numbers instead of packets.
 *
 * A field counts as there if it lies wholly within its packet, and the packet within the Umem; descriptors are the
 * caller's, and nothing they say is taken on trust.
 *
 * Concurrency: any thread that holds the packets. Ownership: unchanged.
 */
#ifndef AFXDP_POOL_FIELDS_H
#define AFXDP_POOL_FIELDS_H

#include "table.h"

/* Packets: n descriptors into `size` bytes at `area`. Those of packets in several frames are their first frames'; packet i has
 * frames[starts[i]] to frames[starts[i + 1]] then, the first among them, where it is not looked at. */
struct afp_packets {
	const struct afp_desc *descs;
	uint8_t *area;
	uint64_t size;
	uint32_t n;
	const struct afp_desc *frames; /* NULL: each packet is in one */
	const int64_t *starts;
};

/* Columns of n entries for each packet's flow. Numbers in the machine's byte order; 0 for what is not there. */
struct afp_five_tuple {
	uint32_t *src, *dst;     /* IPv4 */
	uint64_t *src6, *dst6;   /* IPv6: [2 n], the high half first */
	uint16_t *sport, *dport; /* TCP, UDP, UDP-Lite, SCTP, DCCP; 0 for fragments but the first */
	uint8_t *proto;          /* IPv4's protocol, or IPv6's last next header */
	uint8_t *version;        /* 4, 6, or 0: no whole IP header */
	uint32_t *l4;            /* where the transport header starts, bytes into the packet; 0 when it is not there */
	uint8_t *valid;          /* 1 if version is not 0 */
};

/* Field of `width` bytes (1, 2, 4, 8) at `offset` from the packet's start, or from base[i] bytes behind it, into column
 * `out`; its bytes reversed if `swap`. 0 where the field is not there. Of 6 bytes: entries of 8. Of 16: entries of two numbers,
 * both reversed, whatever `swap` says. */
void afp_load(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint32_t width, int swap, void *out);
/* The other way round, for the packets with where[i] (NULL: all). How many packets had the field. */
uint32_t afp_store(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint32_t width, int swap,
		   const void *values, const uint8_t *where);
/* Exchange source and destination MAC address. How many packets have both. */
uint32_t afp_swap_macs(const struct afp_packets *p, const uint8_t *where);
/* Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers. */
void afp_five_tuples(const struct afp_packets *p, const struct afp_five_tuple *out);

#endif
