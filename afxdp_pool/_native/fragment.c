/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fragments: several packets in one frame, as page_pool_alloc_frag() cuts a page.
 *
 * The pool takes references for all fragments a frame can hold in advance, and gives back those it did not need when it is
 * done with the frame; so cutting a fragment is no atomic operation on the word. Each fragment has a bit in `fragments`,
 * by where it starts: putting or sending it takes the bit, so the same fragment cannot be given back twice at the cost of
 * another, which reference counts alone would allow.
 */
#include "pool.h"

#include <stdlib.h>

static inline uint32_t align_up(uint32_t bytes)
{
	return (bytes + AFP_FRAGMENT_ALIGN - 1) & ~(AFP_FRAGMENT_ALIGN - 1u);
}

static uint64_t fragment_bit(const struct afp_table *t, uint64_t addr)
{
	return 1ull << (frame_offset(t, addr) / AFP_FRAGMENT_ALIGN);
}

/* Any thread: take the bit of the fragment that starts at `addr`; false when nobody holds that. */
bool afp_take_fragment(struct afp_table *t, uint32_t frame, uint64_t addr)
{
	uint64_t bit = fragment_bit(t, addr);

	return atomic_fetch_and_explicit(&t->fragments[frame], ~bit, memory_order_acq_rel) & bit;
}

void afp_give_fragment(struct afp_table *t, uint32_t frame, uint64_t addr)
{
	atomic_fetch_or_explicit(&t->fragments[frame], fragment_bit(t, addr), memory_order_release);
}

static bool make_fragment_table(struct afp_table *t)
{
	pthread_mutex_lock(&t->lock);
	if (!t->fragments)
		t->fragments = calloc(t->nframes, sizeof(*t->fragments));
	pthread_mutex_unlock(&t->lock);
	return t->fragments != NULL;
}

/* The pool is done with its fragment frame: references taken in advance and not used go back. Owner thread only. */
void afp_fragment_finish(struct afp_pool *p)
{
	struct afp_table *t = p->table;
	struct afp_box box = {.self = afp_self(), .room = 1};
	uint32_t frame = p->fragment_frame, bias = p->fragment_bias;
	uint64_t w;

	if (frame == AFP_NO_FRAME)
		return;
	p->fragment_frame = AFP_NO_FRAME;
	p->fragment_bias = 0;
	w = word_load(t, frame);
	for (;;) {
		if (word_refs(w) == bias) {
			/* Every fragment is back already: the pool has the last references. */
			word_store(t, frame, w - (bias - 1) * AFP_ONE_REF);
			afp_go_home(t, &box, frame, word_load(t, frame), AFP_APP);
			afp_box_flush(&box);
			return;
		}
		if (atomic_compare_exchange_weak_explicit(&t->word[frame], &w, w - bias * AFP_ONE_REF, memory_order_acq_rel,
							  memory_order_relaxed))
			return;
	}
}

/* A fresh frame to cut from, all its references taken. */
static bool fragment_begin(struct afp_pool *p)
{
	struct afp_table *t = p->table;
	struct afp_desc whole;
	uint32_t bias = (t->frame_size - t->headroom) / AFP_FRAGMENT_ALIGN + 1;

	if (afp_pool_alloc(p, &whole, 1) != 1)
		return false;
	p->fragment_frame = frame_of(t, whole.addr);
	p->fragment_at = align_up(t->headroom);
	p->fragment_bias = bias;
	atomic_store_explicit(&t->fragments[p->fragment_frame], 0, memory_order_relaxed);
	word_store(t, p->fragment_frame, (word_load(t, p->fragment_frame) | AFP_FRAGMENTED) + (bias - 1) * AFP_ONE_REF);
	return true;
}

int afp_pool_alloc_fragments(struct afp_pool *p, struct afp_desc *out, uint32_t n, uint32_t size)
{
	struct afp_table *t = p->table;
	uint32_t room = t->frame_size - align_up(t->headroom), done;

	if (!size || size > t->frame_size - t->headroom)
		return AFP_TOO_LARGE;
	size = align_up(size);
	if (size * 2 > room) {
		int got = afp_pool_alloc(p, out, n);
		for (int i = 0; i < got; i++)
			out[i].len = t->frame_size - t->headroom;
		return got;
	}
	if (afp_pool_bind(p))
		return AFP_WRONG_THREAD;
	if (!t->fragments && !make_fragment_table(t))
		return 0;
	for (done = 0; done < n; done++) {
		uint64_t addr;
		uint32_t length = size;

		if (p->fragment_frame != AFP_NO_FRAME && p->fragment_at + size > t->frame_size)
			afp_fragment_finish(p);
		if (p->fragment_frame == AFP_NO_FRAME && !fragment_begin(p))
			break;
		if (p->fragment_at + 2 * size > t->frame_size)
			length = t->frame_size - p->fragment_at;
		addr = frame_addr(t, p->fragment_frame) + p->fragment_at;
		out[done] = (struct afp_desc){.addr = addr, .len = length, .gen = word_gen(word_load(t, p->fragment_frame))};
		afp_give_fragment(t, p->fragment_frame, addr);
		p->fragment_at += length;
		p->fragment_bias--;
	}
	return (int)done;
}
