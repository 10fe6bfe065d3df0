/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The frame pool: an owner of frames, with the kernel's page_pool semantics (net/core/page_pool.c).
 *
 *   alloc:  cache (128, LIFO) -> ring, fed by remote returns -> the Umem's free list, 64 at a time
 *   put:    owner thread: cache -> ring -> Umem;  any other thread: posted to the owner's inbox, one atomic operation a batch
 *
 * A frame is counted by hold_cnt when it enters the pool from the Umem and by release_cnt when it leaves for the Umem;
 * recycling moves neither, so  hold_cnt - release_cnt  is always the number of frames the pool owns (32-bit serial
 * arithmetic, as page_pool_inflight()).
 *
 * The inbox is a list of posts, pushed by compare-and-swap and taken whole by exchange: no capacity to overflow, no ABA.
 * A pool's memory lives as long as its table, so a producer that is late by any time touches valid memory.
 */
#ifndef AFXDP_POOL_POOL_H
#define AFXDP_POOL_POOL_H

#include "table.h"

#define AFP_CACHE 128  /* PP_ALLOC_CACHE_SIZE */
#define AFP_REFILL 64  /* PP_ALLOC_CACHE_REFILL */
#define AFP_RING_DEFAULT 1024
#define AFP_RING_MAX 16384

#define AFP_WRONG_THREAD (-1)
#define AFP_CLOSED (-2)
#define AFP_TOO_LARGE (-3)

/* Fragments start at multiples of this, as page_pool aligns them to a cache line: 64 fit the largest frame. */
#define AFP_FRAGMENT_ALIGN 64

/* The kernel's eleven names (struct page_pool_stats), then ours. */
struct afp_pool_stats {
	uint64_t alloc_fast, alloc_slow, alloc_slow_high_order, alloc_empty, alloc_refill, alloc_waive;
	uint64_t recycle_cached, recycle_cache_full, recycle_ring, recycle_ring_full, recycle_released_refcnt;
	uint64_t alloc_failed;   /* allocations that found neither cache, ring nor Umem frames */
	uint64_t alloc_quota;    /* allocations stopped by the pool's quota */
	uint64_t remote_batches; /* posts taken out of the inbox */
	uint64_t remote_frames;  /* frames in them that came home */
	uint64_t late_refused;   /* posted frames refused at the owner: lost races of a double put */
	uint32_t hold_cnt, release_cnt;
};

enum afp_event { AFP_HOLD, AFP_RELEASE };
/* Called in the slow path only: with frames that have just entered the pool, or just left it. It must not call back. */
typedef void (*afp_pool_hook)(void *user, int event, const uint32_t *frames, uint32_t n);

struct afp_post {
	struct afp_post *next;
	uint32_t n, room;
	uint64_t entry[]; /* frame:32, and, where the word has them, its generation and the state it must be in */
};

static inline uint64_t post_entry(uint32_t frame, uint16_t gen, enum afp_state from)
{
	return word_make(gen, 0, from, 0, 0, 0) | frame;
}
/* The word that an entry of a frame with one reference asks for, but for owner and references. */
static inline uint64_t entry_word(uint64_t entry)
{
	return entry & ~(uint64_t)UINT32_MAX;
}

enum afp_life { AFP_DEAD = 0, AFP_LIVE, AFP_DETACHED };

struct afp_pool {
	/* Owner thread only. */
	struct afp_table *table;
	uint32_t id;
	uint32_t serial; /* of the pools that have had this id: which of them this is */
	uint32_t quota; /* most frames owned at once; 0 = no limit */
	uint32_t ncache;
	uint64_t in_app;     /* the word of a frame that only its holder has: all but the generation */
	uint64_t change_out; /* what makes of an idle frame's word that of a frame handed out: the next generation */
	uint32_t ring_size, ring_mask; /* limit, and the power of two minus one that holds it */
	uint32_t ring_head, ring_tail; /* count = head - tail */
	uint32_t nspill;
	uint32_t *ring;
	_Alignas(64) uint32_t cache[AFP_CACHE];
	uint32_t spill[AFP_REFILL]; /* on their way to the Umem, given in bulk */
	_Atomic uint64_t stat[16];  /* the uint64_t fields of struct afp_pool_stats, in order */
	_Atomic uint32_t hold_cnt, release_cnt;
	uint32_t fragment_frame, fragment_at; /* the frame fragments are cut from (AFP_NO_FRAME: none), and up to where */
	uint32_t fragment_bias;               /* references taken in advance for fragments not cut yet */
	afp_pool_hook hook;                   /* told of frames that enter and leave; NULL = nobody listens */
	void *hook_user;

	/* Any thread. What every post moves from core to core has a cache line of its own; what nearly nobody writes, another. */
	_Alignas(64) _Atomic(struct afp_post *) inbox;
	_Alignas(64) _Atomic uintptr_t owner; /* afp_self() of the bound thread, 0 = unbound */
	_Atomic int owner_tid;   /* the same as the system's thread id, for messages */
	_Atomic int life;
};

struct afp_refusal {
	uint32_t index;
	uint32_t reason; /* enum afp_reason */
	uint64_t addr;
};
#define AFP_REFUSALS 16
struct afp_refusals {
	uint32_t n; /* may exceed AFP_REFUSALS: the first of them are described */
	struct afp_refusal item[AFP_REFUSALS];
};

/* Table. Concurrency: any thread, but init and fini. */
int afp_table_init(struct afp_table *t, void *area, uint32_t nframes, uint32_t frame_size, uint32_t headroom);
/* Frames of any size: as many as there are whole ones in each AFP_BLOCK, one behind the other from its start. */
int afp_table_init_unaligned(struct afp_table *t, void *area, uint32_t nframes, uint32_t frame_size, uint32_t headroom);
void afp_table_fini(struct afp_table *t);
/* Up to n frames from the free list for a pool; how many. */
uint32_t afp_table_take(struct afp_table *t, uint32_t owner, uint32_t *frames, uint32_t n);
/* The table's lock is held. */
void afp_table_give_locked(struct afp_table *t, const uint32_t *frames, uint32_t n);

/* Pools. `create`, `destroy`: any thread that may own the pool. 0 or a negative errno / AFP_*. */
struct afp_pool *afp_pool_create(struct afp_table *t, uint32_t ring_size, uint32_t quota);
int afp_pool_destroy(struct afp_pool *p);
int afp_pool_bind(struct afp_pool *p);
int afp_pool_unbind(struct afp_pool *p);
int afp_pool_flush(struct afp_pool *p); /* cache, ring and inbox back to the Umem */
int afp_pool_collect(struct afp_pool *p); /* take the inbox in; how many frames came home */
int afp_pool_owner_tid(const struct afp_pool *p); /* the bound thread's id as the system names it, 0 = unbound */
int afp_pool_life(const struct afp_pool *p);
void afp_pool_read_stats(const struct afp_pool *p, struct afp_pool_stats *out);
void afp_table_reap(struct afp_table *t); /* let detached pools take their late returns */

/* Frames. alloc: owner thread only; how many it got, or AFP_WRONG_THREAD. */
int afp_pool_alloc(struct afp_pool *p, struct afp_desc *out, uint32_t n);
/* Packets that share frames: n fragments of at least `size` bytes each, their room in `len`. Owner thread only; how many, or
 * AFP_WRONG_THREAD, AFP_TOO_LARGE. As page_pool_alloc(): a size above half a frame gets a whole one, and a tail too short for
 * another fragment goes to the last. */
int afp_pool_alloc_fragments(struct afp_pool *p, struct afp_desc *out, uint32_t n, uint32_t size);
void afp_pool_set_hook(struct afp_pool *p, afp_pool_hook hook, void *user);
/* Any thread; every good frame is handled, each bad one refused and described. How many were handled. */
uint32_t afp_put(struct afp_table *t, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused);
uint32_t afp_ref(struct afp_table *t, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused);
/* The same; return how many were refused, and keep which for the calling thread to ask. */
uint32_t afp_put_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n);
uint32_t afp_ref_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n);
/* For callers that an exception may cut off from what is returned: *done becomes how many frames changed hands. */
uint32_t afp_put_noted(struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint32_t *done);
/* afp_ref_all(), but all or none: at the first that is refused, those before it are given back. */
uint32_t afp_keep_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint32_t *done);
struct afp_refusals *afp_last_refusals(void);
/* afp_put_all() in two steps: what goes straight into this thread's own cache, from the first on, and takes no lock; the rest,
 * from `from` on. */
uint32_t afp_put_cached(struct afp_table *t, const struct afp_desc *descs, uint32_t n);
uint32_t afp_put_rest(struct afp_table *t, const struct afp_desc *descs, uint32_t from, uint32_t n);

/* For port.c ---------------------------------------------------------------------------------------------------- */

/* Frames to be posted to other threads' pools, collected over one batch. */
#define AFP_BOX_POOLS 4
struct afp_box {
	uintptr_t self;
	uint32_t room; /* frames the batch may still post */
	uint32_t used;
	uint32_t last; /* the slot posted to last, if any is used */
	struct afp_pool *pool[AFP_BOX_POOLS];
	struct afp_post *post[AFP_BOX_POOLS];
	struct afp_pool *mine;   /* the last pool found to be owned by this thread */
	struct afp_pool *direct; /* the same, if no post waits for it: of what is posted a second completion is none */
	uint32_t cached;         /* frames put into its cache, not yet counted */
};

/* Not all of it need be cleared: the slots are not looked at before they are used. */
static inline void afp_box_open(struct afp_box *box, uint32_t room)
{
	box->self = afp_self();
	box->room = room;
	box->used = 0;
	box->mine = box->direct = NULL;
	box->cached = 0;
}

/* The box's post for the pool's frames, empty at first; NULL: no memory. */
struct afp_post *afp_box_post(struct afp_box *box, struct afp_pool *p);
bool afp_box_add(struct afp_box *box, struct afp_pool *p, uint32_t frame, uint16_t gen, enum afp_state from);
void afp_box_flush(struct afp_box *box);
void afp_pool_ring_put(struct afp_pool *p, uint32_t frame);
bool afp_take_fragment(struct afp_table *t, uint32_t frame, uint64_t addr);
void afp_give_fragment(struct afp_table *t, uint32_t frame, uint64_t addr);
void afp_fragment_finish(struct afp_pool *p);
void afp_pool_tell(const struct afp_pool *p, enum afp_event event, const uint32_t *frames, uint32_t n);
/* Whether this thread is being told: what called the hook is half done, and may hold the table's lock. */
bool afp_pool_telling(void);
void afp_wrap_generation(struct afp_table *t, uint32_t frame, uint64_t *w);
bool afp_pool_refill(struct afp_pool *p);
uint32_t afp_pool_take(struct afp_pool *p, uint32_t *frames, uint32_t n);
void afp_refuse(struct afp_table *t, struct afp_refusals *refused, uint32_t index, uint64_t addr, enum afp_reason reason);

static inline void bump(_Atomic uint64_t *counter, uint64_t n)
{
	/* One writer: no atomic read-modify-write needed, only a store other threads may read. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

enum afp_stat {
	S_FAST, S_SLOW, S_SLOW_HIGH_ORDER, S_EMPTY, S_REFILL, S_WAIVE,
	S_CACHED, S_CACHE_FULL, S_RING, S_RING_FULL, S_RELEASED_REFCNT,
	S_FAILED, S_QUOTA, S_REMOTE_BATCHES, S_REMOTE_FRAMES, S_LATE_REFUSED,
};

static inline struct afp_pool *frame_owner(const struct afp_table *t, uint64_t w)
{
	return t->pools[word_owner(w)];
}

/* The statistics of a batch are written once. */
static inline void afp_box_count(struct afp_box *box)
{
	if (box->cached)
		bump(&box->mine->stat[S_CACHED], box->cached);
	box->cached = 0;
}

static inline bool owned_by(const struct afp_pool *p, uintptr_t self)
{
	return atomic_load_explicit(&p->owner, memory_order_relaxed) == self;
}

static inline int owner_only(struct afp_pool *p)
{
	/* An unbound pool is bound by the first owner-only call. */
	return likely(owned_by(p, afp_self())) ? 0 : afp_pool_bind(p);
}

/* The word of a frame that only one port's TX has: everything but the generation. */
static inline uint64_t word_in_tx(const struct afp_pool *p, uint32_t port)
{
	return word_make(0, port, AFP_TX, p->id, 1, 1);
}

/*
 * The common case of a completion, in one comparison: the frame is this thread's pool's, nobody else has a reference, and the
 * cache has room. `expected` is its whole word. False: nothing was done, take the long way.
 */
static inline bool afp_recycle_direct(struct afp_table *t, struct afp_box *box, uint32_t frame, uint64_t w, uint64_t expected)
{
	struct afp_pool *p = box->direct;

	if (unlikely(w != expected || p->ncache == AFP_CACHE))
		return false;
	word_store(t, frame, word_make(word_gen(w), 0, AFP_POOL, p->id, 0, 0));
	p->cache[p->ncache++] = frame;
	box->cached++;
	return true;
}

/*
 * The last reference to a frame was given back: send it home. In the owner's thread that is the transition itself;
 * elsewhere it is a post to the owner. `from` is the state the frame is in.
 */
static inline enum afp_reason afp_go_home(struct afp_table *t, struct afp_box *box, uint32_t frame, uint64_t w, enum afp_state from)
{
	struct afp_pool *p = frame_owner(t, w);

	if (unlikely(from == AFP_TX && atomic_load_explicit(&t->completed[frame], memory_order_relaxed) == word_gen(w)))
		return AFP_NOT_HELD; /* already on its way: one frame, two completions */
	if (likely(p == box->mine) || owned_by(p, box->self)) {
		if (unlikely(p != box->mine)) {
			afp_box_count(box);
			box->mine = p;
			box->direct = atomic_load_explicit(&p->inbox, memory_order_relaxed) ? NULL : p;
		}
		word_store(t, frame, word_make(word_gen(w), 0, AFP_POOL, p->id, 0, 0));
		if (likely(p->ncache < AFP_CACHE)) {
			p->cache[p->ncache++] = frame;
			box->cached++;
		} else {
			bump(&p->stat[S_CACHE_FULL], 1);
			afp_pool_ring_put(p, frame);
		}
		return AFP_OK;
	}
	if (unlikely(!afp_box_add(box, p, frame, word_gen(w), from)))
		return AFP_NO_MEMORY;
	return AFP_OK;
}

#endif
