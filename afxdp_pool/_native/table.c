/* SPDX-License-Identifier: BSD-3-Clause */
/* The frame table and the Umem's free list: frames that no pool owns. */
#include "pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int afp_table_init_unaligned(struct afp_table *t, void *area, uint32_t nframes, uint32_t frame_size, uint32_t headroom)
{
	const uint32_t each = (uint32_t)(AFP_BLOCK / frame_size), rest = nframes % each;
	int err = afp_table_init(t, area, nframes, frame_size, headroom);

	if (err)
		return err;
	t->block_frames = each;
	t->frame_shift = 0;
	t->size = (uint64_t)(nframes / each) << AFP_BLOCK_SHIFT | (uint64_t)rest * frame_size;
	t->direct = 0;
	return 0;
}

int afp_table_init(struct afp_table *t, void *area, uint32_t nframes, uint32_t frame_size, uint32_t headroom)
{
	memset(t, 0, sizeof(*t));
	t->area = area;
	t->nframes = nframes;
	t->frame_size = frame_size;
	t->frame_shift = (uint32_t)__builtin_ctz(frame_size);
	t->size = t->direct = (uint64_t)nframes << t->frame_shift;
	t->headroom = headroom;
	t->word = calloc(nframes, sizeof(*t->word));
	t->returned = calloc(nframes, sizeof(*t->returned));
	t->completed = calloc(nframes, sizeof(*t->completed));
	t->free_list = malloc(nframes * sizeof(*t->free_list));
	if (!t->word || !t->returned || !t->completed || !t->free_list) {
		free((void *)t->word);
		free((void *)t->returned);
		free((void *)t->completed);
		free(t->free_list);
		return -ENOMEM;
	}
	pthread_mutex_init(&t->lock, NULL);
	/* The lowest frame on top, so that a small working set stays on few pages. */
	for (uint32_t i = 0; i < nframes; i++)
		t->free_list[i] = nframes - 1 - i;
	t->nfree = nframes;
	return 0;
}

static void free_posts(struct afp_pool *p)
{
	struct afp_post *post = atomic_exchange(&p->inbox, NULL);

	while (post) {
		struct afp_post *next = post->next;
		free(post);
		post = next;
	}
}

void afp_table_fini(struct afp_table *t)
{
	for (int i = 1; i < AFP_MAX_POOLS; i++) {
		if (!t->pools[i])
			continue;
		free_posts(t->pools[i]);
		free(t->pools[i]->ring);
		free(t->pools[i]);
	}
	pthread_mutex_destroy(&t->lock);
	free((void *)t->word);
	free((void *)t->returned);
	free((void *)t->completed);
	free((void *)t->fragments);
	free(t->known);
	free(t->free_list);
	memset(t, 0, sizeof(*t));
}

uint32_t afp_table_take(struct afp_table *t, uint32_t owner, uint32_t *frames, uint32_t n)
{
	pthread_mutex_lock(&t->lock);
	n = n < t->nfree ? n : t->nfree;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t f = t->free_list[--t->nfree];
		frames[i] = f;
		word_store(t, f, word_make(word_gen(word_load(t, f)), 0, AFP_POOL, owner, 0, 0));
	}
	pthread_mutex_unlock(&t->lock);
	return n;
}

void afp_table_give_locked(struct afp_table *t, const uint32_t *frames, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		word_store(t, frames[i], word_make(word_gen(word_load(t, frames[i])), 0, AFP_UMEM, 0, 0, 0));
		t->free_list[t->nfree++] = frames[i];
	}
}
