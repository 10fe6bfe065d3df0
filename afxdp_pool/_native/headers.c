/* SPDX-License-Identifier: BSD-3-Clause */
/* Headers by name, and their fields: see headers.h. */
#include "headers.h"
#include "layout.h"

/* Further than any packet reaches. */
#define NOWHERE UINT32_MAX
/* Packets whose headers are found before their fields are moved. */
#define PART 64

static inline uint32_t transport_at(const struct layout *l, uint8_t proto, uint32_t size)
{
	return l->l4 && l->proto == proto && l->end - l->l4 >= size ? l->l4 : NOWHERE;
}

static inline __attribute__((always_inline)) uint32_t header_at(const uint8_t *packet, uint32_t len, const enum afp_header kind)
{
	struct layout l;

	if (unlikely(!packet))
		return NOWHERE;
	if (kind == AFP_ETH)
		return 0;
	if (kind == AFP_VLAN)
		return is_tag(be16(packet + ETHER_TYPE)) && len >= ETHER_TYPE + 4 ? ETHER_TYPE : NOWHERE;
	layout_of(packet, len, &l);
	switch (kind) {
	case AFP_ARP: /* hardware and protocol addresses of 6 and 4 bytes */
		return l.type == ETHER_ARP && len - l.l3 >= 28 && be16(packet + l.l3 + 4) == 0x0604 ? l.l3 : NOWHERE;
	case AFP_IPV4:
		return l.version == 4 ? l.l3 : NOWHERE;
	case AFP_IPV6:
		return l.version == 6 ? l.l3 : NOWHERE;
	case AFP_TCP:
		return transport_at(&l, IP_TCP, 20);
	case AFP_UDP:
		return transport_at(&l, IP_UDP, 8);
	case AFP_ICMP:
		return l.version == 4 ? transport_at(&l, IP_ICMP, 8) : NOWHERE;
	case AFP_ICMPV6:
		return l.version == 6 ? transport_at(&l, IP_ICMPV6, 8) : NOWHERE;
	default:
		return NOWHERE;
	}
}

static inline __attribute__((always_inline)) void find(const struct afp_packets *p, const enum afp_header kind, uint32_t *at)
{
	for (uint32_t i = 0; i < p->n; i++)
		at[i] = header_at(field(p, i, 0, ETHER_HEADER), p->descs[i].len, kind);
}

/* The kind is a constant in each: one loop that looks for one thing. */
static void find_all(const struct afp_packets *p, enum afp_header kind, uint32_t *at)
{
	switch (kind) {
	case AFP_ETH:
		find(p, AFP_ETH, at);
		break;
	case AFP_IPV4:
		find(p, AFP_IPV4, at);
		break;
	case AFP_TCP:
		find(p, AFP_TCP, at);
		break;
	case AFP_UDP:
		find(p, AFP_UDP, at);
		break;
	default:
		find(p, kind, at);
	}
}

static struct afp_packets part_of(const struct afp_packets *p, uint32_t from)
{
	uint32_t left = p->n - from;

	struct afp_packets part = *p;

	part.descs += from;
	part.starts = p->starts ? p->starts + from : NULL;
	part.n = left < PART ? left : PART;
	return part;
}

static uint32_t entry_of(uint32_t width)
{
	return width == 6 ? 8 : width;
}

int64_t afp_header_of(const struct afp_packets *p, uint32_t i, enum afp_header kind)
{
	uint32_t at = header_at(field(p, i, 0, ETHER_HEADER), p->descs[i].len, kind);

	return at == NOWHERE ? -1 : (int64_t)at;
}

void afp_header_find(const struct afp_packets *p, enum afp_header kind, uint32_t *at, uint8_t *valid)
{
	find_all(p, kind, at);
	for (uint32_t i = 0; i < p->n; i++) {
		valid[i] = at[i] != NOWHERE;
		at[i] = valid[i] ? at[i] : 0;
	}
}

void afp_header_load(const struct afp_packets *p, enum afp_header kind, uint32_t offset, uint32_t width, void *out)
{
	for (uint32_t from = 0; from < p->n; from += PART) {
		const struct afp_packets part = part_of(p, from);
		uint32_t at[PART];

		find_all(&part, kind, at);
		afp_load(&part, at, offset, width, 1, (uint8_t *)out + (size_t)from * entry_of(width));
	}
}

uint32_t afp_header_store(const struct afp_packets *p, enum afp_header kind, uint32_t offset, uint32_t width, const void *values,
			  const uint8_t *where)
{
	uint32_t done = 0;

	for (uint32_t from = 0; from < p->n; from += PART) {
		const struct afp_packets part = part_of(p, from);
		uint32_t at[PART];

		find_all(&part, kind, at);
		done += afp_store(&part, at, offset, width, 1, (const uint8_t *)values + (size_t)from * entry_of(width),
				  where ? where + from : NULL);
	}
	return done;
}
