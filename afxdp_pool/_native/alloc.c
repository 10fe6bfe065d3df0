/* SPDX-License-Identifier: BSD-3-Clause */
/* The way out of a pool: frames from its cache into descriptors. The way back is put.c. */
#include "pool.h"

#include <string.h>

/* The next generation would be 0, which is never given out: 1 it is. A claim of that number is of a life 65535 lives ago. */
void afp_wrap_generation(struct afp_table *t, uint32_t frame, uint64_t *w)
{
	struct afp_rx_metadata *known = __atomic_load_n(&t->known, __ATOMIC_RELAXED);

	*w += AFP_ONE_GEN;
	if (known)
		known[frame].magic = 0;
	atomic_store_explicit(&t->returned[frame], 0, memory_order_relaxed);
	atomic_store_explicit(&t->completed[frame], 0, memory_order_relaxed);
}

/* The same for an idle frame, whose generation is then 0 and the next one 1. */
static void skip_generation(struct afp_table *t, uint32_t frame)
{
	uint64_t w = word_load(t, frame) & ~AFP_GEN_MASK, ignored = 0;

	afp_wrap_generation(t, frame, &ignored);
	word_store(t, frame, w);
}

/*
 * From the top of the cache into descriptors: POOL becomes APP, one reference, the next generation. Stops before a frame
 * whose generations are used up, and leaves in `at` where it would go; how many are left.
 */
static inline __attribute__((always_inline)) uint32_t hand_out_run(_Atomic uint64_t *word, const uint32_t *top, uint64_t change,
								   struct afp_desc **at, uint32_t n, uint32_t shift,
								   uint64_t headroom)
{
	struct afp_desc *out = *at;
	uint32_t eights = n / 8;

#define HAND_OUT(k)                                                                                                         \
	do {                                                                                                                \
		uint64_t frame = top[-1 - (k)], w;                                                                          \
                                                                                                                            \
		if (unlikely(__builtin_add_overflow(atomic_load_explicit(&word[frame], memory_order_relaxed), change, &w))) \
			return *at = out + (k), eights * 8 + n % 8 - (k);                                                   \
		frame = again(frame);                                                                                       \
		atomic_store_explicit(&word[frame], w, memory_order_relaxed);                                               \
		out[k].addr = (frame << shift) + headroom;                                                                  \
		w &= AFP_GEN_MASK; /* and no length, no options: one store */                                               \
		memcpy(&out[k].len, &w, sizeof(w));                                                                         \
	} while (0)
	for (; eights; eights--, out += 8, top -= 8)
		EIGHT(HAND_OUT);
	for (n %= 8; n; n--, out++, top--)
		HAND_OUT(0);
#undef HAND_OUT
	return 0;
}

/* The same for frames that are no power of two. */
static __attribute__((noinline)) uint32_t hand_out_blocks(struct afp_pool *p, struct afp_desc **at, uint32_t n)
{
	const struct afp_table *t = p->table;

	for (const uint32_t *top = p->cache + p->ncache; n; n--, top--, (*at)++) {
		uint64_t w;

		if (unlikely(__builtin_add_overflow(word_load(t, top[-1]), p->change_out, &w)))
			break;
		atomic_store_explicit(&t->word[top[-1]], w, memory_order_relaxed);
		**at = (struct afp_desc){.addr = frame_addr(t, top[-1]) + t->headroom, .gen = word_gen(w)};
	}
	return n;
}

/* From the cache, which has that many, but for those that must skip a generation; how many are left. */
static inline __attribute__((always_inline)) uint32_t hand_out_straight(struct afp_pool *p, struct afp_desc **at, uint32_t n)
{
	const struct afp_table *t = p->table;
	const uint32_t *top = p->cache + p->ncache;

	/* Constants are worth a copy of the loop. */
	if (likely(t->frame_shift == 12 && !t->headroom))
		return hand_out_run(t->word, top, p->change_out, at, n, 12, 0);
	if (unlikely(t->block_frames))
		return hand_out_blocks(p, at, n);
	return hand_out_run(t->word, top, p->change_out, at, n, t->frame_shift, t->headroom);
}

static __attribute__((noinline)) void hand_out(struct afp_pool *p, struct afp_desc *out, uint32_t n)
{
	for (;;) {
		uint32_t left = hand_out_straight(p, &out, n);

		p->ncache -= n - left;
		if (likely(!left))
			return;
		n = left;
		skip_generation(p->table, p->cache[p->ncache - 1]);
	}
}

/* What the cache cannot serve alone, or not its owner yet. */
static __attribute__((noinline)) int alloc_more(struct afp_pool *p, struct afp_desc *out, uint32_t n)
{
	uint32_t done = 0, steps = 0;
	int err = owner_only(p);

	if (unlikely(err))
		return err;
	while (done < n) {
		uint32_t k;

		if (unlikely(!p->ncache)) {
			if (!afp_pool_refill(p))
				break;
			steps++; /* served by a refill or the Umem: not counted as fast */
		}
		k = n - done < p->ncache ? n - done : p->ncache;
		hand_out(p, out + done, k);
		done += k;
	}
	bump(&p->stat[S_FAST], done - steps);
	return (int)done;
}

/* A frame whose generations are used up came in between. */
static __attribute__((noinline)) int alloc_skipping(struct afp_pool *p, struct afp_desc *out, uint32_t n, uint32_t left)
{
	uint32_t done = n - left;

	p->ncache -= done;
	bump(&p->stat[S_FAST], done);
	return (int)done + alloc_more(p, out, left);
}

int afp_pool_alloc(struct afp_pool *p, struct afp_desc *out, uint32_t n)
{
	uint32_t left;

	if (unlikely(!owned_by(p, afp_self()) || n > p->ncache))
		return alloc_more(p, out, n);
	left = hand_out_straight(p, &out, n);
	if (unlikely(left))
		return alloc_skipping(p, out, n, left);
	p->ncache -= n;
	bump(&p->stat[S_FAST], n);
	return (int)n;
}

/* Up to n frames out of the pool, hottest first. The words still say POOL: the caller makes the transition. */
uint32_t afp_pool_take(struct afp_pool *p, uint32_t *frames, uint32_t n)
{
	uint32_t got = 0, steps = 0;

	while (got < n) {
		if (unlikely(!p->ncache)) {
			if (!afp_pool_refill(p))
				break;
			steps++; /* counts as refill or slow, not as fast */
		}
		uint32_t k = n - got < p->ncache ? n - got : p->ncache;
		for (uint32_t i = 0; i < k; i++)
			frames[got + i] = p->cache[p->ncache - 1 - i];
		p->ncache -= k;
		got += k;
	}
	bump(&p->stat[S_FAST], got - steps);
	return got;
}
