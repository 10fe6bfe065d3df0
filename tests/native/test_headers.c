/* SPDX-License-Identifier: BSD-3-Clause */
/* Headers of random packets that end where their memory ends: the sanitizer sees a byte too far. */
#include "check.h"
#include "headers.h"

#define MOST 128
#define KINDS (AFP_ICMPV6 + 1)
#define ALL UINT32_MAX

static uint64_t x = SEED;

static uint32_t roll(uint32_t n)
{
	return (uint32_t)(next_random(&x) >> 32) % n;
}

/* Mostly whole datagrams, with lengths that are true half of the time. */
static void invent(uint8_t *packet, uint32_t len)
{
	static const uint8_t protocols[] = {1, 6, 17, 58, 0, 43, 44, 51, 60};
	static const uint8_t ether[][2] = {{0x08, 0}, {0x86, 0xdd}, {0x81, 0}, {0x08, 6}};
	const uint8_t *type = ether[roll(4)];
	uint32_t at = 12;

	for (uint32_t i = 0; i < len; i++)
		packet[i] = roll(3) ? protocols[roll(sizeof(protocols))] : (uint8_t)roll(256);
	if (len < 60)
		return;
	for (uint32_t tags = roll(3); tags; tags--, at += 4)
		memcpy(packet + at, "\x81\0", 2);
	memcpy(packet + at, type, 2);
	at += 2;
	if (type[1] == 0 && type[0] == 8) {
		packet[at] = roll(4) ? 0x45 : (uint8_t)(0x40 | roll(16));
		packet[at + 2] = 0;
		packet[at + 3] = roll(2) ? (uint8_t)(len - at) : (uint8_t)roll(256);
		packet[at + 6] = packet[at + 7] = 0;
		if (!roll(8))
			packet[at + 6 + roll(2)] = 0x20;
		packet[at + 9] = protocols[roll(3)];
		if (packet[at] == 0x45 && roll(2) && len > at + 26)
			packet[at + 24] = 0, packet[at + 25] = roll(2) ? (uint8_t)(len - at - 20) : (uint8_t)roll(256);
	} else if (type[1] == 0xdd) {
		packet[at] = 0x60;
		packet[at + 4] = 0;
		packet[at + 5] = roll(2) ? (uint8_t)(len - at - 40) : (uint8_t)roll(256);
		packet[at + 6] = protocols[roll(sizeof(protocols))];
	}
}

static uint32_t use_everything(const struct afp_packets *p, const struct afp_toeplitz *t, uint32_t found[KINDS])
{
	uint64_t values[2], flow;
	uint8_t valid, good, expired;
	uint32_t at, rss, filled;

	for (int kind = 0; kind < KINDS; kind++) {
		static const uint32_t widths[] = {1, 2, 4, 6, 16};
		uint32_t width = widths[roll(5)], offset = roll(8);

		afp_header_find(p, (enum afp_header)kind, &at, &valid);
		CHECK_EQ(afp_header_of(p, 0, (enum afp_header)kind), valid ? (long long)at : -1);
		CHECK(valid || !at);
		found[kind] += valid;
		afp_header_load(p, (enum afp_header)kind, offset, width, values);
		CHECK(valid || !values[0] || width < 6);
		CHECK(afp_header_store(p, (enum afp_header)kind, offset, width, values, NULL) <= valid);
	}
	filled = afp_checksum_fill(p, 1u << roll(KINDS), NULL);
	(void)afp_decrement_ttl(p, NULL, &expired);
	filled += afp_checksum_fill(p, ALL, NULL);
	afp_checksum_verify(p, ALL, &good);
	afp_rss_hash(p, t, (int)roll(2), &rss);
	afp_flow_hash(p, (int)roll(2), roll(5), &flow);
	return filled;
}

static void no_header_is_read_or_written_outside_of_its_packet(struct afp_table *table)
{
	uint32_t found[KINDS] = {0}, filled = 0;
	struct afp_toeplitz t;
	uint8_t *key = malloc(AFP_RSS_KEY);

	(void)table;
	CHECK(key);
	memset(key, 0x6d, AFP_RSS_KEY);
	afp_toeplitz_init(&t, key);
	free(key);
	for (int round = 0; round < 200000; round++) {
		uint32_t len = roll(MOST);
		uint8_t *area = malloc(len ? len : 1);
		struct afp_desc desc = {0, len, 0, 0};
		struct afp_packets p = {&desc, area, len, 1, NULL, NULL};

		CHECK(area);
		invent(area, len);
		filled += use_everything(&p, &t, found);
		/* A descriptor that lies. */
		desc.addr = roll(2) ? roll(2 * MOST) : UINT64_MAX - roll(MOST);
		desc.len = roll(2) ? roll(2 * MOST) : UINT32_MAX - roll(MOST);
		(void)use_everything(&p, &t, found);
		free(area);
	}
	for (int kind = 0; kind < KINDS; kind++)
		CHECK(found[kind] > (kind == AFP_ARP ? 0 : 500));
	CHECK(filled > 1000);
}

static void what_was_filled_is_right(struct afp_table *table)
{
	uint32_t right = 0;

	(void)table;
	for (int round = 0; round < 100000; round++) {
		uint8_t area[MOST], before[MOST], good, expired;
		struct afp_desc desc = {0, MOST, 0, 0};
		struct afp_packets p = {&desc, area, MOST, 1, NULL, NULL};

		invent(area, MOST);
		if (!afp_checksum_fill(&p, ALL, NULL))
			continue;
		memcpy(before, area, MOST);
		CHECK_EQ(afp_checksum_fill(&p, ALL, NULL), 1);
		CHECK(!memcmp(before, area, MOST));
		afp_checksum_verify(&p, 1u << AFP_IPV4, &good);
		if (!good)
			continue;
		(void)afp_decrement_ttl(&p, NULL, &expired);
		afp_checksum_verify(&p, 1u << AFP_IPV4, &good);
		CHECK_EQ(good, 1);
		right++;
	}
	CHECK(right > 1000);
}

/* IPv4 with `size` bytes behind its header, as its length says. */
static void ipv4(uint8_t *packet, uint8_t proto, uint32_t size)
{
	static const uint8_t head[] = {0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64};

	memset(packet, 0, MOST);
	memcpy(packet + 12, head, sizeof(head));
	packet[17] = (uint8_t)(20 + size);
	packet[23] = proto;
}

/* The packet is longer than its datagram: bytes behind that are none of the header's. */
static void a_header_is_whole_or_not_there(struct afp_table *t)
{
	const struct {
		enum afp_header kind;
		uint8_t proto;
		uint32_t size;
	} kinds[] = {{AFP_TCP, 6, 20}, {AFP_UDP, 17, 8}, {AFP_ICMP, 1, 8}};
	uint8_t area[MOST];
	struct afp_desc desc = {0, MOST, 0, 0};
	const struct afp_packets p = {&desc, area, MOST, 1, NULL, NULL};

	(void)t;
	for (int k = 0; k < 3; k++) {
		for (uint32_t size = 0; size < 40; size++) {
			ipv4(area, kinds[k].proto, size);
			CHECK_EQ(afp_header_of(&p, 0, kinds[k].kind), size < kinds[k].size ? -1 : 34);
		}
	}
}

/* RFC 768: a sum that comes out as zero is sent as ones, since zero says that there is none. TCP's stays as it is. */
static void a_udp_checksum_of_zero_is_sent_as_ones(struct afp_table *t)
{
	uint8_t area[MOST], good;
	struct afp_desc desc = {0, MOST, 0, 0};
	const struct afp_packets p = {&desc, area, MOST, 1, NULL, NULL};
	uint32_t zeros = 0;

	(void)t;
	for (uint32_t word = 0; word <= UINT16_MAX; word++) {
		ipv4(area, 17, 10);
		area[39] = 10;
		memcpy(area + 42, &word, 2);
		CHECK_EQ(afp_checksum_fill(&p, 1u << AFP_UDP, NULL), 1);
		CHECK(area[40] || area[41]);
		zeros += area[40] == 0xff && area[41] == 0xff;
		afp_checksum_verify(&p, 1u << AFP_UDP, &good);
		CHECK_EQ(good, 1);
	}
	CHECK_EQ(zeros, 1);
	zeros = 0;
	for (uint32_t word = 0; word <= UINT16_MAX; word++) {
		ipv4(area, 6, 22);
		memcpy(area + 54, &word, 2);
		CHECK_EQ(afp_checksum_fill(&p, 1u << AFP_TCP, NULL), 1);
		zeros += !area[50] && !area[51];
	}
	CHECK_EQ(zeros, 1);
}

static void many_packets_are_taken_in_parts_with_their_masks(struct afp_table *t)
{
	enum { N = 200 };
	struct afp_desc descs[N];
	uint8_t where[N];
	uint64_t values[N], read[N];
	const struct afp_packets p = {descs, t->area, t->size, N, NULL, NULL};

	for (uint32_t i = 0; i < N; i++) {
		descs[i] = (struct afp_desc){(uint64_t)i * 64, 64, 0, 0};
		where[i] = i % 3 == 0;
		values[i] = 0x020000000000ull + i;
	}
	CHECK_EQ(afp_header_store(&p, AFP_ETH, 0, 6, values, where), 67);
	afp_header_load(&p, AFP_ETH, 0, 6, read);
	for (uint32_t i = 0; i < N; i++)
		CHECK_EQ(read[i], where[i] ? values[i] : 0);
}

static const struct test tests[] = {
	{"no_header_is_read_or_written_outside_of_its_packet", no_header_is_read_or_written_outside_of_its_packet, 0},
	{"what_was_filled_is_right", what_was_filled_is_right, 0},
	{"a_header_is_whole_or_not_there", a_header_is_whole_or_not_there, 0},
	{"a_udp_checksum_of_zero_is_sent_as_ones", a_udp_checksum_of_zero_is_sent_as_ones, 0},
	{"many_packets_are_taken_in_parts_with_their_masks", many_packets_are_taken_in_parts_with_their_masks, 0},
};

TESTS_MAIN(tests)
