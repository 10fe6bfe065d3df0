/* SPDX-License-Identifier: BSD-3-Clause */
/* A handler of one packet, called for each of a batch: it sees what lies within the Umem, and what it says is checked. */
#include "check.h"

static int answers[4];
static uint32_t seen, bytes;

static int answer(uint8_t *packet, uint32_t length, uint32_t port, void *user)
{
	CHECK_EQ(port, 7);
	for (uint32_t i = 0; i < length; i++) /* the sanitizer sees a byte too far */
		bytes += packet[i];
	return ((int *)user)[seen++ % 4];
}

static void only_packets_within_the_memory_are_shown(struct afp_table *t)
{
	const uint64_t size = 256;
	uint8_t *area = malloc(size), verdicts[6];
	struct afp_desc descs[6] = {
		{0, 256, 0, 0}, {255, 1, 0, 0}, {256, 0, 0, 0}, {255, 2, 0, 0}, {UINT64_MAX, 2, 0, 0}, {1, UINT32_MAX, 0, 0},
	};
	struct afp_per_packet own = {answer, answers};

	(void)t;
	CHECK(area);
	memset(area, 1, size);
	for (int i = 0; i < 4; i++)
		answers[i] = AFP_REFLECT;
	memset(verdicts, 99, sizeof(verdicts));
	seen = bytes = 0;
	afp_call_per_packet(descs, 6, area, size, verdicts, 7, &own);
	CHECK_EQ(seen, 3);
	CHECK_EQ(bytes, 257);
	for (int i = 0; i < 6; i++)
		CHECK_EQ(verdicts[i], i < 3 ? AFP_REFLECT : AFP_DROP);
	free(area);
}

static void what_is_no_byte_is_no_verdict(struct afp_table *t)
{
	static const int said[] = {0, 2, 0xbf, -1, 256, 0x101, INT32_MAX, INT32_MIN};
	static const int wanted[] = {0, 2, 0xbf, 0xff, 0xff, 0xff, 0xff, 0xff};
	struct afp_desc desc = {0, 64, 0, 0};
	struct afp_per_packet own = {answer, answers};

	for (size_t i = 0; i < sizeof(said) / sizeof(said[0]); i++) {
		uint8_t verdict = 99;

		seen = 0;
		answers[0] = said[i];
		afp_call_per_packet(&desc, 1, t->area, t->size, &verdict, 7, &own);
		CHECK_EQ(verdict, wanted[i]);
	}
}

static const struct test tests[] = {
	{"only_packets_within_the_memory_are_shown", only_packets_within_the_memory_are_shown, 0},
	{"what_is_no_byte_is_no_verdict", what_is_no_byte_is_no_verdict, 0},
};

TESTS_MAIN(tests)
