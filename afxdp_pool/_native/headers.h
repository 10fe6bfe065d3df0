/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Headers of a batch, by name: found in each packet, behind VLAN tags, IPv4 options and IPv6 extension headers; their fields as
 * columns; their checksums; hashes over a packet's flow.
 *
 * A header counts as there if its fixed part lies wholly within its packet and datagram. A packet without it is neither read nor
 * written. Nothing is remembered between calls: packets may change.
 *
 * Concurrency: any thread that holds the packets. Ownership: unchanged.
 */
#ifndef AFXDP_POOL_HEADERS_H
#define AFXDP_POOL_HEADERS_H

#include "fields.h"

/* VLAN: the outer tag. ARP: for IPv4 on Ethernet. TCP, UDP and ICMP: not of later fragments. */
enum afp_header { AFP_ETH, AFP_VLAN, AFP_ARP, AFP_IPV4, AFP_IPV6, AFP_TCP, AFP_UDP, AFP_ICMP, AFP_ICMPV6 };

/* Bytes into the packet where its header starts, and whether there is one: at[i] is 0 where there is none. */
void afp_header_find(const struct afp_packets *p, enum afp_header kind, uint32_t *at, uint8_t *valid);
/* The same of packet i: -1 where there is none. */
int64_t afp_header_of(const struct afp_packets *p, uint32_t i, enum afp_header kind);
/* A field in network order, `offset` bytes into the header; else as afp_load() and afp_store(). */
void afp_header_load(const struct afp_packets *p, enum afp_header kind, uint32_t offset, uint32_t width, void *out);
uint32_t afp_header_store(const struct afp_packets *p, enum afp_header kind, uint32_t offset, uint32_t width, const void *values,
			  const uint8_t *where);

/*
 * checksum.c. `kinds`: bits 1 << AFP_IPV4 (its header's), AFP_TCP, AFP_UDP, AFP_ICMP, AFP_ICMPV6. A fragment's transport checksum
 * covers what is not there, and so does that of a datagram with segments left to visit: not written, not verified. Of a packet in
 * several frames all are covered; its headers are in the first.
 */
/* Leave packet i's to a device that sums what follows `start` and puts it `offset` further on: the sum of the pseudo-header lies
 * there then. False, and nothing written: there is no TCP's or UDP's that can be known, or bytes behind it. */
bool afp_checksum_begin(const struct afp_packets *p, uint32_t i, uint16_t *start, uint16_t *offset);
/* How many packets got one. */
uint32_t afp_checksum_fill(const struct afp_packets *p, uint32_t kinds, const uint8_t *where);
/* good[i]: it has one of those kinds, and none of those it has is wrong. UDP's of 0 over IPv4 is not: it has none. */
void afp_checksum_verify(const struct afp_packets *p, uint32_t kinds, uint8_t *good);
/* One hop less for IPv4, with its checksum (RFC 1624), and IPv6. How many; expired[i]: there was none left, it is unchanged. */
uint32_t afp_decrement_ttl(const struct afp_packets *p, const uint8_t *where, uint8_t *expired);

/* hash.c. 0 for what is not IP. A fragment is hashed without its ports, like the rest of its datagram. */
#define AFP_RSS_KEY 40
struct afp_toeplitz {
	uint32_t of[2 * (AFP_RSS_KEY - 4)][16]; /* what each half of each byte of the input adds */
};

void afp_toeplitz_init(struct afp_toeplitz *t, const uint8_t *key);
/* As a NIC's receive-side scaling: source, destination, and ports if `ports` and it has some. */
void afp_rss_hash(const struct afp_packets *p, const struct afp_toeplitz *t, int ports, uint32_t *out);
/* Addresses, ports, protocol, seed. Symmetric: the same in both directions. */
void afp_flow_hash(const struct afp_packets *p, int symmetric, uint64_t seed, uint64_t *out);

#endif
