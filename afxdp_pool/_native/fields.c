/* SPDX-License-Identifier: BSD-3-Clause */
/* Header fields as columns: see fields.h. */
#include "layout.h"

static inline uint64_t reversed(uint64_t v, uint32_t width)
{
	return __builtin_bswap64(v) >> (64 - 8 * width);
}

/* `width` is a constant where these are inlined: a load and a byte swap. Little-endian, as the descriptors are. `entry`: bytes
 * of a column's entry. */
static inline __attribute__((always_inline)) void load(const struct afp_packets *p, const uint32_t *base, uint32_t offset,
						       const uint32_t width, const uint32_t entry, int swap, uint8_t *out)
{
	for (uint32_t i = 0; i < p->n; i++, out += entry) {
		const uint8_t *at = field(p, i, (base ? (uint64_t)base[i] : 0) + offset, width);
		uint64_t v = 0;

		if (likely(at))
			memcpy(&v, at, width);
		if (swap)
			v = reversed(v, width);
		memcpy(out, &v, entry);
	}
}

static inline __attribute__((always_inline)) uint32_t store(const struct afp_packets *p, const uint32_t *base, uint32_t offset,
							    const uint32_t width, const uint32_t entry, int swap,
							    const uint8_t *values, const uint8_t *where)
{
	uint32_t done = 0;

	for (uint32_t i = 0; i < p->n; i++, values += entry) {
		uint8_t *at = field(p, i, (base ? (uint64_t)base[i] : 0) + offset, width);
		uint64_t v = 0;

		if (!at || (where && !where[i]))
			continue;
		memcpy(&v, values, entry);
		if (swap)
			v = reversed(v, width);
		memcpy(at, &v, width);
		done++;
	}
	return done;
}

/* IPv6 addresses: two numbers in network order, the high one first. */
static void load_halves(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint64_t *out)
{
	for (uint32_t i = 0; i < p->n; i++, out += 2) {
		const uint8_t *at = field(p, i, (base ? (uint64_t)base[i] : 0) + offset, 16);

		out[0] = at ? be64(at) : 0;
		out[1] = at ? be64(at + 8) : 0;
	}
}

static uint32_t store_halves(const struct afp_packets *p, const uint32_t *base, uint32_t offset, const uint64_t *values,
			     const uint8_t *where)
{
	uint32_t done = 0;

	for (uint32_t i = 0; i < p->n; i++, values += 2) {
		uint8_t *at = field(p, i, (base ? (uint64_t)base[i] : 0) + offset, 16);
		const uint64_t wire[2] = {__builtin_bswap64(values[0]), __builtin_bswap64(values[1])};

		if (!at || (where && !where[i]))
			continue;
		memcpy(at, wire, sizeof(wire));
		done++;
	}
	return done;
}

void afp_load(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint32_t width, int swap, void *out)
{
	switch (width) {
	case 1:
		load(p, base, offset, 1, 1, 0, out);
		break;
	case 2:
		load(p, base, offset, 2, 2, swap, out);
		break;
	case 4:
		load(p, base, offset, 4, 4, swap, out);
		break;
	case 6:
		load(p, base, offset, 6, 8, swap, out);
		break;
	case 8:
		load(p, base, offset, 8, 8, swap, out);
		break;
	case 16:
		load_halves(p, base, offset, out);
		break;
	}
}

uint32_t afp_store(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint32_t width, int swap,
		   const void *values, const uint8_t *where)
{
	switch (width) {
	case 1:
		return store(p, base, offset, 1, 1, 0, values, where);
	case 2:
		return store(p, base, offset, 2, 2, swap, values, where);
	case 4:
		return store(p, base, offset, 4, 4, swap, values, where);
	case 6:
		return store(p, base, offset, 6, 8, swap, values, where);
	case 8:
		return store(p, base, offset, 8, 8, swap, values, where);
	case 16:
		return store_halves(p, base, offset, values, where);
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

void afp_five_tuples(const struct afp_packets *p, const struct afp_five_tuple *out)
{
	for (uint32_t i = 0; i < p->n; i++) {
		const uint8_t *packet = field(p, i, 0, ETHER_HEADER);
		uint64_t src6[2] = {0}, dst6[2] = {0};
		uint32_t src = 0, dst = 0, ports = 0;
		struct layout l = {0};

		if (likely(packet))
			layout_of(packet, p->descs[i].len, &l);
		if (likely(l.version == 4)) {
			src = be32(packet + l.l3 + 12);
			dst = be32(packet + l.l3 + 16);
		} else if (l.version == 6) {
			for (int half = 0; half < 2; half++) {
				src6[half] = be64(packet + l.l3 + 8 + 8 * half);
				dst6[half] = be64(packet + l.l3 + 24 + 8 * half);
			}
		}
		if (l.l4 && has_ports(l.proto) && l.end - l.l4 >= 4)
			ports = be32(packet + l.l4);
		out->src[i] = src;
		out->dst[i] = dst;
		memcpy(out->src6 + 2 * i, src6, sizeof(src6));
		memcpy(out->dst6 + 2 * i, dst6, sizeof(dst6));
		out->sport[i] = (uint16_t)(ports >> 16);
		out->dport[i] = (uint16_t)ports;
		out->proto[i] = l.proto;
		out->version[i] = l.version;
		out->l4[i] = l.l4;
		out->valid[i] = l.version != 0;
	}
}
