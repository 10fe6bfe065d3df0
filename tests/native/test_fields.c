/* SPDX-License-Identifier: BSD-3-Clause */
/* Header fields of random packets that end where their memory ends: the sanitizer sees a byte too far. */
#include "check.h"
#include "fields.h"

#define MOST 128

static uint64_t x = SEED;

static uint32_t roll(uint32_t n)
{
	return (uint32_t)(next_random(&x) >> 32) % n;
}

/* Bytes that look like headers more often than chance would have it. */
static void invent(uint8_t *packet, uint32_t len)
{
	static const uint8_t likely_bytes[] = {0x08, 0x00, 0x81, 0x86, 0xdd, 0x45, 0x46, 0x60, 6, 17, 43, 44, 51, 60, 0xff};
	static const uint8_t ether[][2] = {{0x08, 0}, {0x86, 0xdd}, {0x81, 0}, {0x88, 0xa8}};

	for (uint32_t i = 0; i < len; i++)
		packet[i] = roll(4) ? likely_bytes[roll(sizeof(likely_bytes))] : (uint8_t)roll(256);
	if (len >= 14)
		memcpy(packet + 12, ether[roll(4)], 2);
	if (len >= 15)
		packet[14] = roll(2) ? 0x45 : 0x60;
}

static void no_field_is_read_or_written_outside_of_its_packet(struct afp_table *t)
{
	uint32_t src, dst, l4, found = 0, stored = 0;
	uint64_t src6[2], dst6[2], value;
	uint16_t sport, dport;
	uint8_t proto, version, valid;
	const struct afp_five_tuple out = {&src, &dst, src6, dst6, &sport, &dport, &proto, &version, &l4, &valid};

	(void)t;
	for (int round = 0; round < 200000; round++) {
		uint32_t len = roll(MOST), at = roll(MOST), base = roll(2) ? roll(MOST) : UINT32_MAX - roll(MOST);
		uint32_t width = 1u << roll(4);
		uint8_t *area = malloc(len ? len : 1);
		struct afp_desc desc = {0, len, 0, 0};
		struct afp_packets p = {&desc, area, len, 1, NULL, NULL};

		CHECK(area);
		invent(area, len);
		afp_five_tuples(&p, &out);
		CHECK(!valid || (version == 4 && len >= 34) || (version == 6 && len >= 54));
		CHECK(l4 < (len ? len : 1));
		CHECK(!(sport || dport) || l4 + 4 <= len);
		found += valid;
		value = 0;
		afp_load(&p, NULL, at, width, (int)roll(2), &value);
		CHECK(at + width <= len || !value);
		afp_load(&p, &base, at, width, (int)roll(2), &value);
		CHECK_EQ(afp_store(&p, NULL, at, width, (int)roll(2), &value, NULL), at + width <= len);
		stored += afp_store(&p, &base, at, width, (int)roll(2), &value, NULL);
		CHECK_EQ(afp_swap_macs(&p, NULL), len >= 14);
		/* A descriptor that lies. */
		desc.addr = roll(2) ? roll(2 * MOST) : UINT64_MAX - roll(MOST);
		desc.len = roll(2) ? roll(2 * MOST) : UINT32_MAX - roll(MOST);
		afp_five_tuples(&p, &out);
		afp_load(&p, &base, at, width, 1, &value);
		afp_store(&p, &base, at, width, 1, &value, NULL);
		afp_swap_macs(&p, NULL);
		free(area);
	}
	CHECK(found > 1000);
	CHECK(stored > 1000);
}

static void only_packets_of_the_mask_are_written(struct afp_table *t)
{
	const struct afp_desc descs[] = {{0, 64, 0, 0}, {64, 64, 0, 0}, {128, 64, 0, 0}};
	const struct afp_packets p = {descs, t->area, t->size, 3, NULL, NULL};
	const uint8_t where[] = {1, 0, 1};
	const uint16_t values[] = {0x0102, 0x0304, 0x0506};
	uint16_t read[3];

	CHECK_EQ(afp_store(&p, NULL, 10, 2, 1, values, where), 2);
	afp_load(&p, NULL, 10, 2, 1, read);
	CHECK_EQ(read[0], 0x0102);
	CHECK_EQ(read[1], 0);
	CHECK_EQ(read[2], 0x0506);
	CHECK_EQ(t->area[10], 1);
	CHECK_EQ(afp_swap_macs(&p, where), 2);
	CHECK_EQ(t->area[4], 1);
	CHECK_EQ(t->area[128 + 4], 5);
}

static const struct test tests[] = {
	{"no_field_is_read_or_written_outside_of_its_packet", no_field_is_read_or_written_outside_of_its_packet, 0},
	{"only_packets_of_the_mask_are_written", only_packets_of_the_mask_are_written, 0},
};

TESTS_MAIN(tests)
