/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The engine's loop with a handler: what a batch costs beside the handler itself.
 *
 * Compiled: the handler is machine code, and the loop never leaves C. Python's: one crossing a batch, which carries out the
 * verdicts of the last batch and brings the next.
 */
#include "engine.h"

#include <string.h>

/* Batches of a compiled handler between two looks at the clock, as the built-in loop has it. */
#define CLOCK_EVERY 16

int afp_engine_run_compiled(struct afp_engine *e, uint64_t deadline_ns, afp_handler handler, void *user)
{
	const struct afp_table *t = e->table;

	e->hold = AFP_LIVE_SLICE; /* as the built-in loop: no interpreter to wait for */
	for (uint32_t turn = 1;; turn++) {
		int why = afp_engine_poll(e, deadline_ns);

		if (why != AFP_RAN_BATCH)
			return why;
		handler(e->descs, e->busy_n, t->area, t->size, e->verdicts, e->busy_port, user);
		e->bad_verdicts = afp_engine_dispatch(e);
		if (unlikely(e->bad_verdicts))
			return AFP_RAN_VERDICT;
		if (unlikely(e->packet_limit && e->received >= e->packet_limit))
			return AFP_RAN_COUNT;
		if (turn % CLOCK_EVERY == 0 && unlikely(afp_now_ns() >= deadline_ns))
			return AFP_RAN_DEADLINE;
	}
}

int64_t afp_engine_turn(struct afp_engine *e, uint64_t deadline_ns, int all)
{
	int why;

	e->hold = AFP_LIVE_LARGE;
	if (e->busy_n) {
		if (all >= 0)
			memset(e->verdicts, all, e->busy_n);
		e->bad_verdicts = afp_engine_dispatch(e);
		if (unlikely(e->bad_verdicts))
			return ~(int64_t)AFP_RAN_VERDICT;
		if (unlikely(e->packet_limit && e->received >= e->packet_limit))
			return ~(int64_t)AFP_RAN_COUNT;
		if (unlikely(afp_now_ns() >= deadline_ns))
			return ~(int64_t)AFP_RAN_DEADLINE;
	}
	why = afp_engine_poll(e, deadline_ns);
	return why == AFP_RAN_BATCH ? (int64_t)e->busy_port << 16 | e->busy_n : ~(int64_t)why;
}
