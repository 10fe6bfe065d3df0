/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fields, headers, checksums and hashes of any bytes under any descriptors: no access outside of the memory. What was given a checksum
 * has a good one, and one hop less leaves IPv4's as right as it was.
 */
#include "input.h"

#define MOST 16u

static int answer(uint8_t *packet, uint32_t length, uint32_t port, void *user)
{
	uint32_t sum = port;

	(void)user;
	for (uint32_t i = 0; i < length; i++) /* the sanitizer sees a byte too far */
		sum += packet[i];
	return (int)sum;
}

static void fields(const struct afp_packets *p, struct input *in)
{
	static const uint32_t widths[] = {1, 2, 4, 6, 8, 16};
	uint32_t base[MOST], offset = (uint32_t)take(in, take(in, 1) & 1 ? 1 : 4), width = widths[below(in, 6)];
	int swap = (int)below(in, 2);
	uint64_t out[2 * MOST];
	uint8_t where[MOST];

	for (uint32_t i = 0; i < p->n; i++) {
		base[i] = (uint32_t)take(in, take(in, 1) & 1 ? 1 : 4);
		where[i] = (uint8_t)below(in, 2);
	}
	afp_load(p, NULL, offset, width, swap, out);
	CHECK(afp_store(p, NULL, offset, width, swap, out, NULL) <= p->n);
	afp_load(p, base, offset, width, swap, out);
	CHECK(afp_store(p, base, offset, width, swap, out, where) <= p->n);
	CHECK(afp_swap_macs(p, where) <= p->n);
	for (int kind = AFP_ETH; kind <= AFP_ICMPV6; kind++) {
		uint32_t at[MOST];
		uint8_t valid[MOST];

		afp_header_find(p, kind, at, valid);
		for (uint32_t i = 0; i < p->n; i++)
			CHECK_EQ(afp_header_of(p, i, kind), valid[i] ? (int64_t)at[i] : -1);
		afp_header_load(p, kind, offset & 63, width, out);
		afp_header_store(p, kind, offset & 63, width, out, where);
	}
}

static void flows(const struct afp_packets *p, uint64_t seed)
{
	static const uint8_t key[AFP_RSS_KEY] = {0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b};
	static struct afp_toeplitz toeplitz;
	struct {
		uint32_t src[MOST], dst[MOST], l4[MOST], rss[MOST];
		uint64_t src6[2 * MOST], dst6[2 * MOST], hash[MOST];
		uint16_t sport[MOST], dport[MOST];
		uint8_t proto[MOST], version[MOST], valid[MOST];
	} o;
	const struct afp_five_tuple tuple = {o.src, o.dst, o.src6, o.dst6, o.sport, o.dport, o.proto, o.version, o.l4, o.valid};

	afp_five_tuples(p, &tuple);
	for (uint32_t i = 0; i < p->n; i++)
		CHECK(!o.l4[i] || o.l4[i] < p->descs[i].len);
	afp_toeplitz_init(&toeplitz, key);
	afp_rss_hash(p, &toeplitz, (int)(seed & 1), o.rss);
	afp_flow_hash(p, (int)(seed >> 1 & 1), seed, o.hash);
}

static void checksums(const struct afp_packets *p)
{
	static const enum afp_header kinds[] = {AFP_IPV4, AFP_TCP, AFP_UDP, AFP_ICMP, AFP_ICMPV6};
	uint8_t good[MOST], after[MOST], expired[MOST];

	afp_checksum_verify(p, 0x1ff, good);
	CHECK(afp_checksum_fill(p, 0x1ff, NULL) <= p->n);
	{ /* all of them as one packet in several frames */
		const int64_t starts[] = {0, p->n};
		const struct afp_packets one = {p->descs, p->area, p->size, 1, p->descs, starts};
		uint16_t start, offset;

		afp_checksum_verify(&one, 0x1ff, good);
		CHECK(afp_checksum_fill(&one, 0x1ff, NULL) <= 1);
		if (afp_checksum_begin(&one, 0, &start, &offset))
			CHECK(start + offset + 2u <= p->descs[0].len);
	}
	CHECK(afp_decrement_ttl(p, NULL, expired) <= p->n);
	for (uint32_t i = 0; i < p->n; i++) { /* by itself: those of a batch may lie in each other */
		const struct afp_packets one = {p->descs + i, p->area, p->size, 1, NULL, NULL};

		for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
			if (afp_checksum_fill(&one, 1u << kinds[k], NULL)) {
				afp_checksum_verify(&one, 1u << kinds[k], good);
				CHECK_EQ(good[0], 1);
			}
		}
		afp_checksum_verify(&one, 1u << AFP_IPV4, good);
		afp_decrement_ttl(&one, NULL, expired);
		afp_checksum_verify(&one, 1u << AFP_IPV4, after);
		CHECK_EQ(after[0], good[0]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct afp_per_packet own = {answer, NULL};
	struct afp_desc descs[MOST], copy[MOST];
	struct input in = {data, size};
	struct afp_packets p = {.descs = descs, .n = 1 + below(&in, MOST)};
	uint64_t seed = take(&in, 8);
	struct input choices;
	uint8_t verdicts[MOST];

	for (uint32_t i = 0; i < p.n; i++) {
		uint8_t how = (uint8_t)take(&in, 1);

		descs[i] = (struct afp_desc){.addr = take(&in, how & 1 ? 1 : how & 2 ? 2 : 8), .len = (uint32_t)take(&in, how & 4 ? 1 : 4)};
		if (how & 8) /* all there is */
			descs[i] = (struct afp_desc){.len = (uint32_t)in.left};
	}
	choices = in;
	for (uint32_t i = 0; i < p.n; i++)
		if (descs[i].len > in.left && !descs[i].addr)
			descs[i].len = (uint32_t)in.left;
	p.size = in.left;
	p.area = malloc(p.size ? p.size : 1); /* to the byte: one beyond is seen */
	CHECK(p.area);
	memcpy(p.area, in.at, p.size);
	flows(&p, seed);
	checksums(&p);
	fields(&p, &choices);
	memcpy(copy, descs, sizeof(copy));
	afp_call_per_packet(copy, p.n, p.area, p.size, verdicts, 3, &own);
	free(p.area);
	return 0;
}
