/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A box: what a batch returns to other threads' pools, on its way to their inboxes, one post a pool. It belongs to the thread
 * that returns. A post is its pool's from the moment it is in the inbox; until then nobody else sees it.
 */
#include "pool.h"

#include <stdlib.h>

static void box_send(struct afp_box *box, uint32_t slot)
{
	struct afp_pool *p = box->pool[slot];
	struct afp_post *post = box->post[slot];

	if (unlikely(!post->n)) { /* opened for a batch of which every frame was refused */
		free(post);
		return;
	}
	ACQUIRE_FRAMES(p->table, i, post->n, (uint32_t)post->entry[i]);
	post->next = atomic_load_explicit(&p->inbox, memory_order_relaxed);
	while (!atomic_compare_exchange_weak(&p->inbox, &post->next, post))
		;
	if (unlikely(atomic_load(&p->life) == AFP_DETACHED))
		afp_table_reap(p->table);
}

struct afp_post *afp_box_post(struct afp_box *box, struct afp_pool *p)
{
	uint32_t slot = 0;
	struct afp_post *post;

	while (slot < box->used && box->pool[slot] != p)
		slot++;
	if (unlikely(slot == box->used)) {
		if (box->used == AFP_BOX_POOLS)
			box_send(box, slot = 0);
		else
			box->used++;
		post = malloc(sizeof(*post) + box->room * sizeof(post->entry[0]));
		if (!post) {
			/* The slot is given up; the frame stays with its holder. */
			box->used--;
			box->pool[slot] = box->pool[box->used];
			box->post[slot] = box->post[box->used];
			return NULL;
		}
		post->n = 0;
		post->room = box->room;
		box->pool[slot] = p;
		box->post[slot] = post;
	}
	box->last = slot;
	return box->post[slot];
}

bool afp_box_add(struct afp_box *box, struct afp_pool *p, uint32_t frame, uint16_t gen, enum afp_state from)
{
	struct afp_table *t = p->table;
	struct afp_post *post = afp_box_post(box, p);

	if (unlikely(!post))
		return false;
	/* Against a second return while this one is on its way. A put and a completion do not know of each other: should there
	 * be both, by a mistake of the caller's, the state the frame is in decides. */
	atomic_store_explicit(from == AFP_APP ? &t->returned[frame] : &t->completed[frame], gen, memory_order_relaxed);
	post->entry[post->n++] = post_entry(frame, gen, from);
	return true;
}

void afp_box_flush(struct afp_box *box)
{
	for (uint32_t slot = 0; slot < box->used; slot++)
		box_send(box, slot);
	box->used = 0;
	afp_box_count(box);
}
