/* SPDX-License-Identifier: BSD-3-Clause */
/* Header fields as columns: see fields.h. */
#include "fields.h"

#include <string.h>

#define ETHER_HEADER 14
#define ETHER_TYPE 12
#define MOST_TAGS 2
/* IPv6 extension headers looked through. RFC 8200 names six; a chain longer than this is nobody's traffic. */
#define MOST_EXTENSIONS 8

/* Where the field lies, or NULL. `at` is the sum of two 32-bit numbers: it does not wrap. */
static inline uint8_t *field(const struct afp_packets *p, uint32_t i, uint64_t at, uint32_t width)
{
	const struct afp_desc *d = &p->descs[i];

	if (unlikely(at + width > d->len || d->addr > p->size || d->len > p->size - d->addr))
		return NULL;
	return p->area + d->addr + at;
}

static inline uint64_t reversed(uint64_t v, uint32_t width)
{
	return __builtin_bswap64(v) >> (64 - 8 * width);
}

/* `width` is a constant where these are inlined: a load and a byte swap. Little-endian, as the descriptors are. */
static inline __attribute__((always_inline)) void load(const struct afp_packets *p, const uint32_t *base, uint32_t offset,
						       const uint32_t width, int swap, uint8_t *out)
{
	for (uint32_t i = 0; i < p->n; i++, out += width) {
		const uint8_t *at = field(p, i, (base ? (uint64_t)base[i] : 0) + offset, width);
		uint64_t v = 0;

		if (likely(at))
			memcpy(&v, at, width);
		if (swap)
			v = reversed(v, width);
		memcpy(out, &v, width);
	}
}

static inline __attribute__((always_inline)) uint32_t store(const struct afp_packets *p, const uint32_t *base, uint32_t offset,
							    const uint32_t width, int swap, const uint8_t *values,
							    const uint8_t *where)
{
	uint32_t done = 0;

	for (uint32_t i = 0; i < p->n; i++, values += width) {
		uint8_t *at = field(p, i, (base ? (uint64_t)base[i] : 0) + offset, width);
		uint64_t v = 0;

		if (!at || (where && !where[i]))
			continue;
		memcpy(&v, values, width);
		if (swap)
			v = reversed(v, width);
		memcpy(at, &v, width);
		done++;
	}
	return done;
}

void afp_load(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint32_t width, int swap, void *out)
{
	switch (width) {
	case 1:
		load(p, base, offset, 1, 0, out);
		break;
	case 2:
		load(p, base, offset, 2, swap, out);
		break;
	case 4:
		load(p, base, offset, 4, swap, out);
		break;
	case 8:
		load(p, base, offset, 8, swap, out);
		break;
	}
}

uint32_t afp_store(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint32_t width, int swap,
		   const void *values, const uint8_t *where)
{
	switch (width) {
	case 1:
		return store(p, base, offset, 1, 0, values, where);
	case 2:
		return store(p, base, offset, 2, swap, values, where);
	case 4:
		return store(p, base, offset, 4, swap, values, where);
	case 8:
		return store(p, base, offset, 8, swap, values, where);
	}
	return 0;
}

uint32_t afp_swap_macs(const struct afp_packets *p, const uint8_t *where)
{
	uint32_t done = 0;

	for (uint32_t i = 0; i < p->n; i++) {
		uint8_t *eth = field(p, i, 0, ETHER_HEADER), mac[6];

		if (!eth || (where && !where[i]))
			continue;
		memcpy(mac, eth, 6);
		memcpy(eth, eth + 6, 6);
		memcpy(eth + 6, mac, 6);
		done++;
	}
	return done;
}

/* Flows ------------------------------------------------------------------------------------------------------------------ */

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

static bool has_ports(uint8_t proto)
{
	return proto == 6 || proto == 17 || proto == 33 || proto == 132 || proto == 136; /* TCP, UDP, DCCP, SCTP, UDP-Lite */
}

struct flow {
	uint32_t src, dst, l4;
	uint64_t src6[2], dst6[2];
	uint16_t sport, dport;
	uint8_t version, proto;
};

/* The transport header at `at`, of a datagram that ends at `end`: what lies behind it is padding. */
static inline void transport(const uint8_t *packet, uint32_t at, uint32_t end, struct flow *f)
{
	if (at >= end)
		return;
	f->l4 = at;
	if (has_ports(f->proto) && end - at >= 4) {
		f->sport = be16(packet + at);
		f->dport = be16(packet + at + 2);
	}
}

static inline void ipv4(const uint8_t *packet, uint32_t at, uint32_t len, struct flow *f)
{
	const uint8_t *ip = packet + at;
	uint32_t header, total;

	if (len - at < 20 || ip[0] >> 4 != 4)
		return;
	header = 4u * (ip[0] & 15u);
	total = be16(ip + 2);
	if (header < 20 || total < header || len - at < header)
		return;
	f->version = 4;
	f->proto = ip[9];
	f->src = be32(ip + 12);
	f->dst = be32(ip + 16);
	if (!(be16(ip + 6) & 0x1fff)) /* any fragment but the first starts in the middle of the datagram */
		transport(packet, at + header, len - at < total ? len : at + total, f);
}

static void ipv6(const uint8_t *packet, uint32_t at, uint32_t len, struct flow *f)
{
	const uint8_t *ip = packet + at;
	uint32_t end;
	bool first = true;

	if (len - at < 40 || ip[0] >> 4 != 6)
		return;
	f->version = 6;
	f->proto = ip[6];
	for (int half = 0; half < 2; half++) {
		f->src6[half] = be64(ip + 8 + 8 * half);
		f->dst6[half] = be64(ip + 24 + 8 * half);
	}
	end = at + 40 + be16(ip + 4);
	if (end > len)
		end = len;
	at += 40;
	for (int n = 0; n < MOST_EXTENSIONS; n++) {
		uint32_t size;

		/* Hop-by-hop, routing, fragment, destination options, authentication. All else ends the chain. */
		if (f->proto != 0 && f->proto != 43 && f->proto != 44 && f->proto != 60 && f->proto != 51) {
			if (first)
				transport(packet, at, end, f);
			return;
		}
		if (at + 8 > end || !first)
			return; /* a later fragment has nothing of the chain but its first header's number */
		size = f->proto == 44 ? 8 : f->proto == 51 ? 4u * (packet[at + 1] + 2u) : 8u * (packet[at + 1] + 1u);
		if (f->proto == 44)
			first = !(be16(packet + at + 2) & 0xfff8);
		f->proto = packet[at];
		at += size;
	}
}

static inline void flow(const uint8_t *packet, uint32_t len, struct flow *f)
{
	uint32_t at = ETHER_TYPE;
	uint16_t type = be16(packet + at);

	for (int tags = 0; unlikely(type == 0x8100 || type == 0x88a8 || type == 0x9100) && tags < MOST_TAGS; tags++) {
		at += 4;
		if (len < at + 2)
			return;
		type = be16(packet + at);
	}
	at += 2;
	if (likely(type == 0x0800))
		ipv4(packet, at, len, f);
	else if (type == 0x86dd)
		ipv6(packet, at, len, f);
}

void afp_five_tuples(const struct afp_packets *p, const struct afp_five_tuple *out)
{
	for (uint32_t i = 0; i < p->n; i++) {
		const uint8_t *packet = field(p, i, 0, ETHER_HEADER);
		struct flow f = {0};

		if (likely(packet))
			flow(packet, p->descs[i].len, &f);
		out->src[i] = f.src;
		out->dst[i] = f.dst;
		memcpy(out->src6 + 2 * i, f.src6, sizeof(f.src6));
		memcpy(out->dst6 + 2 * i, f.dst6, sizeof(f.dst6));
		out->sport[i] = f.sport;
		out->dport[i] = f.dport;
		out->proto[i] = f.proto;
		out->version[i] = f.version;
		out->l4[i] = f.l4;
		out->valid[i] = f.version != 0;
	}
}
