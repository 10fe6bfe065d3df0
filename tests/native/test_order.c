/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a holder did to a frame's bytes is done before the frame's next life begins, whoever let go of it last, and by whichever
 * way. No lock and no barrier is between: only the frame's word and the inbox. For ThreadSanitizer, which sees a missing order
 * whatever the processor does.
 */
#include "fake.h"

#include <pthread.h>
#include <sched.h>

#define ROUNDS 50
#define BATCH 32

struct holder {
	struct afp_table *t;
	struct afp_pool *pool;
	struct afp_port *port; /* of the holder's own; NULL: it puts its frames */
	bool closes;           /* it closes the port with the frames under way */
	struct afp_desc d[BATCH];
	uint32_t first, n;    /* of `d`, the frames it holds */
	uint32_t when, where; /* it lets go when so many references are left; the byte it writes */
	/* Rounds begun by the owner, and ended here: a barrier would order more than that. */
	_Atomic int begun, ended;
};

/* No order comes of looking: who is to be last must find that out by itself. */
static void await_references(const struct holder *h, uint32_t n)
{
	for (uint32_t i = h->first; i < h->first + h->n; i++)
		while (word_refs(word_load(h->t, frame_of(h->t, h->d[i].addr))) != n)
			sched_yield();
}

static void let_go(struct holder *h, struct afp_port **at)
{
	struct afp_port *port = *at;
	struct afp_refusals refused = {0};
	volatile uint8_t seen;

	for (uint32_t i = h->first; i < h->first + h->n; i++)
		h->t->area[h->d[i].addr + h->where] = 1;
	await_references(h, h->when);
	if (!port) {
		CHECK_EQ(put(h->t, h->d + h->first, h->n), h->n);
		return;
	}
	CHECK_EQ(afp_port_transmit(port, h->d + h->first, h->n, &refused), h->n);
	for (uint32_t i = h->first; i < h->first + h->n; i++)
		seen = h->t->area[h->d[i].addr + h->where]; /* as a device does until it says that it is done */
	(void)seen;
	if (h->closes) {
		afp_port_free(port);
		*at = fake_port(h->t, NULL, BATCH, 1);
		return;
	}
	CHECK_EQ(fake_send(port), h->n);
	CHECK_EQ(afp_port_complete(port, BATCH), h->n);
}

static void *hold(void *arg)
{
	struct holder *h = arg;

	for (int round = 1; round <= ROUNDS; round++) {
		while (atomic_load_explicit(&h->begun, memory_order_acquire) < round)
			sched_yield();
		let_go(h, &h->port);
		atomic_store_explicit(&h->ended, round, memory_order_release);
	}
	return NULL;
}

/*
 * The owner and up to two others hold the same frames; others[i] lets go when others[i].when references are left, the owner last,
 * or first if another is the last. Then the frames go round, and all of their bytes are written.
 */
static void share(struct holder *others, uint32_t n, struct afp_port *port)
{
	struct afp_table *t = others->t;
	struct afp_pool *p = others->pool;
	struct afp_refusals refused = {0};
	struct holder mine = {.t = t, .n = BATCH, .when = 1, .where = 63};
	pthread_t thread[2];

	for (uint32_t i = 0; i < n; i++)
		if (others[i].when == 1)
			mine.when = n + 1;
	for (uint32_t i = 0; i < n; i++) {
		others[i].where = i;
		CHECK_EQ(pthread_create(&thread[i], NULL, hold, &others[i]), 0);
	}
	for (int round = 1; round <= ROUNDS; round++) {
		struct afp_desc all[FRAMES];
		uint32_t got;

		CHECK_EQ(afp_pool_alloc(p, mine.d, BATCH), BATCH);
		for (uint32_t i = 0; i < BATCH; i++)
			mine.d[i].len = 64;
		for (uint32_t i = 0; i < n; i++) {
			memcpy(others[i].d, mine.d, sizeof(mine.d));
			CHECK_EQ(afp_ref(t, mine.d + others[i].first, others[i].n, &refused), others[i].n);
		}
		mine.first = others->first;
		mine.n = others->n;
		for (uint32_t i = 0; i < n; i++)
			atomic_store_explicit(&others[i].begun, round, memory_order_release);
		if (others->first) { /* they go with a frame that is still shared: not by the shortest way */
			await_references(&mine, mine.when);
			CHECK_EQ(afp_ref(t, mine.d, 1, &refused), 1);
			mine.n += mine.first;
			mine.first = 0;
			CHECK_EQ(put(t, mine.d, BATCH), BATCH);
			CHECK_EQ(put(t, mine.d, 1), 1);
		} else {
			let_go(&mine, &port);
		}
		got = 0;
		while (got < FRAMES) { /* until all have come home */
			int more = afp_pool_alloc(p, all + got, FRAMES - got);

			CHECK(more >= 0);
			got += (uint32_t)more;
			if (!more)
				sched_yield();
		}
		for (uint32_t i = 0; i < FRAMES; i++)
			memset(t->area + all[i].addr, 0, 64);
		for (uint32_t i = 0; i < n; i++)
			while (atomic_load_explicit(&others[i].ended, memory_order_acquire) < round)
				sched_yield();
		CHECK_EQ(put(t, all, FRAMES), FRAMES);
	}
	for (uint32_t i = 0; i < n; i++)
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static struct holder holder(struct afp_table *t, struct afp_pool *p, uint32_t when)
{
	return (struct holder){.t = t, .pool = p, .n = BATCH, .when = when};
}

static void the_owner_puts_last(struct afp_table *t)
{
	struct holder other = holder(t, afp_pool_create(t, 64, 0), 2);

	share(&other, 1, NULL);
}

static void the_owner_puts_last_among_others(struct afp_table *t)
{
	struct holder other = holder(t, afp_pool_create(t, 64, 0), 2);

	other.first = 1;
	other.n = BATCH - 1;
	share(&other, 1, NULL);
}

static void another_puts_last(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct holder others[2] = {holder(t, p, 2), holder(t, p, 1)};

	share(others, 2, NULL);
}

static void the_owners_completion_is_last(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct holder other = holder(t, p, 2);

	share(&other, 1, fake_port(t, NULL, BATCH, 1));
}

static void the_owner_puts_after_a_completion(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct holder other = holder(t, p, 2);

	other.port = fake_port(t, NULL, BATCH, 1);
	share(&other, 1, NULL);
}

static void anothers_completion_is_last(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct holder others[2] = {holder(t, p, 2), holder(t, p, 1)};

	others[1].port = fake_port(t, NULL, BATCH, 1);
	share(others, 2, NULL);
}

static void anothers_port_closes_last(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct holder others[2] = {holder(t, p, 2), holder(t, p, 1)};

	others[1].port = fake_port(t, NULL, BATCH, 1);
	others[1].closes = true;
	share(others, 2, NULL);
}

static const struct test tests[] = {
	{"the_owner_puts_last", the_owner_puts_last, 0},
	{"the_owner_puts_last_among_others", the_owner_puts_last_among_others, 0},
	{"another_puts_last", another_puts_last, 0},
	{"the_owners_completion_is_last", the_owners_completion_is_last, 0},
	{"the_owner_puts_after_a_completion", the_owner_puts_after_a_completion, 0},
	{"anothers_completion_is_last", anothers_completion_is_last, 0},
	{"anothers_port_closes_last", anothers_port_closes_last, 0},
};

TESTS_MAIN(tests)
