/* SPDX-License-Identifier: BSD-3-Clause */
/* Hashes over a packet's flow: see headers.h. */
#include "headers.h"
#include "layout.h"

/* Digits of pi. */
#define K1 0x243f6a8885a308d3ull
#define K2 0x13198a2e03707345ull
#define K3 0xa4093822299f31d1ull

/* Of a packet that is IP: where its addresses lie, how long each is, and its ports, 0 without. */
struct ends {
	const uint8_t *addresses;
	uint32_t size, ports;
};

static inline __attribute__((always_inline)) bool ends_of(const struct afp_packets *p, uint32_t i, struct layout *l, struct ends *e)
{
	const uint8_t *packet = field(p, i, 0, ETHER_HEADER);

	if (unlikely(!packet))
		return false;
	layout_of(packet, p->descs[i].len, l);
	if (!l->version)
		return false;
	e->size = l->version == 4 ? 4 : 16;
	e->addresses = packet + l->l3 + (l->version == 4 ? 12 : 8);
	e->ports = !l->fragment && l->l4 && has_ports(l->proto) && l->end - l->l4 >= 4 ? be32(packet + l->l4) : 0;
	return true;
}

void afp_toeplitz_init(struct afp_toeplitz *t, const uint8_t *key)
{
	for (uint32_t half = 0; half < 2 * (AFP_RSS_KEY - 4); half++) {
		/* Each bit of the input adds the 32 bits of the key that start at its place. */
		const uint8_t *at = key + half / 2;
		uint64_t window = ((uint64_t)be32(at) << 8 | at[4]) << (half % 2 * 4);

		for (uint32_t value = 0; value < 16; value++) {
			uint32_t total = 0;

			for (uint32_t bit = 0; bit < 4; bit++)
				if (value & 8u >> bit)
					total ^= (uint32_t)(window << bit >> 8);
			t->of[half][value] = total;
		}
	}
}

static inline uint32_t toeplitz(const struct afp_toeplitz *t, uint32_t from, const uint8_t *at, uint32_t size)
{
	uint32_t total = 0;

	for (uint32_t i = 0; i < size; i++)
		total ^= t->of[2 * (from + i)][at[i] >> 4] ^ t->of[2 * (from + i) + 1][at[i] & 15];
	return total;
}

void afp_rss_hash(const struct afp_packets *p, const struct afp_toeplitz *t, int ports, uint32_t *out)
{
	for (uint32_t i = 0; i < p->n; i++) {
		struct layout l;
		struct ends e;

		out[i] = 0;
		if (!ends_of(p, i, &l, &e))
			continue;
		out[i] = toeplitz(t, 0, e.addresses, 2 * e.size);
		if (ports && e.ports) {
			const uint32_t wire = __builtin_bswap32(e.ports);

			out[i] ^= toeplitz(t, 2 * e.size, (const uint8_t *)&wire, sizeof(wire));
		}
	}
}

static inline uint64_t mix(uint64_t a, uint64_t b)
{
	__extension__ typedef unsigned __int128 u128;
	const u128 product = (u128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t end_hash(const uint8_t *address, uint32_t size, uint32_t port, uint64_t seed)
{
	uint64_t high = 0, low;

	if (size == 16) {
		high = be64(address);
		low = be64(address + 8);
	} else {
		low = be32(address);
	}
	return mix(mix(high ^ K1, low ^ seed ^ K2) ^ port ^ (uint64_t)size << 32, K3);
}

void afp_flow_hash(const struct afp_packets *p, int symmetric, uint64_t seed, uint64_t *out)
{
	for (uint32_t i = 0; i < p->n; i++) {
		uint64_t src, dst;
		struct layout l;
		struct ends e;

		out[i] = 0;
		if (!ends_of(p, i, &l, &e))
			continue;
		src = end_hash(e.addresses, e.size, e.ports >> 16, seed);
		dst = end_hash(e.addresses + e.size, e.size, e.ports & 0xffff, seed);
		if (symmetric && src > dst) {
			const uint64_t other = src;

			src = dst;
			dst = other;
		}
		out[i] = mix(src ^ K2 ^ l.proto, dst ^ K1);
	}
}
