/* SPDX-License-Identifier: BSD-3-Clause */
/* The pools: see pool.h for the design, table.h for the rules of the frame word. */
#include "pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The pool's lower half: ring, spill, inbox ------------------------------------------------------------------------- */

static inline uint32_t ring_count(const struct afp_pool *p)
{
	return p->ring_head - p->ring_tail;
}

static void count_release(struct afp_pool *p, uint32_t n)
{
	atomic_fetch_add_explicit(&p->release_cnt, n, memory_order_relaxed);
}

static _Thread_local uint32_t telling;

void afp_pool_tell(const struct afp_pool *p, enum afp_event event, const uint32_t *frames, uint32_t n)
{
	if (likely(!p->hook || !n))
		return;
	telling++;
	p->hook(p->hook_user, event, frames, n);
	telling--;
}

bool afp_pool_telling(void)
{
	return telling;
}

static void release_locked(struct afp_pool *p, const uint32_t *frames, uint32_t n)
{
	afp_table_give_locked(p->table, frames, n);
	count_release(p, n);
	afp_pool_tell(p, AFP_RELEASE, frames, n);
}

static void spill_flush(struct afp_pool *p)
{
	if (!p->nspill)
		return;
	pthread_mutex_lock(&p->table->lock);
	release_locked(p, p->spill, p->nspill);
	pthread_mutex_unlock(&p->table->lock);
	p->nspill = 0;
}

/* A frame beyond the cache: into the ring, or, the ring being full, back to the Umem. */
void afp_pool_ring_put(struct afp_pool *p, uint32_t frame)
{
	if (likely(ring_count(p) < p->ring_size)) {
		p->ring[p->ring_head++ & p->ring_mask] = frame;
		bump(&p->stat[S_RING], 1);
		return;
	}
	bump(&p->stat[S_RING_FULL], 1);
	p->spill[p->nspill++] = frame;
	if (p->nspill == AFP_REFILL)
		spill_flush(p);
}

/* Accept one posted frame, or refuse it: the owner alone decides, so of two posts of one life one is honoured. */
static bool accept_post(struct afp_pool *p, uint64_t entry)
{
	struct afp_table *t = p->table;
	uint32_t frame = (uint32_t)entry;
	uint16_t gen = word_gen(entry);
	enum afp_state from = word_state(entry);
	uint64_t w = word_load(t, frame);
	bool good = word_gen(w) == gen && word_state(w) == from && word_owner(w) == p->id && word_refs(w) == 1 &&
		    word_tx(w) == (from == AFP_TX);

	/* The claim of a frame that came home is left: it is of a life that ended. A refused one must not stop its holder. */
	if (good)
		word_store(t, frame, word_make(gen, 0, AFP_POOL, p->id, 0, 0));
	else if (atomic_load_explicit(&t->returned[frame], memory_order_relaxed) == gen)
		atomic_store_explicit(&t->returned[frame], 0, memory_order_relaxed);
	return good;
}

/*
 * The common case of accept_post(), a run of frames into the ring, up to where it wraps, at most AFP_REFILL: stops at the first
 * that is otherwise. A completion's entry, which has another state, fits no word here.
 */
static uint32_t accept_run(struct afp_pool *p, const uint64_t *entry, uint32_t n)
{
	const uint64_t alone = word_make(0, 0, 0, p->id, 0, 1);
	const uint64_t change = word_make(0, 0, AFP_POOL, p->id, 0, 0) - p->in_app;
	const uint32_t at = p->ring_head & p->ring_mask, straight = p->ring_mask + 1 - at, room = p->ring_size - ring_count(p);
	_Atomic uint64_t *const word = p->table->word;
	uint32_t *const ring = p->ring + at;
	uint32_t i;

	n = n < room ? n : room;
	n = n < straight ? n : straight;
	n = n < AFP_REFILL ? n : AFP_REFILL;
	for (i = 0; i < n; i += 2) /* the returner looked at them last */
		fetch_to_write((const void *)&word[(uint32_t)entry[i]]);
#pragma GCC unroll 8
	for (i = 0; i < n; i++) {
		uint64_t w = entry_word(entry[i]) + alone, frame = (uint32_t)entry[i];

		if (unlikely(!word_is(word, frame, w)))
			break;
		frame = again(frame);
		atomic_store_explicit(&word[frame], w + change, memory_order_relaxed);
		ring[i] = (uint32_t)frame;
	}
	p->ring_head += i;
	return i;
}

/* Take the whole inbox. Owner thread, or the holder of the table's lock once the pool is detached. */
static uint32_t collect(struct afp_pool *p, void (*keep)(struct afp_pool *, uint32_t))
{
	/* Not relaxed: a pool that closes sets `life`, then looks here, as afp_pool_destroy() explains. */
	struct afp_post *post = atomic_load(&p->inbox);
	uint32_t home = 0;

	if (!post)
		return 0;
	post = atomic_exchange(&p->inbox, NULL);
	while (post) {
		struct afp_post *next = post->next;
		uint32_t refused = 0, i = 0;

		if (keep == afp_pool_ring_put) {
			uint32_t more;

			do
				i += more = accept_run(p, post->entry + i, post->n - i);
			while (more);
			bump(&p->stat[S_RING], i);
		}
		for (; i < post->n; i++) {
			if (likely(accept_post(p, post->entry[i])))
				keep(p, (uint32_t)post->entry[i]);
			else
				refused++;
		}
		home += post->n - refused;
		bump(&p->stat[S_REMOTE_BATCHES], 1);
		bump(&p->stat[S_REMOTE_FRAMES], post->n - refused);
		bump(&p->stat[S_LATE_REFUSED], refused);
		free(post);
		post = next;
	}
	return home;
}

static void release_one_locked(struct afp_pool *p, uint32_t frame)
{
	release_locked(p, &frame, 1);
}

/* One step of the way down: ring (fed by the inbox), then the Umem. Puts frames into the empty cache. */
bool afp_pool_refill(struct afp_pool *p)
{
	uint32_t n = ring_count(p);

	if (!n) {
		collect(p, afp_pool_ring_put);
		n = ring_count(p);
	}
	if (n) {
		uint32_t at = p->ring_tail & p->ring_mask, straight = p->ring_mask + 1 - at;

		n = n < AFP_REFILL ? n : AFP_REFILL;
		straight = n < straight ? n : straight;
		memcpy(p->cache, p->ring + at, straight * sizeof(p->ring[0]));
		memcpy(p->cache + straight, p->ring, (n - straight) * sizeof(p->ring[0]));
		p->ring_tail += n;
		p->ncache = n;
		bump(&p->stat[S_REFILL], 1);
		return true;
	}
	bump(&p->stat[S_EMPTY], 1);
	spill_flush(p); /* idle frames of ours must not be missing from the Umem now */

	n = AFP_REFILL;
	if (p->quota) {
		uint32_t held = atomic_load_explicit(&p->hold_cnt, memory_order_relaxed) -
				atomic_load_explicit(&p->release_cnt, memory_order_relaxed);
		uint32_t room = held < p->quota ? p->quota - held : 0;
		if (!room) {
			bump(&p->stat[S_QUOTA], 1);
			return false;
		}
		n = n < room ? n : room;
	}
	n = afp_table_take(p->table, p->id, p->cache, n);
	if (!n) {
		bump(&p->stat[S_FAILED], 1);
		return false;
	}
	p->ncache = n;
	atomic_fetch_add_explicit(&p->hold_cnt, n, memory_order_relaxed);
	bump(&p->stat[S_SLOW], 1);
	afp_pool_tell(p, AFP_HOLD, p->cache, n);
	return true;
}

/* Life of a pool ------------------------------------------------------------------------------------------------------ */

struct afp_pool *afp_pool_create(struct afp_table *t, uint32_t ring_size, uint32_t quota)
{
	struct afp_pool *p = NULL;
	uint32_t room = 1, id;

	if (ring_size > AFP_RING_MAX)
		ring_size = AFP_RING_MAX; /* as page_pool_init() clamps */
	if (!ring_size)
		ring_size = AFP_RING_DEFAULT;
	while (room < ring_size)
		room <<= 1;

	afp_table_reap(t);
	uint32_t *ring = malloc(room * sizeof(*ring));
	if (!ring)
		return NULL;
	pthread_mutex_lock(&t->lock);
	for (id = 1; id < AFP_MAX_POOLS; id++)
		if (!t->pools[id] || atomic_load(&t->pools[id]->life) == AFP_DEAD)
			break;
	if (id < AFP_MAX_POOLS) {
		p = t->pools[id];
		if (!p)
			p = aligned_alloc(64, (sizeof(*p) + 63) & ~(size_t)63);
	}
	if (!p) {
		pthread_mutex_unlock(&t->lock);
		free(ring);
		errno = id < AFP_MAX_POOLS ? ENOMEM : EMFILE;
		return NULL;
	}
	/* A reused struct keeps its inbox, table and id: a late producer may be looking at them. */
	if (!t->pools[id]) {
		memset(p, 0, sizeof(*p));
		p->table = t;
		p->id = id;
		p->in_app = word_make(0, 0, AFP_APP, id, 0, 1);
		p->change_out = p->in_app - word_make(0, 0, AFP_POOL, id, 0, 0) + AFP_ONE_GEN;
		t->pools[id] = p;
	}
	p->serial++;
	p->quota = quota;
	p->ncache = p->nspill = p->ring_head = p->ring_tail = 0;
	p->fragment_frame = AFP_NO_FRAME;
	p->fragment_at = p->fragment_bias = 0;
	p->hook = NULL;
	p->ring = ring;
	p->ring_size = ring_size;
	p->ring_mask = room - 1;
	for (int i = 0; i < 16; i++)
		atomic_store_explicit(&p->stat[i], 0, memory_order_relaxed);
	atomic_store(&p->hold_cnt, 0);
	atomic_store(&p->release_cnt, 0);
	/* `owner` is 0 already, and not ours to write: a late bind to the pool before may be taking itself back out. */
	atomic_store(&p->life, AFP_LIVE);
	pthread_mutex_unlock(&t->lock);
	return p;
}

int afp_pool_bind(struct afp_pool *p)
{
	uintptr_t self = afp_self(), nobody = 0;

	if (unlikely(atomic_load(&p->life) != AFP_LIVE))
		return AFP_CLOSED;
	if (owned_by(p, self))
		return 0;
	if (!atomic_compare_exchange_strong(&p->owner, &nobody, self))
		return AFP_WRONG_THREAD;
	if (unlikely(atomic_load(&p->life) != AFP_LIVE)) {
		atomic_store(&p->owner, 0); /* it was closed while we looked */
		return AFP_CLOSED;
	}
	atomic_store(&p->owner_tid, (int)syscall(SYS_gettid));
	return 0;
}

void afp_pool_set_hook(struct afp_pool *p, afp_pool_hook hook, void *user)
{
	p->hook_user = user;
	p->hook = hook;
}

int afp_pool_unbind(struct afp_pool *p)
{
	if (!owned_by(p, afp_self()))
		return AFP_WRONG_THREAD;
	atomic_store(&p->owner_tid, 0);
	atomic_store(&p->owner, 0);
	return 0;
}

int afp_pool_collect(struct afp_pool *p)
{
	int err = owner_only(p);

	return err ? err : (int)collect(p, afp_pool_ring_put);
}

int afp_pool_flush(struct afp_pool *p)
{
	int err = owner_only(p);

	if (err)
		return err;
	afp_fragment_finish(p);
	collect(p, afp_pool_ring_put);
	pthread_mutex_lock(&p->table->lock);
	release_locked(p, p->cache, p->ncache);
	while (ring_count(p))
		release_locked(p, &p->ring[p->ring_tail++ & p->ring_mask], 1);
	release_locked(p, p->spill, p->nspill);
	p->ncache = p->nspill = 0;
	pthread_mutex_unlock(&p->table->lock);
	return 0;
}

/* The table's lock is held, the pool detached: whoever holds the lock acts as its owner. */
static void reap_locked(struct afp_pool *p)
{
	collect(p, release_one_locked);
	if (atomic_load(&p->hold_cnt) == atomic_load(&p->release_cnt)) {
		free(p->ring);
		p->ring = NULL;
		atomic_store(&p->life, AFP_DEAD);
	}
}

void afp_table_reap(struct afp_table *t)
{
	pthread_mutex_lock(&t->lock);
	for (int i = 1; i < AFP_MAX_POOLS; i++)
		if (t->pools[i] && atomic_load(&t->pools[i]->life) == AFP_DETACHED)
			reap_locked(t->pools[i]);
	pthread_mutex_unlock(&t->lock);
}

int afp_pool_destroy(struct afp_pool *p)
{
	int err = afp_pool_flush(p);

	if (err)
		return err;
	/*
	 * From here nothing enters the cache: there is no owner any more. A producer posts, then looks at `life`; we set `life`,
	 * then look at the inbox: one of the two sees the other. All of it under the lock, so that a producer who sees
	 * DETACHED and reaps cannot hand this struct to a new pool before we are done with it.
	 */
	pthread_mutex_lock(&p->table->lock);
	atomic_store(&p->life, AFP_DETACHED);
	atomic_store(&p->owner_tid, 0);
	atomic_store(&p->owner, 0);
	reap_locked(p);
	pthread_mutex_unlock(&p->table->lock);
	return 0;
}

int afp_pool_owner_tid(const struct afp_pool *p)
{
	return atomic_load(&p->owner_tid);
}

int afp_pool_life(const struct afp_pool *p)
{
	return atomic_load(&p->life);
}

void afp_pool_read_stats(const struct afp_pool *p, struct afp_pool_stats *out)
{
	uint64_t *field = &out->alloc_fast;

	for (int i = 0; i < 16; i++)
		field[i] = atomic_load_explicit(&p->stat[i], memory_order_relaxed);
	out->hold_cnt = atomic_load_explicit(&p->hold_cnt, memory_order_relaxed);
	out->release_cnt = atomic_load_explicit(&p->release_cnt, memory_order_relaxed);
}
