/* SPDX-License-Identifier: BSD-3-Clause */
/* The free side: references given back, from any thread, each frame to its own pool. */
#include "pool.h"

#include <string.h>

/* Frames ------------------------------------------------------------------------------------------------------------ */

void afp_refuse(struct afp_table *t, struct afp_refusals *refused, uint32_t index, uint64_t addr, enum afp_reason reason)
{
	if (reason == AFP_FOREIGN)
		atomic_fetch_add_explicit(&t->foreign_puts, 1, memory_order_relaxed);
	if (refused->n < AFP_REFUSALS)
		refused->item[refused->n] = (struct afp_refusal){index, reason, addr};
	refused->n++;
}

/* Does the caller, who shows this descriptor, hold a reference that is not with a TX ring? */
static inline enum afp_reason held(uint64_t w, uint16_t gen)
{
	if (unlikely(word_state(w) != AFP_APP && word_state(w) != AFP_TX))
		return AFP_NOT_HELD;
	if (unlikely(word_gen(w) != gen))
		return AFP_STALE;
	return likely(word_refs(w) > word_tx(w)) ? AFP_OK : AFP_NOT_HELD;
}

/* One reference less, of a frame whose word was `w` a moment ago; the last of them sends it home. */
static enum afp_reason drop_reference(struct afp_table *t, struct afp_box *box, uint32_t frame, uint64_t w, uint16_t gen)
{
	for (;;) {
		enum afp_reason reason = held(w, gen);

		if (unlikely(reason != AFP_OK))
			return reason;
		if (likely(word_refs(w) == 1))
			return afp_go_home(t, box, frame, w, AFP_APP);
		if (atomic_compare_exchange_weak_explicit(&t->word[frame], &w, w - AFP_ONE_REF, memory_order_release,
							  memory_order_relaxed))
			return AFP_OK;
	}
}

/* Give back a fragment: its bit says that the caller has it, so that one fragment is not put twice at another's cost. */
static enum afp_reason put_fragment(struct afp_table *t, struct afp_box *box, uint32_t frame, const struct afp_desc *desc)
{
	enum afp_reason reason;

	if (!afp_take_fragment(t, frame, desc->addr))
		return AFP_NOT_HELD;
	reason = drop_reference(t, box, frame, word_load(t, frame), desc->gen);
	if (unlikely(reason != AFP_OK)) /* no memory; or it went round just now, and the bit was that of a later life */
		afp_give_fragment(t, frame, desc->addr);
	return reason;
}

/* Give back one reference the long way: whoever holds it, whoever else does, whichever pool it belongs to. */
static enum afp_reason put_one(struct afp_table *t, struct afp_box *box, const struct afp_desc *desc)
{
	uint32_t frame = frame_of(t, desc->addr);
	uint64_t w;

	if (unlikely(frame == AFP_NO_FRAME))
		return AFP_FOREIGN;
	/* The claim before the word: if a later life has claimed the frame meanwhile, the word shows that life. */
	if (unlikely(atomic_load_explicit(&t->returned[frame], memory_order_acquire) == desc->gen))
		return AFP_NOT_HELD;
	w = word_load(t, frame);
	if (unlikely((w & AFP_FRAGMENTED) && held(w, desc->gen) == AFP_OK))
		return put_fragment(t, box, frame, desc);
	return drop_reference(t, box, frame, w, desc->gen);
}

/*
 * The common case, a run of frames that need one comparison each: of this thread's own pool, held by nobody else, not posted
 * by anybody. Their numbers go to `dest`. Stops at the first that is otherwise, and leaves it in `at`; how many are left.
 *
 * `claims`: look whether another thread has posted the frame. While the inbox is empty nobody has, or is just about to: then
 * this put is as good as his, and his post will be refused.
 */
static inline __attribute__((always_inline)) uint32_t put_loop(const struct afp_table *t, const struct afp_pool *p,
							       const struct afp_desc **at, uint32_t n, uint32_t *dest,
							       uint32_t shift, bool claims)
{
	const uint64_t size = t->direct, held = p->in_app, change = word_make(0, 0, AFP_POOL, p->id, 0, 0) - held;
	_Atomic uint64_t *const word = t->word;
	_Atomic uint16_t *const returned = t->returned;
	const struct afp_desc *descs = *at;
	uint32_t eights = n / 8;

#define PUT(k)                                                                                                              \
	do {                                                                                                                \
		uint64_t frame = descs[k].addr, w;                                                                          \
                                                                                                                            \
		memcpy(&w, &descs[k].len, sizeof(w)); /* the generation is its highest 16 bits, as in the word */           \
		w = (w & AFP_GEN_MASK) + held;                                                                              \
		if (unlikely(frame >= size))                                                                                \
			return *at = descs + (k), eights * 8 + n % 8 - (k);                                                 \
		frame >>= shift;                                                                                            \
		/* The claim before the word: if a later life has claimed the frame meanwhile, the word shows that life. */ \
		if (claims && unlikely(atomic_load_explicit(&returned[frame], memory_order_acquire) == descs[k].gen))       \
			return *at = descs + (k), eights * 8 + n % 8 - (k);                                                 \
		if (unlikely(!word_is(word, frame, w)))                                                                     \
			return *at = descs + (k), eights * 8 + n % 8 - (k);                                                 \
		frame = again(frame);                                                                                       \
		atomic_store_explicit(&word[frame], w + change, memory_order_relaxed);                                      \
		dest[k] = (uint32_t)frame;                                                                                  \
	} while (0)
	for (; eights; eights--, descs += 8, dest += 8)
		EIGHT(PUT);
	for (n %= 8; n; n--, descs++, dest++)
		PUT(0);
#undef PUT
	return 0;
}

/* Without a look at the claims. */
static inline __attribute__((always_inline)) uint32_t put_straight(const struct afp_table *t, const struct afp_pool *p,
								   const struct afp_desc **at, uint32_t n, uint32_t *dest)
{
	if (likely(t->frame_shift == 12)) /* a constant shift is worth a copy of the loop */
		return put_loop(t, p, at, n, dest, 12, false);
	return put_loop(t, p, at, n, dest, t->frame_shift, false);
}

/* With a look at them if need be; how many there were. */
static uint32_t put_run(const struct afp_table *t, const struct afp_pool *p, const struct afp_desc *descs, uint32_t n, uint32_t *dest)
{
	if (unlikely(atomic_load_explicit(&p->inbox, memory_order_relaxed)))
		return n - put_loop(t, p, &descs, n, dest, t->frame_shift, true);
	return n - put_straight(t, p, &descs, n, dest);
}

/* Into the cache, and, when that is full, into the ring up to where it wraps. */
static uint32_t put_direct(struct afp_table *t, struct afp_box *box, const struct afp_desc *descs, uint32_t n)
{
	struct afp_pool *p = box->mine;
	uint32_t room = AFP_CACHE - p->ncache, at, done, more;

	done = put_run(t, p, descs, n < room ? n : room, p->cache + p->ncache);
	p->ncache += done;
	box->cached += done;
	if (likely(done == n) || done < room)
		return done;
	at = p->ring_head & p->ring_mask;
	room = p->ring_size - (p->ring_head - p->ring_tail);
	room = room < p->ring_mask + 1 - at ? room : p->ring_mask + 1 - at;
	more = put_run(t, p, descs + done, n - done < room ? n - done : room, p->ring + at);
	p->ring_head += more;
	bump(&p->stat[S_CACHE_FULL], more);
	bump(&p->stat[S_RING], more);
	return done + more;
}

static inline uint32_t post_count(struct afp_post *post, uint32_t n, uint32_t left)
{
	post->n += n - left;
	return n - left;
}

/* The same for frames of another thread's pool, the one posted to last: claimed, and added to its post. At most AFP_REFILL. */
static __attribute__((noinline)) uint32_t put_posted(const struct afp_table *t, const struct afp_pool *p, struct afp_post *post,
						     const struct afp_desc *descs, uint32_t n)
{
	const uint64_t size = t->direct, held = p->in_app, from = post_entry(0, 0, AFP_APP) - held;
	const uint32_t shift = t->frame_shift, room = post->room - post->n;
	_Atomic uint64_t *const word = t->word;
	_Atomic uint16_t *const returned = t->returned;
	uint64_t *entry = post->entry + post->n;
	uint32_t eights, left;

	n = n < room ? n : room;
	n = left = n < AFP_REFILL ? n : AFP_REFILL;
	eights = n / 8;
	/* The owner wrote the words last, and read the block, if it is not new: ask for all of them before the first is needed.
	 * An address may be any, so no pointer yet. */
	for (uint32_t i = 0; i < n; i += 2)
		__builtin_prefetch((const void *)((uintptr_t)word + (descs[i].addr >> shift) * sizeof(*word)));
	for (uint32_t i = 0; i < n; i += 8)
		fetch_to_write(&entry[i]);
#define POST(k)                                                                                                             \
	do {                                                                                                                \
		uint64_t frame = descs[k].addr, w;                                                                          \
                                                                                                                            \
		memcpy(&w, &descs[k].len, sizeof(w)); /* as in put_loop() */                                                \
		w = (w & AFP_GEN_MASK) + held;                                                                              \
		if (unlikely(frame >= size))                                                                                \
			return post_count(post, n, eights * 8 + left % 8 - (k));                                            \
		frame >>= shift;                                                                                            \
		if (unlikely(atomic_load_explicit(&returned[frame], memory_order_acquire) == descs[k].gen))                 \
			return post_count(post, n, eights * 8 + left % 8 - (k));                                            \
		if (unlikely(!word_is(word, frame, w)))                                                                     \
			return post_count(post, n, eights * 8 + left % 8 - (k));                                            \
		atomic_store_explicit(&returned[frame], descs[k].gen, memory_order_relaxed);                                \
		entry[k] = w + from + frame;                                                                                \
	} while (0)
	for (; eights; eights--, descs += 8, entry += 8)
		EIGHT(POST);
	for (left %= 8; left; left--, descs++, entry++)
		POST(0);
#undef POST
	return post_count(post, n, 0);
}

/* Any batch, from `i` on. */
static __attribute__((noinline)) uint32_t put_any(struct afp_table *t, const struct afp_desc *descs, uint32_t i, uint32_t n,
						  struct afp_refusals *refused)
{
	uint32_t before = refused->n;
	struct afp_box box;

	afp_box_open(&box, n - i);
	if (likely(i < n && frame_of(t, descs[i].addr) != AFP_NO_FRAME)) {
		struct afp_pool *first = frame_owner(t, word_load(t, frame_of(t, descs[i].addr)));

		if (first && owned_by(first, box.self))
			box.mine = first;
		else if (first)
			afp_box_post(&box, first); /* no memory: put_one() will say so */
	}
	while (i < n) {
		enum afp_reason reason;

		if (likely(box.mine))
			i += put_direct(t, &box, descs + i, n - i);
		if (box.used) {
			uint32_t more;

			do
				i += more = put_posted(t, box.pool[box.last], box.post[box.last], descs + i, n - i);
			while (more == AFP_REFILL);
		}
		if (likely(i == n))
			break;
		reason = put_one(t, &box, &descs[i]);
		if (unlikely(reason != AFP_OK))
			afp_refuse(t, refused, i, descs[i].addr, reason);
		i++;
	}
	ACQUIRE_FRAMES(t, k, n, frame_of(t, descs[k].addr));
	afp_box_flush(&box);
	return n - (refused->n - before);
}

/*
 * The whole of most batches: frames of one pool, this thread's, which nobody posts to and whose cache has room. `at` goes on to
 * the first frame that is otherwise; how many are left.
 */
static inline __attribute__((always_inline)) uint32_t put_cached(struct afp_table *t, const struct afp_desc **at, uint32_t n)
{
	const struct afp_desc *descs = *at;
	struct afp_pool *p;
	uint32_t left;

	if (unlikely(!n || descs->addr >= t->direct))
		return n;
	p = frame_owner(t, word_load(t, frame_direct(t, descs->addr)));
	if (!p || !owned_by(p, afp_self()) || AFP_CACHE - p->ncache < n ||
	    atomic_load_explicit(&p->inbox, memory_order_relaxed))
		return n;
	left = put_straight(t, p, at, n, p->cache + p->ncache);
	p->ncache += n - left;
	bump(&p->stat[S_CACHED], n - left);
	ACQUIRE_FRAMES(t, i, n - left, frame_of(t, descs[i].addr));
	return left;
}

uint32_t afp_put(struct afp_table *t, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused)
{
	uint32_t left = put_cached(t, &descs, n);

	return likely(!left) ? n : put_any(t, descs - (n - left), n - left, n, refused);
}

uint32_t afp_ref(struct afp_table *t, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused)
{
	uint32_t before = refused->n;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t frame = frame_of(t, descs[i].addr);
		enum afp_reason reason = AFP_FOREIGN;

		if (likely(frame != AFP_NO_FRAME)) {
			uint64_t w = word_load(t, frame);

			do {
				reason = held(w, descs[i].gen);
				if (reason == AFP_OK && atomic_load_explicit(&t->returned[frame], memory_order_relaxed) == word_gen(w))
					reason = AFP_NOT_HELD;
				if (reason == AFP_OK && (w & AFP_FRAGMENTED))
					reason = AFP_FRAGMENT;
				if (reason == AFP_OK && word_refs(w) == AFP_MAX_REFS)
					reason = AFP_TOO_MANY_REFS;
			} while (reason == AFP_OK &&
				 !atomic_compare_exchange_weak_explicit(&t->word[frame], &w, w + AFP_ONE_REF, memory_order_relaxed,
									memory_order_relaxed));
		}
		if (unlikely(reason != AFP_OK))
			afp_refuse(t, refused, i, descs[i].addr, reason);
	}
	return n - (refused->n - before);
}

/* For callers that look at refusals only when there are some: they are kept for the calling thread ------------------- */

static _Thread_local struct afp_refusals refusals;

struct afp_refusals *afp_last_refusals(void)
{
	return &refusals;
}

uint32_t afp_put_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n)
{
	refusals.n = 0;
	afp_put(t, descs, n, &refusals);
	return refusals.n;
}

uint32_t afp_put_cached(struct afp_table *t, const struct afp_desc *descs, uint32_t n)
{
	return n - put_cached(t, &descs, n);
}

uint32_t afp_put_rest(struct afp_table *t, const struct afp_desc *descs, uint32_t from, uint32_t n)
{
	refusals.n = 0;
	put_any(t, descs, from, n, &refusals);
	return refusals.n;
}

uint32_t afp_ref_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n)
{
	refusals.n = 0;
	afp_ref(t, descs, n, &refusals);
	return refusals.n;
}

uint32_t afp_keep_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint32_t *done)
{
	struct afp_refusals ignored = {0};

	refusals.n = 0;
	for (uint32_t i = 0; i < n; i++) {
		if (likely(afp_ref(t, descs + i, 1, &refusals)))
			continue;
		refusals.item[0].index = i;
		afp_put(t, descs, i, &ignored);
		return refusals.n;
	}
	*done = n;
	return 0;
}

uint32_t afp_put_noted(struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint32_t *done)
{
	uint32_t refused = afp_put_all(t, descs, n);

	*done = n; /* those refused are not their holder's either */
	return refused;
}
