/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DPDK's answers to the same questions: rte_mempool for a pool with a cache, rte_ring for handing frames back.
 *
 * mempool          a cache of 128 a thread over a ring of many writers and readers; no checks
 * mempool_nocache  the same without the cache
 * mempool_cookies  what RTE_LIBRTE_MEMPOOL_DEBUG adds, done here: distributions build the library without it, and the
 *                  macro in the application alone changes structures the library has compiled in. As in
 *                  rte_mempool_check_cookies(): owner, header cookie (checked and turned), trailer cookie, statistics.
 * ring_spsc        a stack of frames in the owner, fed by one single-writer rte_ring a returner; no checks
 * ring_mpsc        the same with one ring of many writers; ring_mpmc: and many readers
 *
 * Elements are 64 bytes, not packets: closer together than real ones, to the rivals' advantage.
 */
#include "bench.h"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_mempool.h>
#include <rte_ring.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CACHE 128
#define ELEMENT 64

/* Without shared configuration there is still an empty directory of the run. */
static void clean_up(void)
{
	char directory[64];

	snprintf(directory, sizeof(directory), "%s", rte_eal_get_runtime_dir());
	rte_eal_cleanup();
	rmdir(directory);
}

int bench_start(const struct options *o)
{
	char cpus[16], prefix[32], memory[16];
	char *arguments[] = {"bench_dpdk", "--no-huge",     "--no-pci", "--no-shconf", "--no-telemetry", "--log-level=4",
			     "-m",         memory,          "-l",       cpus,          "--file-prefix",  prefix};

	snprintf(cpus, sizeof(cpus), "%d", o->cpu < 0 ? 0 : o->cpu);
	snprintf(prefix, sizeof(prefix), "bench-%d", getpid());
	snprintf(memory, sizeof(memory), "%u", 64 + o->frames / 4096);
	if (rte_eal_init(sizeof(arguments) / sizeof(*arguments), arguments) < 0)
		return -1;
	return atexit(clean_up);
}

static void in(uint32_t thread)
{
	(void)thread;
	if (rte_thread_register()) /* a thread without an lcore id has no cache */
		die("no lcore id: %s", rte_strerror(rte_errno));
}

static void out(void)
{
	rte_thread_unregister();
}

static void no_counters(void)
{
}

/* rte_mempool ------------------------------------------------------------------------------------------------------- */

static struct rte_mempool *pool;

static bool open_pool(uint32_t cache)
{
	pool = rte_mempool_create("frames", opt.frames, ELEMENT, cache, 0, NULL, NULL, NULL, NULL, SOCKET_ID_ANY, 0);
	if (!pool)
		fprintf(stderr, "rte_mempool_create: %s\n", rte_strerror(rte_errno));
	return pool != NULL;
}

static bool mempool_open(const struct options *o)
{
	(void)o;
	return open_pool(CACHE);
}

static bool nocache_open(const struct options *o)
{
	(void)o;
	return open_pool(0);
}

__attribute__((noinline)) static uint32_t mempool_alloc(void *items, uint32_t n)
{
	return rte_mempool_get_bulk(pool, items, n) ? 0 : n;
}

__attribute__((noinline)) static void mempool_put(const void *items, uint32_t n)
{
	rte_mempool_put_bulk(pool, items, n);
	__asm__ volatile(""); /* a call, not a jump, so that a profiler sees this function */
}

static void mempool_to_origin(void)
{
	rte_mempool_cache_flush(rte_mempool_default_cache(pool, rte_lcore_id()), pool);
}

static void mempool_leave(void)
{
	struct rte_mempool_cache *cache = rte_mempool_default_cache(pool, rte_lcore_id());

	if (cache)
		rte_mempool_cache_flush(cache, pool);
	out();
}

static uint64_t mempool_home(void)
{
	return rte_mempool_avail_count(pool);
}

static void solo_nothing(bool other)
{
	(void)other;
}

/* Cookies: what the library does when it is built for debugging. */
#define COOKIE_TAKEN 0xbadbadbadadd2e55ull
#define COOKIE_FREE 0xf2eef2eedadd2e55ull
#define COOKIE_END 0xadd2e55badbadbadull
static uint64_t debug_calls, debug_objects;

static inline uint64_t *head_cookie(void *object)
{
	/* Next to struct rte_mempool_objhdr, in the padding before it: the same cache line as when it is a member. */
	return (uint64_t *)((uint8_t *)object - sizeof(struct rte_mempool_objhdr) - 8);
}

static inline uint64_t *end_cookie(void *object)
{
	return (uint64_t *)((uint8_t *)object + ELEMENT - 8);
}

__attribute__((noinline)) static void check_cookies(void *const *objects, uint32_t n, uint64_t expected, uint64_t next)
{
	while (n--) {
		if (unlikely(rte_mempool_from_obj(objects[n]) != pool))
			die("object of another pool");
		if (unlikely(*head_cookie(objects[n]) != expected))
			die("object put or taken twice");
		*head_cookie(objects[n]) = next;
		if (unlikely(*end_cookie(objects[n]) != COOKIE_END))
			die("object overrun");
	}
}

static void set_cookies(struct rte_mempool *mp, void *argument, void *object, unsigned index)
{
	(void)mp, (void)argument, (void)index;
	*head_cookie(object) = COOKIE_FREE;
	*end_cookie(object) = COOKIE_END;
}

static bool cookies_open(const struct options *o)
{
	if (!mempool_open(o))
		return false;
	if (pool->header_size < sizeof(struct rte_mempool_objhdr) + 8)
		return false;
	rte_mempool_obj_iter(pool, set_cookies, NULL);
	return true;
}

__attribute__((noinline)) static uint32_t cookies_alloc(void *items, uint32_t n)
{
	if (rte_mempool_get_bulk(pool, items, n))
		return 0;
	check_cookies(items, n, COOKIE_FREE, COOKIE_TAKEN);
	debug_calls++;
	debug_objects += n;
	return n;
}

__attribute__((noinline)) static void cookies_put(const void *items, uint32_t n)
{
	check_cookies(items, n, COOKIE_TAKEN, COOKIE_FREE);
	debug_calls++;
	debug_objects += n;
	rte_mempool_put_bulk(pool, items, n);
}

/* rte_ring ---------------------------------------------------------------------------------------------------------- */

static struct rte_ring *rings[RETURNERS_MAX];
static uint32_t nrings;
static void **stack;
static uint32_t nstack;
static __thread uint32_t my_ring;

static bool open_rings(uint32_t count, unsigned flags)
{
	char name[16];

	nrings = count;
	for (uint32_t i = 0; i < nrings; i++) {
		snprintf(name, sizeof(name), "ring%u", i);
		rings[i] = rte_ring_create(name, rte_align32pow2(opt.frames + 1), SOCKET_ID_ANY, flags);
		if (!rings[i])
			return false;
	}
	stack = malloc(opt.frames * sizeof(*stack));
	for (nstack = 0; stack && nstack < opt.frames; nstack++)
		stack[nstack] = (void *)(uintptr_t)((opt.frames - nstack) * 4096ull);
	return stack != NULL;
}

static bool spsc_open(const struct options *o)
{
	return open_rings(o->kind == CASE_REMOTE ? o->threads : 1, RING_F_SP_ENQ | RING_F_SC_DEQ);
}

static bool mpsc_open(const struct options *o)
{
	(void)o;
	return open_rings(1, RING_F_SC_DEQ);
}

static bool mpmc_open(const struct options *o)
{
	(void)o;
	return open_rings(1, 0);
}

__attribute__((noinline)) static uint32_t stack_alloc(void *items, uint32_t n)
{
	if (nstack < n)
		for (uint32_t i = 0; i < nrings; i++)
			nstack += rte_ring_dequeue_burst(rings[i], stack + nstack, opt.frames - nstack, NULL);
	n = n < nstack ? n : nstack;
	nstack -= n;
	memcpy(items, stack + nstack, n * sizeof(*stack));
	return n;
}

__attribute__((noinline)) static void ring_put(const void *items, uint32_t n)
{
	if (rte_ring_enqueue_bulk(rings[my_ring], items, n, NULL) != n)
		die("a ring is full");
}

static void ring_in(uint32_t thread)
{
	in(thread);
	my_ring = thread < nrings ? thread : 0;
}

static uint64_t ring_home(void)
{
	uint8_t *seen = calloc(opt.frames + 1, 1);
	uint64_t distinct = 0;

	for (uint32_t i = 0; i < nrings; i++)
		nstack += rte_ring_dequeue_burst(rings[i], stack + nstack, opt.frames - nstack, NULL);
	for (uint32_t i = 0; i < nstack; i++) {
		uint8_t *mark = &seen[(uintptr_t)stack[i] / 4096];

		distinct += !*mark;
		*mark = 1;
	}
	free(seen);
	return distinct;
}

#define HAS(c) (1u << CASE_##c)
#define MEMPOOL_CALLS                                                                                                  \
	.item_size = sizeof(void *), .to_origin = mempool_to_origin, .as_other = solo_nothing, .enter = in,            \
	.leave = mempool_leave, .home = mempool_home, .counters = no_counters
#define RING_CALLS                                                                                                     \
	.cases = HAS(SOLO) | HAS(REMOTE), .item_size = sizeof(void *), .alloc = stack_alloc, .put = ring_put,          \
	.as_other = solo_nothing, .enter = ring_in, .leave = out, .home = ring_home, .counters = no_counters

static const struct subject mempool = {.name = "mempool", .cases = HAS(DIRECT) | HAS(RING) | HAS(SLOW) | HAS(REMOTE),
				       .open = mempool_open, .alloc = mempool_alloc, .put = mempool_put, MEMPOOL_CALLS};
static const struct subject nocache = {.name = "mempool_nocache", .cases = HAS(RING) | HAS(SOLO) | HAS(REMOTE),
				       .open = nocache_open, .alloc = mempool_alloc, .put = mempool_put, MEMPOOL_CALLS};
static const struct subject cookies = {.name = "mempool_cookies", .cases = HAS(DIRECT) | HAS(RING) | HAS(SLOW) | HAS(REMOTE),
				       .open = cookies_open, .alloc = cookies_alloc, .put = cookies_put, MEMPOOL_CALLS};
static const struct subject spsc = {.name = "ring_spsc", .open = spsc_open, RING_CALLS};
static const struct subject mpsc = {.name = "ring_mpsc", .open = mpsc_open, RING_CALLS};
static const struct subject mpmc = {.name = "ring_mpmc", .open = mpmc_open, RING_CALLS};

const struct subject *const subjects[] = {&mempool, &nocache, &cookies, &spsc, &mpsc, &mpmc, NULL};
