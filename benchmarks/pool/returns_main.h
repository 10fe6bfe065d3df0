/* SPDX-License-Identifier: BSD-3-Clause */
/* The rest of returns.c: the library as one of the ways, how each is driven by bench.c, and the race at the end. */

static uint32_t library_put(const struct afp_desc *descs, uint32_t n)
{
	struct afp_refusals refused;

	refused.n = 0;
	return afp_put(&table, descs, n, &refused);
}

static uint32_t library_collect(void)
{
	return (uint32_t)afp_pool_collect(pool);
}

static bool ways_open(const struct options *o)
{
	way = (const struct way *)subject;
	if (afp_table_init(&table, NULL, o->frames, 4096, 0))
		return false;
	pool = afp_pool_create(&table, o->kind == CASE_REMOTE ? AFP_RING_MAX : AFP_RING_DEFAULT, 0);
	if (!pool || afp_pool_bind(pool))
		return false;
	owner = afp_self();
	link_of = calloc(o->frames, sizeof(*link_of));
	claim_of = calloc(o->frames, sizeof(*claim_of));
	for (lane_size = 1; lane_size < o->frames;)
		lane_size <<= 1;
	nlanes = o->kind == CASE_REMOTE ? o->threads : 1;
	for (uint32_t i = 0; i < (nlanes > 2 ? nlanes : 2); i++)
		if (!(lanes[i].entry = malloc(lane_size * sizeof(uint64_t))))
			return false;
	return link_of && claim_of;
}

/* The same two calls for all, so that a profiler can tell the sides apart. */
__attribute__((noinline)) static uint32_t alloc_frames(void *items, uint32_t n)
{
	int got;

	if (way->collect != library_collect && !ring_count() && pool->ncache < n)
		way->collect(); /* where the pool would look into its inbox */
	got = afp_pool_alloc(pool, items, n);
	if (got < 0)
		die("the pool does not let its owner allocate: %d", got);
	return (uint32_t)got;
}

__attribute__((noinline)) static void put_frames(const void *items, uint32_t n)
{
	if (way->put(items, n) != n)
		die("%s: good frames refused", subject->name);
}

/* That it is our own thread the library must not see. */
static void as_other(bool other)
{
	atomic_store_explicit(&pool->owner, other ? owner + 1 : owner, memory_order_relaxed);
}

static void enter(uint32_t thread)
{
	me = thread;
}

static void leave(void)
{
	while (kept) {
		struct afp_post *next = kept->next;

		free(kept);
		kept = next;
	}
}

/* Two threads return the same frames at once ----------------------------------------------------------------------------- */

static struct afp_desc contested[64];
static _Atomic uint32_t race_round, race_done;

static void *racer(void *thread)
{
	enter((uint32_t)(uintptr_t)thread);
	for (uint32_t round = 1; round <= RACES; round++) {
		while (atomic_load(&race_round) != round)
			sched_yield();
		way->put(contested, 64);
		if (way->put(contested, 64))
			die("%s: returned, and returned again by the same thread", subject->name);
		atomic_fetch_add(&race_done, 1);
	}
	leave();
	return NULL;
}

static void race(void)
{
	pthread_t thread[2];

	nlanes = nlanes > 2 ? nlanes : 2;
	for (uintptr_t i = 0; i < 2; i++)
		if (pthread_create(&thread[i], NULL, racer, (void *)i))
			die("no thread");
	for (uint32_t round = 1; round <= RACES; round++) {
		uint32_t home = 0;

		if (alloc_frames(contested, 64) != 64)
			die("no frames to race for");
		atomic_store(&race_round, round);
		/* Taken in while the race is on: a frame on its way twice is home once. */
		while (atomic_load(&race_done) != 2 * round) {
			home += way->collect();
			sched_yield();
		}
		home += way->collect();
		if (home != 64)
			die("%s: of 64 frames returned by two threads %u came home", subject->name, home);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
}

static uint64_t home(void)
{
	uint64_t idle = 0;

	way->collect();
	if (!way->unsafe || RACE_UNSAFE)
		race();
	leave();
	kept = atomic_exchange(&spare, NULL);
	leave();
	afp_pool_flush(pool);
	if (atomic_load(&pool->hold_cnt) != atomic_load(&pool->release_cnt))
		die("%s: frames are missing", subject->name);
	for (uint32_t frame = 0; frame < table.nframes; frame++)
		idle += word_state(word_load(&table, frame)) == AFP_UMEM && !word_refs(word_load(&table, frame));
	if (idle != table.nfree)
		die("%lu idle frames, %u on the free list", (unsigned long)idle, table.nfree);
	afp_pool_destroy(pool);
	afp_table_fini(&table);
	free(link_of);
	free((void *)claim_of);
	for (int i = 0; i < RETURNERS_MAX; i++)
		free(lanes[i].entry);
	return idle;
}

static void counters(void)
{
	printf(", \"blocks\": %lu", (unsigned long)atomic_load(&made));
}

int bench_start(const struct options *o)
{
	if (o->kind != CASE_SOLO && o->kind != CASE_REMOTE)
		die("only remote_solo and remote");
	return 0;
}

#define RETURNS_WAY(which, take, danger)                                                                                            \
	static const struct way way_##which = {                                                                                   \
		{#which, 1u << CASE_SOLO | 1u << CASE_REMOTE, sizeof(struct afp_desc), ways_open, alloc_frames, put_frames, \
		 NULL, as_other, enter, leave, home, counters},                                                            \
		which##_put, take, danger}
RETURNS_WAY(library, library_collect, false);
RETURNS_WAY(posts, posts_collect, false);
RETURNS_WAY(spare_back, spare_back_collect, false);
RETURNS_WAY(spare_kept, spare_kept_collect, false);
RETURNS_WAY(list, list_collect, false);
RETURNS_WAY(list_unsafe, list_unsafe_collect, true);
RETURNS_WAY(lanes, lanes_collect, false);
RETURNS_WAY(lanes_weak, lanes_collect, false);

const struct subject *const subjects[] = {
	&way_library.subject,	 &way_posts.subject, &way_spare_back.subject,  &way_spare_kept.subject, &way_list.subject,
	&way_list_unsafe.subject, &way_lanes.subject, &way_lanes_weak.subject, NULL,
};
