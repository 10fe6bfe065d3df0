/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References lent to a TX ring, and taken back before the kernel saw them, the long way: of frames that others hold too, of
 * fragments, of other threads' pools. With how many references a frame is in a ring its word says; with how many in this
 * port's, `sent_clones`.
 */
#include "port.h"

#include <stdlib.h>

static bool count_clone(struct afp_port *port, uint32_t frame)
{
	if (!port->sent_clones)
		port->sent_clones = calloc(port->table->nframes, 1);
	if (!port->sent_clones || port->sent_clones[frame] == UINT8_MAX)
		return false;
	port->sent_clones[frame]++;
	return true;
}

enum afp_reason afp_port_lend(struct afp_port *port, const struct afp_desc *desc)
{
	struct afp_table *t = port->table;
	uint32_t frame = frame_of(t, desc->addr);
	uint64_t w, next;
	bool fragment = false;

	if (unlikely(frame == AFP_NO_FRAME))
		return AFP_FOREIGN;
	w = word_load(t, frame);
	for (;;) {
		enum afp_reason reason = AFP_OK;

		if (unlikely(word_state(w) != AFP_APP && word_state(w) != AFP_TX))
			reason = AFP_NOT_HELD;
		else if (unlikely(word_gen(w) != desc->gen))
			reason = AFP_STALE;
		else if (unlikely(word_refs(w) <= word_tx(w) ||
				  atomic_load_explicit(&t->returned[frame], memory_order_relaxed) == word_gen(w)))
			reason = AFP_NOT_HELD;
		if (unlikely(reason != AFP_OK)) {
			if (fragment) /* it went round since: the bit was that of a later life */
				afp_give_fragment(t, frame, desc->addr);
			return reason;
		}
		if (likely(word_refs(w) == 1 && !(w & AFP_FRAGMENTED))) {
			/* Not the pool's thread: by a mistake of the caller's, the owner may just be taking the frame in. */
			next = word_make(word_gen(w), port->id, AFP_TX, word_owner(w), 1, 1);
			if (atomic_compare_exchange_strong_explicit(&t->word[frame], &w, next, memory_order_release,
								    memory_order_relaxed))
				return AFP_OK;
			continue;
		}
		/* A fragment is known by its bit: taken once, however often the exchange below is tried. */
		if (unlikely((w & AFP_FRAGMENTED) && !fragment)) {
			if (!afp_take_fragment(t, frame, desc->addr))
				return AFP_NOT_HELD;
			fragment = true;
		}
		/* Others hold the frame too: who has it is kept per port. */
		next = (w & ~(AFP_STATE_MASK | AFP_HOLDER_MASK)) | (uint64_t)AFP_TX << AFP_STATE_SHIFT |
		       (uint64_t)AFP_SEVERAL << AFP_HOLDER_SHIFT;
		if (!count_clone(port, frame)) {
			if (fragment)
				afp_give_fragment(t, frame, desc->addr);
			return port->sent_clones ? AFP_TOO_MANY_REFS : AFP_NO_MEMORY;
		}
		if (atomic_compare_exchange_strong_explicit(&t->word[frame], &w, next + AFP_ONE_TX, memory_order_release,
							    memory_order_relaxed))
			return AFP_OK;
		port->sent_clones[frame]--;
	}
}

void afp_port_unlend(struct afp_port *port, const struct afp_desc *desc)
{
	struct afp_table *t = port->table;
	uint32_t frame = frame_of(t, desc->addr);
	uint64_t w = word_load(t, frame), next;

	if (likely(word_holder(w) == port->id)) {
		word_store(t, frame, word_make(word_gen(w), 0, AFP_APP, word_owner(w), 0, 1));
		return;
	}
	port->sent_clones[frame]--;
	if (w & AFP_FRAGMENTED)
		afp_give_fragment(t, frame, desc->addr);
	do {
		next = w - AFP_ONE_TX;
		if (!word_tx(next))
			next = (next & ~(AFP_STATE_MASK | AFP_HOLDER_MASK)) | (uint64_t)AFP_APP << AFP_STATE_SHIFT;
	} while (!atomic_compare_exchange_weak_explicit(&t->word[frame], &w, next, memory_order_release, memory_order_relaxed));
}
