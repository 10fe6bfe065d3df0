/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The audit: proof of the conservation law from the frame table, the pools' stores and the ports' counters.
 *
 *   - the states of all frames add up to the Umem's frame count;
 *   - the Umem's free list, and each pool's cache, ring and inbox, hold each frame at most once and in the right state;
 *   - each pool owns  hold_cnt - release_cnt  frames;
 *   - each port's FILL and TX frames are its submitted minus its returned.
 *
 * Concurrency: at a quiet moment, when no other thread moves frames.
 */
#ifndef AFXDP_POOL_AUDIT_H
#define AFXDP_POOL_AUDIT_H

#include "port.h"

enum afp_wrong {
	AFP_WRONG_TWICE = 1,   /* in two places at once (free list, cache, ring, inbox) */
	AFP_WRONG_LOST,        /* its word says free, but no list has it */
	AFP_WRONG_STATE,       /* a list has it, but its word says something else */
	AFP_WRONG_OWNER,       /* owned by a pool that does not exist, or in another pool's list */
	AFP_WRONG_REFS,        /* references and transmissions do not fit the state */
	AFP_WRONG_HOLDER,      /* with a port that does not exist */
	AFP_WRONG_POOL_COUNT,  /* a pool's hold - release is not the number of frames it owns (frame = pool id) */
	AFP_WRONG_FILL_COUNT,  /* a port's FILL frames are not submitted - received (frame = port id) */
	AFP_WRONG_TX_COUNT,    /* a port's TX frames are not submitted - completed (frame = port id) */
};

struct afp_wrong_item {
	uint32_t frame;
	uint32_t what; /* enum afp_wrong */
	uint64_t word;
	int64_t expected, found; /* for the counts */
};
#define AFP_WRONGS 64

struct afp_audit {
	uint32_t nframes;
	uint32_t state[AFP_STATES]; /* frames by state; those in an inbox count as POOL */
	uint32_t inbox;             /* of the POOL frames: posted, not yet taken in by their owner */
	uint32_t nwrong;
	struct afp_wrong_item wrong[AFP_WRONGS];
};

int afp_audit(struct afp_table *t, struct afp_audit *out);
/* The word of every frame, out[nframes]; each is true at the moment it is read. Frames on their way home show 0 references. */
void afp_frame_words(const struct afp_table *t, uint64_t *out);
uint64_t afp_frame_word(const struct afp_table *t, uint32_t frame);
/* One byte a frame: its state, for pictures. Any moment; each byte is true at the moment it is read. */
void afp_frame_states(const struct afp_table *t, uint8_t *out);
/* Where every frame is, counted from the table without a lock; out[AFP_STATES]. */
void afp_count_states(const struct afp_table *t, uint32_t *out);
/* Which of these descriptors are of a frame that is still out in the life they name, with the application or in TX; how many.
 * `out` NULL: stop at the first that is not. */
uint32_t afp_held(const struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint8_t *out);

#endif
