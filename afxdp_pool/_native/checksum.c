/* SPDX-License-Identifier: BSD-3-Clause */
/* Checksums of IPv4, TCP, UDP and ICMP, and the hop count that IPv4's covers: see headers.h. */
#include "headers.h"
#include "layout.h"

enum verdict { NONE, GOOD, BAD };

#define LONGEST_FIXED 20 /* of the headers below: TCP's */

/* What a checksum covers, and where it lies. */
struct covered {
	uint8_t *at;
	uint32_t size, check;
	uint64_t pseudo; /* the sum of its pseudo-header */
	uint32_t here;   /* of `size` the bytes that are in the packet's first frame */
};

/* The internet checksum's sum (RFC 1071) in 32-bit words of the machine's order, which is folded at the end. */
static uint64_t sum(const uint8_t *at, uint32_t size, uint64_t total)
{
	uint32_t word;

	for (; size >= sizeof(word); size -= (uint32_t)sizeof(word), at += sizeof(word)) {
		memcpy(&word, at, sizeof(word));
		total += word;
	}
	word = 0;
	memcpy(&word, at, size);
	return total + word;
}

static uint16_t fold(uint64_t total)
{
	total = (total & 0xffffffff) + (total >> 32);
	total = (total & 0xffffffff) + (total >> 32);
	total = (total & 0xffff) + (total >> 16);
	return (uint16_t)((total & 0xffff) + (total >> 16));
}

static uint64_t pseudo(const uint8_t *packet, const struct layout *l, uint32_t size)
{
	uint64_t total = (uint64_t)__builtin_bswap32(size) + __builtin_bswap32(l->proto);

	return l->version == 4 ? sum(packet + l->l3 + 12, 8, total) : sum(packet + l->l3 + 8, 32, total);
}

static enum verdict cover_ipv4(uint8_t *packet, const struct layout *l, struct covered *c)
{
	if (l->version != 4)
		return NONE;
	*c = (struct covered){.at = packet + l->l3, .size = 4u * (packet[l->l3] & 15u), .check = 10};
	c->here = c->size;
	return GOOD;
}

/* NONE: there is none of these kinds that can be known. BAD: its length cannot be true. */
static enum verdict cover_transport(uint8_t *packet, const struct layout *l, uint32_t kinds, struct covered *c)
{
	uint32_t size = l->end - l->l4, least = 8;
	bool has_pseudo = true;

	if (!l->l4 || l->fragment || l->detour)
		return NONE;
	c->at = packet + l->l4;
	if (l->proto == IP_TCP && kinds & 1u << AFP_TCP) {
		c->check = 16;
		least = 20;
	} else if (l->proto == IP_UDP && kinds & 1u << AFP_UDP) {
		uint32_t own = size < 8 ? 0 : be16(c->at + 4);

		if (own > size)
			return BAD;
		c->check = 6;
		size = own;
	} else if (l->proto == IP_ICMP && l->version == 4 && kinds & 1u << AFP_ICMP) {
		c->check = 2;
		has_pseudo = false;
	} else if (l->proto == IP_ICMPV6 && l->version == 6 && kinds & 1u << AFP_ICMPV6) {
		c->check = 2;
	} else {
		return NONE;
	}
	if (l->cut || size < least)
		return BAD;
	c->size = size;
	c->here = l->here - l->l4 < size ? l->here - l->l4 : size;
	c->pseudo = has_pseudo ? pseudo(packet, l, size) : 0;
	return GOOD;
}

/* Headers of packet i, of which as many bytes as its frames have, and the transport's fixed part in the first of them. */
static void look(const struct afp_packets *p, uint32_t i, const uint8_t *packet, struct layout *l)
{
	const uint32_t here = p->descs[i].len;
	uint64_t length = here;

	layout_of(packet, here, l);
	l->here = l->length = here;
	if (likely(!p->frames || p->starts[i + 1] - p->starts[i] == 1))
		return;
	for (int64_t k = p->starts[i] + 1; k < p->starts[i + 1]; k++)
		length += p->frames[k].len;
	if (l->l4 + LONGEST_FIXED > here)
		l->l4 = 0;
	l->length = length < UINT32_MAX ? (uint32_t)length : UINT32_MAX;
	layout_beyond(packet, l->length, l);
}

/* The sum of all that is covered, in as many frames as it lies in; false: a frame lies nowhere. */
static bool add_up(const struct afp_packets *p, uint32_t i, const struct covered *c, uint16_t *out)
{
	uint64_t total = sum(c->at, c->here, c->pseudo);
	uint32_t left = c->size - c->here;
	bool odd = c->here & 1;

	for (int64_t k = p->frames ? p->starts[i] + 1 : 0; left; k++) {
		const struct afp_desc *d = &p->frames[k];
		const uint32_t n = d->len < left ? d->len : left;
		uint16_t part;

		if (unlikely(d->addr > p->size || n > p->size - d->addr))
			return false;
		part = fold(sum(p->area + d->addr, n, 0));
		/* Behind an odd number of bytes a frame's own words lie across the datagram's (RFC 1071, 2 B). */
		total += odd ? __builtin_bswap16(part) : part;
		odd ^= n & 1;
		left -= n;
	}
	*out = fold(total);
	return true;
}

static bool fill(const struct afp_packets *p, uint32_t i, const struct covered *c, bool zero_is_none)
{
	uint16_t value = 0, before;

	memcpy(&before, c->at + c->check, sizeof(before));
	memcpy(c->at + c->check, &value, sizeof(value));
	if (unlikely(!add_up(p, i, c, &value))) {
		memcpy(c->at + c->check, &before, sizeof(before));
		return false;
	}
	value = (uint16_t)~value;
	if (zero_is_none && !value)
		value = 0xffff;
	memcpy(c->at + c->check, &value, sizeof(value));
	return true;
}

static enum verdict verify(const struct afp_packets *p, uint32_t i, const struct covered *c)
{
	uint16_t total;

	return add_up(p, i, c, &total) && total == 0xffff ? GOOD : BAD;
}

bool afp_checksum_begin(const struct afp_packets *p, uint32_t i, uint16_t *start, uint16_t *offset)
{
	uint8_t *packet = field(p, i, 0, ETHER_HEADER);
	struct covered c;
	struct layout l;
	uint16_t value;

	if (!packet)
		return false;
	look(p, i, packet, &l);
	if (cover_transport(packet, &l, 1u << AFP_TCP | 1u << AFP_UDP, &c) != GOOD || l.l4 + c.size != l.length || l.l4 > UINT16_MAX)
		return false;
	value = fold(c.pseudo);
	memcpy(c.at + c.check, &value, sizeof(value));
	*start = (uint16_t)l.l4;
	*offset = (uint16_t)c.check;
	return true;
}

uint32_t afp_checksum_fill(const struct afp_packets *p, uint32_t kinds, const uint8_t *where)
{
	uint32_t done = 0;

	for (uint32_t i = 0; i < p->n; i++) {
		uint8_t *packet = field(p, i, 0, ETHER_HEADER);
		struct covered c;
		struct layout l;
		bool one = false;

		if (!packet || (where && !where[i]))
			continue;
		look(p, i, packet, &l);
		if (kinds & 1u << AFP_IPV4 && cover_ipv4(packet, &l, &c) == GOOD)
			one = fill(p, i, &c, false);
		if (cover_transport(packet, &l, kinds, &c) == GOOD)
			one |= fill(p, i, &c, l.proto == IP_UDP);
		done += one;
	}
	return done;
}

void afp_checksum_verify(const struct afp_packets *p, uint32_t kinds, uint8_t *good)
{
	for (uint32_t i = 0; i < p->n; i++) {
		uint8_t *packet = field(p, i, 0, ETHER_HEADER);
		enum verdict ip = NONE, transport = NONE;
		struct covered c;
		struct layout l;

		good[i] = 0;
		if (!packet)
			continue;
		look(p, i, packet, &l);
		if (kinds & 1u << AFP_IPV4 && cover_ipv4(packet, &l, &c) == GOOD)
			ip = verify(p, i, &c);
		transport = cover_transport(packet, &l, kinds, &c);
		if (transport == GOOD) {
			/* 0 says that UDP's was not computed; over IPv6 it has to be (RFC 8200, 8.1). */
			if (l.proto == IP_UDP && !be16(c.at + 6))
				transport = l.version == 4 ? GOOD : BAD;
			else
				transport = verify(p, i, &c);
		}
		good[i] = ip != BAD && transport != BAD && (ip == GOOD || transport == GOOD);
	}
}

uint32_t afp_decrement_ttl(const struct afp_packets *p, const uint8_t *where, uint8_t *expired)
{
	uint32_t done = 0;

	for (uint32_t i = 0; i < p->n; i++) {
		uint8_t *packet = field(p, i, 0, ETHER_HEADER), *hops;
		struct layout l;

		expired[i] = 0;
		if (!packet || (where && !where[i]))
			continue;
		layout_of(packet, p->descs[i].len, &l);
		if (!l.version)
			continue;
		hops = packet + l.l3 + (l.version == 4 ? 8 : 7);
		if (*hops <= 1) {
			expired[i] = 1;
			continue;
		}
		if (l.version == 4) {
			/* RFC 1624, equation 3, of the word that is TTL and protocol. */
			uint16_t before, after, check;

			memcpy(&before, hops, 2);
			memcpy(&check, hops + 2, 2);
			hops[0]--;
			memcpy(&after, hops, 2);
			check = (uint16_t)~fold((uint64_t)(uint16_t)~check + (uint16_t)~before + after);
			memcpy(hops + 2, &check, 2);
		} else {
			hops[0]--;
		}
		done++;
	}
	return done;
}
