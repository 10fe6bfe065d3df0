/* SPDX-License-Identifier: BSD-3-Clause */
/* The audit: see audit.h for what it proves. */
#include "audit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum place { NOWHERE, FREE_LIST, POOL_STORE, INBOX };

struct auditor {
	struct afp_table *t;
	struct afp_audit *out;
	uint8_t *place;
};

static void wrong(struct auditor *a, uint32_t frame, enum afp_wrong what, uint64_t word, int64_t expected, int64_t found)
{
	if (a->out->nwrong < AFP_WRONGS)
		a->out->wrong[a->out->nwrong] = (struct afp_wrong_item){frame, what, word, expected, found};
	a->out->nwrong++;
}

static void see(struct auditor *a, uint32_t frame, enum place where, uint32_t pool)
{
	uint64_t w;

	if (frame >= a->t->nframes) {
		wrong(a, frame, AFP_WRONG_OWNER, 0, 0, 0);
		return;
	}
	w = word_load(a->t, frame);
	if (a->place[frame] != NOWHERE)
		wrong(a, frame, AFP_WRONG_TWICE, w, 0, 0);
	a->place[frame] = (uint8_t)where;
	if (word_owner(w) != pool)
		wrong(a, frame, AFP_WRONG_OWNER, w, pool, word_owner(w));
	else if (where == FREE_LIST && word_state(w) != AFP_UMEM)
		wrong(a, frame, AFP_WRONG_STATE, w, AFP_UMEM, word_state(w));
	else if (where == POOL_STORE && word_state(w) != AFP_POOL)
		wrong(a, frame, AFP_WRONG_STATE, w, AFP_POOL, word_state(w));
}

/* Is the frame, in state `from`, posted to its owner and not taken in? */
static inline bool posted(const struct afp_table *t, uint32_t frame, enum afp_state from)
{
	uint64_t w = word_load(t, frame);
	_Atomic uint16_t *claim = from == AFP_APP ? t->returned : t->completed;

	return word_state(w) == from && (from == AFP_APP || from == AFP_TX) &&
	       atomic_load_explicit(&claim[frame], memory_order_relaxed) == word_gen(w);
}

static void see_pool(struct auditor *a, struct afp_pool *p)
{
	for (uint32_t i = 0; i < p->ncache; i++)
		see(a, p->cache[i], POOL_STORE, p->id);
	for (uint32_t i = 0; i < p->nspill; i++)
		see(a, p->spill[i], POOL_STORE, p->id);
	for (uint32_t i = p->ring_tail; i != p->ring_head; i++)
		see(a, p->ring[i & p->ring_mask], POOL_STORE, p->id);
	for (struct afp_post *post = atomic_load(&p->inbox); post; post = post->next) {
		for (uint32_t i = 0; i < post->n; i++) {
			uint32_t frame = (uint32_t)post->entry[i];
			uint16_t gen = word_gen(post->entry[i]);
			/* A lost race leaves a post behind, which the owner will refuse: only live ones count. */
			if (frame < a->t->nframes && a->place[frame] != INBOX && word_gen(word_load(a->t, frame)) == gen &&
			    posted(a->t, frame, word_state(post->entry[i])))
				see(a, frame, INBOX, p->id);
		}
	}
}

/* A fragmented frame's references are its fragments the application holds, those in TX, and those taken in advance. */
static bool fragments_agree(const struct afp_table *t, uint32_t frame, uint64_t w)
{
	const struct afp_pool *p = t->pools[word_owner(w)];
	uint32_t bits = t->fragments ? (uint32_t)__builtin_popcountll(atomic_load(&t->fragments[frame])) : 0;

	if (p && p->fragment_frame == frame)
		bits += p->fragment_bias;
	/* Posted by its last holder: the bit is taken, the reference still there. */
	return bits + posted(t, frame, AFP_APP) + word_tx(w) == word_refs(w);
}

/* Per pool owned frames, per port filled and sent ones, gathered in one pass over the table. */
static void judge_frames(struct auditor *a, uint32_t *owned, uint32_t *filled, uint32_t *sent, uint64_t *several)
{
	struct afp_table *t = a->t;

	for (uint32_t f = 0; f < t->nframes; f++) {
		uint64_t w = word_load(t, f);
		enum afp_state state = word_state(w);
		uint32_t owner = word_owner(w), holder = word_holder(w), refs = word_refs(w), tx = word_tx(w);

		if (state >= AFP_STATES || owner >= AFP_MAX_POOLS) {
			wrong(a, f, AFP_WRONG_STATE, w, 0, state);
			continue;
		}
		if (a->place[f] == INBOX) {
			a->out->inbox++;
			a->out->state[AFP_POOL]++;
		} else {
			a->out->state[state]++;
		}
		owned[owner]++;
		if (state != AFP_UMEM && (!t->pools[owner] || atomic_load(&t->pools[owner]->life) == AFP_DEAD))
			wrong(a, f, AFP_WRONG_OWNER, w, 0, owner);
		if ((state == AFP_UMEM || state == AFP_POOL) && a->place[f] == NOWHERE)
			wrong(a, f, AFP_WRONG_LOST, w, 0, 0);
		if (tx > refs || (refs > 0) != (state == AFP_APP || state == AFP_TX) || (tx > 0) != (state == AFP_TX))
			wrong(a, f, AFP_WRONG_REFS, w, tx, refs);
		if ((w & AFP_FRAGMENTED) && !fragments_agree(t, f, w))
			wrong(a, f, AFP_WRONG_REFS, w, tx, refs);
		if (state == AFP_FILL)
			filled[holder]++;
		/* A completion that was posted to another thread's pool is done for the port, not yet for the word. */
		if (state == AFP_TX && a->place[f] != INBOX) {
			if (holder == AFP_SEVERAL)
				*several += tx;
			else
				sent[holder]++;
		}
		/* A posted frame's port may be closed by now: its owner has only to take it in. */
		if (a->place[f] != INBOX && (state == AFP_FILL || (state == AFP_TX && holder != AFP_SEVERAL)) &&
		    (holder >= AFP_MAX_PORTS || !t->ports[holder]))
			wrong(a, f, AFP_WRONG_HOLDER, w, 0, holder);
	}
}

static void judge_counts(struct auditor *a, const uint32_t *owned, const uint32_t *filled, const uint32_t *sent, uint64_t several)
{
	struct afp_table *t = a->t;
	uint64_t clones = 0;

	for (uint32_t id = 1; id < AFP_MAX_POOLS; id++) {
		struct afp_pool *p = t->pools[id];
		uint32_t held = p ? atomic_load(&p->hold_cnt) - atomic_load(&p->release_cnt) : 0;

		if (p && held != owned[id])
			wrong(a, id, AFP_WRONG_POOL_COUNT, 0, held, owned[id]);
	}
	for (uint32_t id = 1; id < AFP_MAX_PORTS; id++) {
		struct afp_port *port = t->ports[id];
		uint32_t mine = 0;

		if (!port)
			continue;
		for (uint32_t f = 0; port->sent_clones && f < t->nframes; f++)
			mine += port->sent_clones[f];
		clones += mine;
		if (filled[id] != port_in_fill(port))
			wrong(a, id, AFP_WRONG_FILL_COUNT, 0, port_in_fill(port), filled[id]);
		if (sent[id] + mine != port_in_tx(port))
			wrong(a, id, AFP_WRONG_TX_COUNT, 0, port_in_tx(port), sent[id] + mine);
	}
	if (clones != several)
		wrong(a, 0, AFP_WRONG_TX_COUNT, 0, (int64_t)several, (int64_t)clones);
}

int afp_audit(struct afp_table *t, struct afp_audit *out)
{
	struct auditor a = {t, out, calloc(t->nframes, 1)};
	uint32_t *counts = calloc(AFP_MAX_POOLS + 2 * 256, sizeof(*counts));
	uint64_t several = 0;

	memset(out, 0, sizeof(*out));
	out->nframes = t->nframes;
	if (!a.place || !counts) {
		free(a.place);
		free(counts);
		return -ENOMEM;
	}
	afp_table_reap(t);
	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i < t->nfree; i++)
		see(&a, t->free_list[i], FREE_LIST, 0);
	for (uint32_t id = 1; id < AFP_MAX_POOLS; id++)
		if (t->pools[id] && atomic_load(&t->pools[id]->life) != AFP_DEAD)
			see_pool(&a, t->pools[id]);
	judge_frames(&a, counts, counts + AFP_MAX_POOLS, counts + AFP_MAX_POOLS + 256, &several);
	judge_counts(&a, counts, counts + AFP_MAX_POOLS, counts + AFP_MAX_POOLS + 256, several);
	pthread_mutex_unlock(&t->lock);
	free(a.place);
	free(counts);
	return 0;
}

/* A frame posted to its owner is as good as home: the owner alone may still have to look into its inbox. */
static inline enum afp_state seen_state(const struct afp_table *t, uint32_t frame)
{
	enum afp_state state = word_state(word_load(t, frame));

	return posted(t, frame, AFP_APP) || posted(t, frame, AFP_TX) ? AFP_POOL : state % AFP_STATES;
}

void afp_frame_states(const struct afp_table *t, uint8_t *out)
{
	for (uint32_t f = 0; f < t->nframes; f++)
		out[f] = (uint8_t)seen_state(t, f);
}

void afp_count_states(const struct afp_table *t, uint32_t *out)
{
	memset(out, 0, AFP_STATES * sizeof(*out));
	for (uint32_t f = 0; f < t->nframes; f++)
		out[seen_state(t, f)]++;
}

void afp_frame_words(const struct afp_table *t, uint64_t *out)
{
	for (uint32_t f = 0; f < t->nframes; f++) {
		uint64_t w = word_load(t, f);
		out[f] = seen_state(t, f) == word_state(w) ? w : word_make(word_gen(w), 0, AFP_POOL, word_owner(w), 0, 0);
	}
}

uint64_t afp_frame_word(const struct afp_table *t, uint32_t frame)
{
	return word_load(t, frame);
}

uint32_t afp_held(const struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint8_t *out)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t frame = frame_of(t, descs[i].addr);
		bool held = false;

		if (likely(frame != AFP_NO_FRAME)) {
			/* As in put_one(): the claim before the word. */
			bool posted = atomic_load_explicit(&t->returned[frame], memory_order_acquire) == descs[i].gen;
			uint64_t w = word_load(t, frame);

			held = !posted && word_gen(w) == descs[i].gen && (word_state(w) == AFP_APP || word_state(w) == AFP_TX);
		}
		if (out)
			out[i] = held;
		else if (unlikely(!held))
			return i;
		count += held;
	}
	return count;
}
