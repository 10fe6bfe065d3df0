/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where the headers of one packet lie: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers, transport.
 *
 * For the files that work on header fields. Nothing is reported that does not lie within the packet.
 */
#ifndef AFXDP_POOL_LAYOUT_H
#define AFXDP_POOL_LAYOUT_H

#include "fields.h"

#include <string.h>

#define ETHER_HEADER 14
#define ETHER_TYPE 12
#define MOST_TAGS 2
/* IPv6 extension headers looked through. RFC 8200 names six; a chain longer than this is nobody's traffic. */
#define MOST_EXTENSIONS 8

enum { IP_ICMP = 1, IP_TCP = 6, IP_UDP = 17, IP_DCCP = 33, IP_ICMPV6 = 58, IP_SCTP = 132, IP_UDPLITE = 136 };
enum { ETHER_IPV4 = 0x0800, ETHER_ARP = 0x0806, ETHER_IPV6 = 0x86dd };

/* All 0 at first, and where a header is not there. Bytes into the packet. */
struct layout {
	uint32_t l3, l4;
	uint32_t end;  /* of the datagram, as far as the packet has it: what lies behind is padding */
	uint32_t here, length; /* of the packet, bytes in its first frame and in all: of who looks beyond that */
	uint16_t type; /* EtherType behind the tags */
	uint8_t version; /* 4 or 6: there is a whole IP header */
	uint8_t proto;
	bool fragment; /* the first or a later one */
	bool cut;      /* the packet ends before the datagram does */
	bool detour;   /* an IPv6 routing header with segments left: the datagram's destination is not the address it has now */
};

/* Where the field lies, or NULL. `at` is the sum of two 32-bit numbers: it does not wrap. */
static inline uint8_t *field(const struct afp_packets *p, uint32_t i, uint64_t at, uint32_t width)
{
	const struct afp_desc *d = &p->descs[i];

	if (unlikely(at + width > d->len || d->addr > p->size || d->len > p->size - d->addr))
		return NULL;
	return p->area + d->addr + at;
}

static inline uint16_t be16(const uint8_t *at)
{
	uint16_t v;

	memcpy(&v, at, sizeof(v));
	return __builtin_bswap16(v);
}

static inline uint32_t be32(const uint8_t *at)
{
	uint32_t v;

	memcpy(&v, at, sizeof(v));
	return __builtin_bswap32(v);
}

static inline uint64_t be64(const uint8_t *at)
{
	uint64_t v;

	memcpy(&v, at, sizeof(v));
	return __builtin_bswap64(v);
}

static inline bool is_tag(uint16_t type)
{
	return type == 0x8100 || type == 0x88a8 || type == 0x9100;
}

static inline bool has_ports(uint8_t proto)
{
	return proto == IP_TCP || proto == IP_UDP || proto == IP_DCCP || proto == IP_SCTP || proto == IP_UDPLITE;
}

static inline void layout_ipv4(const uint8_t *packet, uint32_t len, struct layout *l)
{
	const uint8_t *ip = packet + l->l3;
	uint32_t room = len - l->l3, header, total;
	uint16_t fragment;

	if (room < 20 || ip[0] >> 4 != 4)
		return;
	header = 4u * (ip[0] & 15u);
	total = be16(ip + 2);
	if (header < 20 || total < header || room < header)
		return;
	l->version = 4;
	l->proto = ip[9];
	l->cut = total > room;
	l->end = l->cut ? len : l->l3 + total;
	fragment = be16(ip + 6);
	l->fragment = fragment & 0x3fff;
	/* Any fragment but the first starts in the middle of the datagram. */
	if (!(fragment & 0x1fff) && l->l3 + header < l->end)
		l->l4 = l->l3 + header;
}

static inline void layout_ipv6(const uint8_t *packet, uint32_t len, struct layout *l)
{
	const uint8_t *ip = packet + l->l3;
	uint32_t at = l->l3 + 40, end;

	if (len - l->l3 < 40 || ip[0] >> 4 != 6)
		return;
	l->version = 6;
	l->proto = ip[6];
	end = at + be16(ip + 4);
	l->cut = end > len;
	l->end = l->cut ? len : end;
	for (int n = 0; n < MOST_EXTENSIONS; n++) {
		uint32_t size;
		uint16_t fragment = 0;

		/* Hop-by-hop, routing, fragment, destination options, authentication. All else ends the chain. */
		if (l->proto != 0 && l->proto != 43 && l->proto != 44 && l->proto != 60 && l->proto != 51) {
			if (at < l->end)
				l->l4 = at;
			return;
		}
		if (at + 8 > l->end)
			return;
		size = l->proto == 44 ? 8 : l->proto == 51 ? 4u * (packet[at + 1] + 2u) : 8u * (packet[at + 1] + 1u);
		if (l->proto == 43)
			l->detour |= packet[at + 3] != 0;
		if (l->proto == 44)
			fragment = be16(packet + at + 2);
		l->fragment |= fragment & 0xfff9;
		l->proto = packet[at];
		at += size;
		if (fragment & 0xfff8)
			return; /* a later one has nothing of the chain but its first header's number */
	}
}

/* Of a packet of at least ETHER_HEADER bytes. */
static inline __attribute__((always_inline)) void layout_of(const uint8_t *packet, uint32_t len, struct layout *l)
{
	uint32_t at = ETHER_TYPE;
	uint16_t type = be16(packet + at);

	memset(l, 0, sizeof(*l));
	for (int tags = 0; unlikely(is_tag(type)) && tags < MOST_TAGS; tags++) {
		at += 4;
		if (len < at + 2)
			return;
		type = be16(packet + at);
	}
	l->type = type;
	l->l3 = at + 2;
	if (likely(type == ETHER_IPV4))
		layout_ipv4(packet, len, l);
	else if (type == ETHER_IPV6)
		layout_ipv6(packet, len, l);
}

/* The packet goes on in other frames, and has so many bytes in all: where its datagram ends, which may be there. */
static inline void layout_beyond(const uint8_t *packet, uint32_t length, struct layout *l)
{
	const uint8_t *ip = packet + l->l3;

	if (!l->version)
		return;
	l->end = l->l3 + (l->version == 4 ? be16(ip + 2) : 40u + be16(ip + 4));
	l->cut = l->end > length;
	if (l->cut)
		l->end = length;
}

#endif
