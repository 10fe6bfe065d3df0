/* SPDX-License-Identifier: BSD-3-Clause */
/* The library's frame pool, from the library's own sources. All checks and statistics are on: there is no other build. */
#include "bench.h"

#include "pool.h"

#include <stdio.h>

static struct afp_table table;
static struct afp_pool *pool;
static uintptr_t owner;

int bench_start(const struct options *o)
{
	(void)o;
	return 0;
}

static bool pool_open(const struct options *o)
{
	/* No memory is behind the frames: the pool never looks at it. */
	if (afp_table_init(&table, NULL, o->frames, 4096, 0))
		return false;
	/* Where returns are measured, a ring that holds them; else the kernel's. */
	pool = afp_pool_create(&table, o->kind == CASE_REMOTE ? AFP_RING_MAX : AFP_RING_DEFAULT, 0);
	if (!pool || afp_pool_bind(pool))
		return false;
	owner = afp_self();
	return true;
}

/* Both are calls, not jumps, so that a profiler can tell them apart. */
__attribute__((noinline)) static uint32_t alloc_frames(void *items, uint32_t n)
{
	int got = afp_pool_alloc(pool, items, n);

	if (got < 0)
		die("the pool does not let its owner allocate: %d", got);
	return (uint32_t)got;
}

__attribute__((noinline)) static void put_frames(const void *items, uint32_t n)
{
	struct afp_refusals refused;

	refused.n = 0;
	if (afp_put(&table, items, n, &refused) != n)
		die("%u good frames refused", refused.n);
}

static void to_origin(void)
{
	afp_pool_flush(pool);
}

/* A put is remote when the pool is another thread's. That it is our own thread the pool must not see. */
static void as_other(bool other)
{
	atomic_store_explicit(&pool->owner, other ? owner + 1 : owner, memory_order_relaxed);
}

static void enter(uint32_t thread)
{
	(void)thread;
}

static void leave(void)
{
}

static uint64_t home(void)
{
	struct afp_pool_stats stats;
	uint64_t idle = 0;

	afp_pool_collect(pool);
	afp_pool_flush(pool);
	afp_pool_read_stats(pool, &stats);
	if (stats.hold_cnt != stats.release_cnt || stats.late_refused || table.foreign_puts)
		die("inflight %u, late %lu, foreign %lu", stats.hold_cnt - stats.release_cnt, (unsigned long)stats.late_refused,
		    (unsigned long)table.foreign_puts);
	for (uint32_t frame = 0; frame < table.nframes; frame++)
		idle += word_state(word_load(&table, frame)) == AFP_UMEM && !word_refs(word_load(&table, frame));
	if (idle != table.nfree)
		die("%lu idle frames, %u on the free list", (unsigned long)idle, table.nfree);
	afp_pool_destroy(pool);
	afp_table_fini(&table);
	return idle;
}

static void counters(void)
{
	struct afp_pool_stats s;

	afp_pool_read_stats(pool, &s);
	printf(", \"alloc_fast\": %lu, \"alloc_refill\": %lu, \"alloc_slow\": %lu, \"recycle_cached\": %lu, \"recycle_ring\": %lu, "
	       "\"recycle_ring_full\": %lu, \"remote_batches\": %lu, \"remote_frames\": %lu",
	       (unsigned long)s.alloc_fast, (unsigned long)s.alloc_refill, (unsigned long)s.alloc_slow,
	       (unsigned long)s.recycle_cached, (unsigned long)s.recycle_ring, (unsigned long)s.recycle_ring_full,
	       (unsigned long)s.remote_batches, (unsigned long)s.remote_frames);
}

static const struct subject afxdp_pool = {
	.name = "afxdp_pool",
	.cases = (1u << CASES) - 1,
	.item_size = sizeof(struct afp_desc),
	.open = pool_open,
	.alloc = alloc_frames,
	.put = put_frames,
	.to_origin = to_origin,
	.as_other = as_other,
	.enter = enter,
	.leave = leave,
	.home = home,
	.counters = counters,
};

const struct subject *const subjects[] = {&afxdp_pool, &bare, NULL};
