/* SPDX-License-Identifier: BSD-3-Clause */
/* The pool alone, one thread: counters at their limits, refusals, posts, lives of a pool. */
#include "fake.h"

static void alloc_and_put_at_every_size(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 7, 0);
	struct afp_desc d[FRAMES];

	for (uint32_t n = 0; n <= FRAMES; n += 13) {
		struct afp_pool_stats s;

		CHECK_EQ(afp_pool_alloc(p, d, n), n);
		for (uint32_t i = 0; i < n; i++)
			memset(t->area + d[i].addr, 0xee, FRAME_SIZE);
		CHECK_EQ(put(t, d, n), n);
		CHECK(p->ncache <= AFP_CACHE);
		check_whole(t);
		s = stats_of(p);
		CHECK_EQ(s.alloc_fast + s.alloc_refill + s.alloc_slow, s.recycle_cached + s.recycle_ring + s.recycle_ring_full);
	}
	CHECK_EQ(afp_pool_destroy(p), 0);
	CHECK_EQ(t->nfree, FRAMES);
}

static void hold_and_release_wrap(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 16, 150);
	struct afp_desc d[FRAMES];

	atomic_store(&p->hold_cnt, 0xfffffff0u);
	atomic_store(&p->release_cnt, 0xfffffff0u);
	for (int round = 0; round < 20; round++) {
		CHECK_EQ(afp_pool_alloc(p, d, FRAMES), 150);
		check_whole(t);
		CHECK_EQ(put(t, d, 150), 150);
		CHECK_EQ(afp_pool_flush(p), 0);
		CHECK_EQ(t->nfree, FRAMES);
	}
	CHECK_EQ(stats_of(p).hold_cnt, 0xfffffff0u + 20 * 150);
	CHECK_EQ(afp_pool_alloc(p, d, 10), 10);
	CHECK_EQ(afp_pool_destroy(p), 0);
	CHECK_EQ(afp_pool_life(p), AFP_DETACHED);
	CHECK_EQ(put(t, d, 10), 10);
	CHECK_EQ(afp_pool_life(p), AFP_DEAD);
}

static void ring_indices_wrap(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 100, 0);
	struct afp_desc d[FRAMES];

	p->ring_head = p->ring_tail = 0xffffff80u;
	for (int round = 0; round < 20; round++) {
		uint32_t n = (uint32_t)afp_pool_alloc(p, d, 300);

		CHECK_EQ(n, 300);
		CHECK_EQ(put(t, d, n), n);
		check_whole(t);
	}
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void generations_wrap_and_skip_zero(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 16, 1);
	struct afp_desc d, old = {0};

	for (uint32_t i = 0; i < 70000; i++) {
		CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
		CHECK(d.gen != 0);
		CHECK(d.gen != old.gen);
		if (i)
			CHECK_EQ(put(t, &old, 1), 0);
		CHECK_EQ(put(t, &d, 1), 1);
		old = d;
	}
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void every_address_is_in_a_frame_or_foreign(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 16, 0);
	struct afp_desc d[FRAMES];
	const uint64_t wild[] = {t->size, t->size + 1, 1ull << 44, UINT64_MAX, UINT64_MAX - 4095};

	for (size_t i = 0; i < sizeof(wild) / sizeof(wild[0]); i++) {
		struct afp_refusals refused = {0};
		struct afp_desc w = {wild[i], 1, 0, 1};

		CHECK_EQ(afp_put(t, &w, 1, &refused), 0);
		CHECK_EQ(refused.item[0].reason, AFP_FOREIGN);
		CHECK_EQ(afp_ref(t, &w, 1, &refused), 0);
	}
	CHECK_EQ(atomic_load(&t->foreign_puts), 10);
	CHECK_EQ(afp_pool_alloc(p, d, FRAMES), FRAMES);
	for (uint32_t i = 0; i < FRAMES; i++)
		d[i].addr += FRAME_SIZE - 1; /* the last byte still finds its frame */
	CHECK_EQ(put(t, d, FRAMES), FRAMES);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void post(struct afp_table *t, struct afp_pool *p, const struct afp_desc *d, enum afp_state from)
{
	struct afp_box box = {.self = 1, .room = 1};

	CHECK(afp_box_add(&box, p, frame_of(t, d->addr), d->gen, from));
	afp_box_flush(&box);
}

/* What two threads that race can leave in the inbox, made by hand. */
static void lost_races_in_the_inbox_are_refused_and_no_alarm(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 16, 0);
	struct afp_desc d[4], again[4];

	/* The owner was first. */
	CHECK_EQ(afp_pool_alloc(p, d, 1), 1);
	CHECK_EQ(put(t, d, 1), 1);
	post(t, p, d, AFP_APP);
	check_whole(t);
	CHECK_EQ(audit(t).inbox, 0);
	/* The frame goes round before the owner looks. */
	CHECK_EQ(afp_pool_alloc(p, again, 1), 1);
	CHECK_EQ(again[0].addr, d[0].addr);
	check_whole(t);
	CHECK_EQ(audit(t).state[AFP_APP], 1);
	CHECK_EQ(afp_pool_collect(p), 0);
	CHECK_EQ(stats_of(p).late_refused, 1);
	check_whole(t);
	/* Two remote threads, both posted. */
	post(t, p, again, AFP_APP);
	post(t, p, again, AFP_APP);
	CHECK_EQ(audit(t).inbox, 1);
	check_whole(t);
	CHECK_EQ(afp_pool_collect(p), 1);
	CHECK_EQ(stats_of(p).late_refused, 2);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void a_post_that_waits_forbids_every_other_use(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 16, 0);
	struct afp_port *port = fake_port(t, p, 8, 4);
	struct afp_refusals refused = {0};
	struct afp_desc d;

	CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
	d.len = 60;
	post(t, p, &d, AFP_APP);
	CHECK_EQ(put(t, &d, 1), 0);
	CHECK_EQ(afp_ref(t, &d, 1, &refused), 0);
	CHECK_EQ(afp_port_transmit(port, &d, 1, &refused), 0);
	CHECK_EQ(refused.n, 2);
	CHECK_EQ(afp_pool_collect(p), 1);
	afp_port_free(port);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void a_late_post_to_a_dead_pool_waits_for_its_heir_and_is_refused(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 16, 0), *heir;
	struct afp_desc d;

	CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
	CHECK_EQ(put(t, &d, 1), 1);
	CHECK_EQ(afp_pool_destroy(p), 0);
	CHECK_EQ(afp_pool_life(p), AFP_DEAD);
	post(t, p, &d, AFP_APP);
	check_whole(t);
	heir = afp_pool_create(t, 16, 0);
	CHECK(heir == p);
	CHECK_EQ(afp_pool_collect(heir), 0);
	CHECK_EQ(stats_of(heir).late_refused, 1);
	CHECK_EQ(afp_pool_destroy(heir), 0);
}

static void a_box_serves_more_pools_than_it_has_slots(struct afp_table *t)
{
	struct afp_pool *p[9];
	struct afp_desc d[9 * 8];
	struct afp_box box = {.self = 1, .room = 9 * 8};

	for (int i = 0; i < 9; i++) {
		p[i] = afp_pool_create(t, 16, 8);
		CHECK_EQ(afp_pool_alloc(p[i], d + 8 * i, 8), 8);
	}
	for (uint32_t i = 0; i < 9 * 8; i++) {
		const struct afp_desc *one = &d[i % 9 * 8 + i / 9];

		CHECK(afp_box_add(&box, p[i % 9], frame_of(t, one->addr), one->gen, AFP_APP));
	}
	afp_box_flush(&box);
	CHECK_EQ(audit(t).inbox, 72);
	for (int i = 0; i < 9; i++) {
		CHECK_EQ(afp_pool_collect(p[i]), 8);
		CHECK_EQ(afp_pool_destroy(p[i]), 0);
	}
}

static void references_count_to_4095(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 16, 0);
	struct afp_refusals refused = {0};
	struct afp_desc d;

	CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
	for (int i = 1; i < (int)AFP_MAX_REFS; i++)
		CHECK_EQ(afp_ref(t, &d, 1, &refused), 1);
	CHECK_EQ(afp_ref(t, &d, 1, &refused), 0);
	CHECK_EQ(refused.item[0].reason, AFP_TOO_MANY_REFS);
	for (int i = 0; i < (int)AFP_MAX_REFS; i++)
		CHECK_EQ(put(t, &d, 1), 1);
	CHECK_EQ(put(t, &d, 1), 0);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void a_closed_pool_cannot_be_bound_or_used(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 16, 0);
	struct afp_desc d;

	CHECK_EQ(afp_pool_alloc(p, &d, 1), 1);
	CHECK_EQ(afp_pool_destroy(p), 0);
	CHECK_EQ(afp_pool_bind(p), AFP_CLOSED);
	CHECK_EQ(afp_pool_alloc(p, &d, 1), AFP_CLOSED);
	CHECK_EQ(afp_pool_flush(p), AFP_CLOSED);
	CHECK_EQ(afp_pool_collect(p), AFP_CLOSED);
	CHECK_EQ(afp_pool_destroy(p), AFP_CLOSED);
	CHECK_EQ(put(t, &d, 1), 1);
}

static void references_are_kept_all_or_none(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct afp_desc d[8], wild = {.addr = t->size, .len = 1};
	uint32_t done = 0;
	uint8_t held[9];

	CHECK_EQ(afp_pool_alloc(p, d, 8), 8);
	CHECK_EQ(afp_keep_all(t, d, 8, &done), 0);
	CHECK_EQ(done, 8);
	CHECK_EQ(afp_put_noted(t, d, 8, &done), 0);
	CHECK_EQ(afp_held(t, d, 8, NULL), 8);
	CHECK_EQ(put(t, d + 5, 1), 1);
	done = 0;
	CHECK_EQ(afp_keep_all(t, d, 8, &done), 1);
	CHECK_EQ(done, 0);
	CHECK_EQ(afp_last_refusals()->item[0].index, 5);
	CHECK_EQ(afp_last_refusals()->item[0].reason, AFP_NOT_HELD);
	CHECK_EQ(word_refs(word_load(t, frame_of(t, d[0].addr))), 1);
	CHECK_EQ(afp_held(t, d, 8, NULL), 5);
	CHECK_EQ(afp_held(t, d, 8, held), 7);
	CHECK(held[4] && !held[5] && held[6]);
	CHECK_EQ(afp_held(t, &wild, 1, held), 0);
	CHECK_EQ(afp_keep_all(t, &wild, 1, &done), 1);
	/* The same frame in its next life is another. */
	CHECK_EQ(afp_pool_alloc(p, d + 5, 1), 1);
	CHECK_EQ(afp_held(t, d, 8, held), 8);
	d[5].gen--;
	CHECK_EQ(afp_held(t, d, 8, NULL), 5);
	d[5].gen++;
	CHECK_EQ(put(t, d, 8), 8);
	CHECK_EQ(afp_held(t, d, 8, held), 0);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

static void a_post_of_another_pools_frame_is_refused(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0), *its = afp_pool_create(t, 64, 0);
	struct afp_box box;
	struct afp_desc d;

	CHECK_EQ(afp_pool_alloc(its, &d, 1), 1);
	afp_box_open(&box, 1);
	CHECK(afp_box_add(&box, p, frame_of(t, d.addr), d.gen, AFP_APP));
	afp_box_flush(&box);
	CHECK_EQ(afp_pool_collect(p), 0);
	CHECK_EQ(stats_of(p).late_refused, 1);
	check_whole(t);
	CHECK_EQ(put(t, &d, 1), 1); /* its holder has it still */
	CHECK_EQ(afp_pool_destroy(p), 0);
	CHECK_EQ(afp_pool_destroy(its), 0);
}

static void a_quota_is_kept_to_the_frame(struct afp_table *t)
{
	struct afp_desc d[FRAMES];

	for (uint32_t quota = 1; quota < 200; quota += 33) {
		struct afp_pool *p = afp_pool_create(t, 64, quota);

		CHECK_EQ(afp_pool_alloc(p, d, FRAMES), quota);
		CHECK_EQ(stats_of(p).hold_cnt, quota);
		CHECK_EQ(stats_of(p).alloc_quota, 1);
		CHECK_EQ(afp_pool_alloc(p, d, 1), 0);
		CHECK_EQ(t->nfree, FRAMES - quota);
		CHECK_EQ(put(t, d, quota), quota);
		CHECK_EQ(afp_pool_alloc(p, d, FRAMES), quota);
		CHECK_EQ(put(t, d, quota), quota);
		CHECK_EQ(afp_pool_destroy(p), 0);
	}
}

static const struct test tests[] = {
	{"alloc_and_put_at_every_size", alloc_and_put_at_every_size, 0},
	{"hold_and_release_wrap", hold_and_release_wrap, 0},
	{"ring_indices_wrap", ring_indices_wrap, 0},
	{"generations_wrap_and_skip_zero", generations_wrap_and_skip_zero, 0},
	{"every_address_is_in_a_frame_or_foreign", every_address_is_in_a_frame_or_foreign, 0},
	{"lost_races_in_the_inbox_are_refused_and_no_alarm", lost_races_in_the_inbox_are_refused_and_no_alarm, 0},
	{"a_post_that_waits_forbids_every_other_use", a_post_that_waits_forbids_every_other_use, 0},
	{"a_late_post_to_a_dead_pool_waits_for_its_heir_and_is_refused", a_late_post_to_a_dead_pool_waits_for_its_heir_and_is_refused, 0},
	{"a_box_serves_more_pools_than_it_has_slots", a_box_serves_more_pools_than_it_has_slots, 0},
	{"a_post_of_another_pools_frame_is_refused", a_post_of_another_pools_frame_is_refused, 0},
	{"a_quota_is_kept_to_the_frame", a_quota_is_kept_to_the_frame, 0},
	{"references_count_to_4095", references_count_to_4095, 0},
	{"references_are_kept_all_or_none", references_are_kept_all_or_none, 0},
	{"a_closed_pool_cannot_be_bound_or_used", a_closed_pool_cannot_be_bound_or_used, 0},
};

TESTS_MAIN(tests)
