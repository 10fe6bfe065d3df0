/* SPDX-License-Identifier: BSD-3-Clause */
/* A check that says where and what, a table of tests, and a Umem whose every frame must be at home after each. */
#ifndef CHECK_H
#define CHECK_H

#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FRAMES 512u
#define FRAME_SIZE 4096u

#define CHECK(condition)                                                                      \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                              \
		}                                                                             \
	} while (0)
#define CHECK_EQ(left, right)                                                                            \
	do {                                                                                             \
		long long left_ = (long long)(left), right_ = (long long)(right);                        \
		if (left_ != right_) {                                                                   \
			fprintf(stderr, "%s:%d: %s is %lld, %s is %lld\n", __FILE__, __LINE__, #left, left_, #right, right_); \
			exit(1);                                                                         \
		}                                                                                        \
	} while (0)

#define SEED 88172645463325252ull

/* Marsaglia's xorshift64: the same numbers in every run. */
static inline uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

struct test {
	const char *name;
	void (*run)(struct afp_table *t);
	int broken; /* it plants corruption: no audit after it */
};

static inline struct afp_audit audit(struct afp_table *t)
{
	struct afp_audit out;

	CHECK_EQ(afp_audit(t, &out), 0);
	return out;
}

static inline void check_whole(struct afp_table *t)
{
	struct afp_audit a = audit(t);
	uint32_t sum = 0;

	for (uint32_t i = 0; i < a.nwrong && i < AFP_WRONGS; i++)
		fprintf(stderr, "frame %u: wrong %u, word %llx, %lld/%lld\n", a.wrong[i].frame, a.wrong[i].what,
			(unsigned long long)a.wrong[i].word, (long long)a.wrong[i].expected, (long long)a.wrong[i].found);
	CHECK_EQ(a.nwrong, 0);
	for (int s = 0; s < AFP_STATES; s++)
		sum += a.state[s];
	CHECK_EQ(sum, t->nframes);
}

static inline struct afp_pool_stats stats_of(const struct afp_pool *p)
{
	struct afp_pool_stats s;

	afp_pool_read_stats(p, &s);
	return s;
}

static inline uint32_t put(struct afp_table *t, const struct afp_desc *descs, uint32_t n)
{
	struct afp_refusals refused = {0};

	return afp_put(t, descs, n, &refused);
}

static inline int run_tests(const struct test *tests, int n, const char *only)
{
	setvbuf(stdout, NULL, _IOLBF, 0); /* what was well is told, however the next one ends */
	for (int i = 0; i < n; i++) {
		struct afp_table t;
		void *area;

		if (only && strcmp(only, tests[i].name))
			continue;
		area = aligned_alloc(4096, (size_t)FRAMES * FRAME_SIZE);
		CHECK(area);
		memset(area, 0, (size_t)FRAMES * FRAME_SIZE);
		CHECK_EQ(afp_table_init(&t, area, FRAMES, FRAME_SIZE, 0), 0);
		tests[i].run(&t);
		if (!tests[i].broken) {
			struct afp_audit a;

			check_whole(&t);
			a = audit(&t);
			CHECK_EQ(a.state[AFP_FILL] + a.state[AFP_APP] + a.state[AFP_TX], 0);
		}
		for (int id = 1; id < AFP_MAX_PORTS; id++)
			if (t.ports[id])
				afp_port_free(t.ports[id]);
		afp_table_fini(&t);
		free(area);
		printf("ok %s\n", tests[i].name);
	}
	return 0;
}

#define TESTS_MAIN(tests)                                                                              \
	int main(int argc, char **argv)                                                                \
	{                                                                                              \
		return run_tests(tests, (int)(sizeof(tests) / sizeof((tests)[0])), argc > 1 ? argv[1] : NULL); \
	}

#endif
