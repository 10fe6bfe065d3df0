/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Ways for a frame to come home from another thread, with the same checks, in the same pool: docs/remote-returns.md.
 *
 *   library       the library as it is
 *   posts         the same design written here, without what else afp_put() does: the control of the others
 *   spare_back    posts whose empty blocks are used again: taken whole, what is not needed pushed back
 *   spare_kept    the same, what is not needed stays with the thread
 *   list          a list through the frame table: a link a frame, a claim by compare-and-swap each
 *   list_unsafe   the same with plain claims: a racing double return breaks the list
 *   lanes         a bounded queue for each returner, with room for every frame
 *   lanes_weak    the same; closing a pool would need sys_membarrier()
 *
 * Returners check address, claim, generation, state and owner, and refuse; so does the owner, who decides. At the end of a
 * run two threads race to return the same frames, and every frame must be home exactly once.
 */
#include "bench.h"

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RACES 300
#ifndef RACE_UNSAFE
#define RACE_UNSAFE 0 /* 1: race list_unsafe too, to see it lose frames or hang */
#endif
#define inlined static inline __attribute__((always_inline))

/* What the library's pool is to these: cache, ring and counters. */
static struct afp_table table;
static struct afp_pool *pool;
static uintptr_t owner;

struct way {
	struct subject subject;
	uint32_t (*put)(const struct afp_desc *descs, uint32_t n); /* how many were accepted */
	uint32_t (*collect)(void);                                 /* how many came home */
	bool unsafe;                                               /* not to be raced */
};
static const struct way *way;

static uint32_t ring_count(void)
{
	return pool->ring_head - pool->ring_tail;
}

/* May this thread return the frame? The claim before the word, as put.c says. */
inlined bool good(const struct afp_desc *desc, uint64_t held, uint16_t claim)
{
	return likely(claim != desc->gen) && likely(word_load(&table, (uint32_t)(desc->addr >> 12)) ==
						    (held | (uint64_t)desc->gen << AFP_GEN_SHIFT));
}

/* The owner's decision; as accept_run() in pool.c, beyond the ring as collect() there. */
inlined bool accept_frame(uint64_t held, uint64_t idle, uint32_t frame, uint64_t gen)
{
	if (unlikely(word_load(&table, frame) != (held | gen << AFP_GEN_SHIFT)))
		return false;
	word_store(&table, frame, idle | gen << AFP_GEN_SHIFT);
	if (likely(ring_count() < pool->ring_size))
		pool->ring[pool->ring_head++ & pool->ring_mask] = frame;
	else
		afp_pool_ring_put(pool, frame);
	return true;
}

inlined uint32_t accept_entries(const uint64_t *entry, uint32_t n)
{
	const uint64_t held = pool->in_app, idle = word_make(0, 0, AFP_POOL, pool->id, 0, 0);
	const uint32_t room = pool->ring_size - ring_count(), mask = pool->ring_mask, run = n < room ? n : room;
	uint32_t *const ring = pool->ring;
	uint32_t head = pool->ring_head, i, refused = 0;

	for (i = 0; i < run; i++) {
		uint64_t gen = entry[i] & AFP_GEN_MASK;
		uint32_t frame = (uint32_t)entry[i];

		if (unlikely(word_state(entry[i]) != AFP_APP || word_load(&table, frame) != (held | gen)))
			break;
		word_store(&table, frame, idle | gen);
		ring[head++ & mask] = frame;
	}
	pool->ring_head = head;
	bump(&pool->stat[S_RING], i);
	for (; i < n; i++)
		refused += !accept_frame(held, idle, (uint32_t)entry[i], word_gen(entry[i]));
	return n - refused;
}

static void count_home(uint32_t n, uint32_t home)
{
	bump(&pool->stat[S_REMOTE_BATCHES], 1);
	bump(&pool->stat[S_REMOTE_FRAMES], home);
	bump(&pool->stat[S_LATE_REFUSED], n - home);
}

/* After a batch is out, as in box_send(). */
static inline void look_at_life(void)
{
	if (unlikely(atomic_load(&pool->life) == AFP_DETACHED))
		afp_table_reap(&table);
}

/* Descriptors into entries: check and claim, plainly. How many were good. */
inlined uint32_t fill_entries(uint64_t *entry, uint32_t at, uint32_t mask, const struct afp_desc *descs, uint32_t n)
{
	const uint64_t held = pool->in_app, size = table.size;
	uint32_t done = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t frame = (uint32_t)(descs[i].addr >> 12);

		if (unlikely(descs[i].addr >= size) ||
		    !good(&descs[i], held, atomic_load_explicit(&table.returned[frame], memory_order_acquire)))
			continue;
		atomic_store_explicit(&table.returned[frame], descs[i].gen, memory_order_relaxed);
		entry[(at + done++) & mask] = post_entry(frame, descs[i].gen, AFP_APP);
	}
	return done;
}

/* Posts --------------------------------------------------------------------------------------------------------------- */

enum blocks { BY_MALLOC, SPARE_BACK, SPARE_KEPT };
static _Alignas(64) _Atomic(struct afp_post *) inbox;
static _Alignas(64) _Atomic(struct afp_post *) spare;
static _Alignas(64) _Atomic uint64_t made; /* spare blocks there are */
static _Thread_local struct afp_post *kept;

/* Pushed by compare-and-swap, only ever taken whole: a block that is here again at once does no harm. */
static void push_spare(struct afp_post *first, struct afp_post *last)
{
	last->next = atomic_load_explicit(&spare, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(&spare, &last->next, first, memory_order_release, memory_order_relaxed))
		;
}

static struct afp_post *last_of(struct afp_post *post)
{
	while (post->next)
		post = post->next;
	return post;
}

inlined struct afp_post *new_post(uint32_t room, enum blocks blocks)
{
	struct afp_post *post = blocks == SPARE_KEPT ? kept : NULL;

	if (blocks != BY_MALLOC && !post && atomic_load_explicit(&spare, memory_order_relaxed))
		post = atomic_exchange_explicit(&spare, NULL, memory_order_acquire);
	if (post) {
		struct afp_post *rest = post->next, *none = NULL;

		if (blocks == SPARE_KEPT)
			kept = rest;
		else if (rest && !atomic_compare_exchange_strong_explicit(&spare, &none, rest, memory_order_release,
									  memory_order_relaxed))
			push_spare(rest, last_of(rest));
		if (likely(post->room >= room))
			return post;
		free(post); /* a batch larger than before */
	} else if (blocks != BY_MALLOC) {
		atomic_fetch_add_explicit(&made, 1, memory_order_relaxed);
	}
	post = malloc(sizeof(*post) + room * sizeof(post->entry[0]));
	if (!post)
		die("no memory");
	post->room = room;
	return post;
}

inlined uint32_t post_put(const struct afp_desc *descs, uint32_t n, enum blocks blocks)
{
	struct afp_post *post = new_post(n, blocks);

	n = post->n = fill_entries(post->entry, 0, UINT32_MAX, descs, n);
	atomic_thread_fence(memory_order_acquire);
	post->next = atomic_load_explicit(&inbox, memory_order_relaxed);
	while (!atomic_compare_exchange_weak(&inbox, &post->next, post))
		;
	look_at_life();
	return n;
}

inlined uint32_t post_collect(enum blocks blocks)
{
	struct afp_post *post = atomic_load(&inbox), *first, *last = NULL;
	uint32_t all = 0;

	if (!post)
		return 0;
	first = post = atomic_exchange(&inbox, NULL);
	while (post) {
		struct afp_post *next = post->next;
		uint32_t home = accept_entries(post->entry, post->n);

		all += home;
		count_home(post->n, home);
		last = post;
		if (blocks == BY_MALLOC)
			free(post);
		post = next;
	}
	if (blocks != BY_MALLOC)
		push_spare(first, last);
	return all;
}

#define POSTS(name, blocks)                                                                                                 \
	static uint32_t name##_put(const struct afp_desc *descs, uint32_t n) { return post_put(descs, n, blocks); }         \
	static uint32_t name##_collect(void) { return post_collect(blocks); }
POSTS(posts, BY_MALLOC)
POSTS(spare_back, SPARE_BACK)
POSTS(spare_kept, SPARE_KEPT)

/* A list through the frame table --------------------------------------------------------------------------------------- */

#define ON_LIST (1u << 16)
static uint32_t *link_of;                  /* [frames] the next on the list, plus one; written by who claimed the frame */
static _Atomic uint32_t *claim_of;         /* [frames] generation last returned, and ON_LIST while the frame is there */
static _Alignas(64) _Atomic uint32_t list; /* the first, plus one */

/*
 * Only who sets ON_LIST may write the link: here `returned` must hold for the list's sake, not only for the report's. A frame
 * that a wrongful returner, held up, has put there for an earlier life cannot be there twice: its claim is changed to the new
 * life, and it comes home when that thread goes on.
 */
inlined uint32_t list_add(const struct afp_desc *descs, uint32_t n, bool unsafe)
{
	const uint64_t held = pool->in_app, size = table.size;
	uint32_t first = 0, last = 0, done = 0, head;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t frame = (uint32_t)(descs[i].addr >> 12), mine = descs[i].gen | ON_LIST, claim;

		if (unlikely(descs[i].addr >= size))
			continue;
		claim = atomic_load_explicit(&claim_of[frame], memory_order_acquire);
		while (good(&descs[i], held, (uint16_t)claim)) {
			if (unsafe)
				atomic_store_explicit(&claim_of[frame], mine, memory_order_relaxed);
			else if (!atomic_compare_exchange_strong_explicit(&claim_of[frame], &claim, mine, memory_order_acq_rel,
									  memory_order_acquire))
				continue;
			done++;
			if (unlikely(claim & ON_LIST))
				break;
			link_of[frame] = first;
			first = frame + 1;
			last = last ? last : first;
			break;
		}
	}
	atomic_thread_fence(memory_order_acquire);
	if (first) {
		head = atomic_load_explicit(&list, memory_order_relaxed);
		do
			link_of[last - 1] = head;
		while (!atomic_compare_exchange_weak(&list, &head, first));
	}
	look_at_life();
	return done;
}

inlined uint32_t list_take(bool unsafe)
{
	const uint64_t held = pool->in_app, idle = word_make(0, 0, AFP_POOL, pool->id, 0, 0);
	uint32_t at = atomic_load(&list), n = 0, home = 0, ring = pool->ring_head;

	if (!at)
		return 0;
	at = atomic_exchange(&list, 0);
	while (at) {
		uint32_t frame = at - 1, claim;

		at = link_of[frame]; /* while it is ON_LIST: then it is another's to write */
		if (unsafe) {
			claim = atomic_load_explicit(&claim_of[frame], memory_order_relaxed);
			atomic_store_explicit(&claim_of[frame], claim & ~ON_LIST, memory_order_relaxed);
		} else { /* subtracted, as x86 has no fetch-and */
			claim = atomic_fetch_sub_explicit(&claim_of[frame], ON_LIST, memory_order_acq_rel);
		}
		home += accept_frame(held, idle, frame, claim & 0xffff);
		n++;
	}
	bump(&pool->stat[S_RING], pool->ring_head - ring);
	count_home(n, home);
	return home;
}

static uint32_t list_put(const struct afp_desc *descs, uint32_t n) { return list_add(descs, n, false); }
static uint32_t list_collect(void) { return list_take(false); }
static uint32_t list_unsafe_put(const struct afp_desc *descs, uint32_t n) { return list_add(descs, n, true); }
static uint32_t list_unsafe_collect(void) { return list_take(true); }

/* Lanes ---------------------------------------------------------------------------------------------------------------- */

static struct lane {
	_Alignas(64) _Atomic uint32_t head; /* the returner's, as are the next */
	uint32_t seen;                      /* `tail` when last looked at */
	uint64_t *entry;
	_Alignas(64) _Atomic uint32_t tail; /* the owner's */
} lanes[RETURNERS_MAX];
static uint32_t nlanes, lane_size; /* a power of two, not below the number of frames */
static _Thread_local uint32_t me;

inlined uint32_t lane_add(const struct afp_desc *descs, uint32_t n, bool weak)
{
	struct lane *lane = &lanes[me];
	uint32_t head = atomic_load_explicit(&lane->head, memory_order_relaxed);

	if (unlikely(lane_size - (head - lane->seen) < n)) {
		lane->seen = atomic_load_explicit(&lane->tail, memory_order_acquire);
		if (lane_size - (head - lane->seen) < n)
			return 0; /* only wrongful returns can have filled it */
	}
	n = fill_entries(lane->entry, head, lane_size - 1, descs, n);
	atomic_thread_fence(memory_order_acquire);
	if (weak)
		atomic_store_explicit(&lane->head, head + n, memory_order_release);
	else
		atomic_store(&lane->head, head + n); /* then looks at `life`: one locked instruction */
	look_at_life();
	return n;
}

static uint32_t lanes_collect(void)
{
	uint32_t all = 0;

	for (uint32_t i = 0; i < nlanes; i++) {
		struct lane *lane = &lanes[i];
		uint32_t tail = atomic_load_explicit(&lane->tail, memory_order_relaxed), n = atomic_load(&lane->head) - tail;
		uint32_t at = tail & (lane_size - 1), straight = n < lane_size - at ? n : lane_size - at, home;

		if (!n)
			continue;
		home = accept_entries(lane->entry + at, straight);
		home += accept_entries(lane->entry, n - straight);
		atomic_store_explicit(&lane->tail, tail + n, memory_order_release);
		count_home(n, home);
		all += home;
	}
	return all;
}

static uint32_t lanes_put(const struct afp_desc *descs, uint32_t n) { return lane_add(descs, n, false); }
static uint32_t lanes_weak_put(const struct afp_desc *descs, uint32_t n) { return lane_add(descs, n, true); }

#include "returns_main.h"
