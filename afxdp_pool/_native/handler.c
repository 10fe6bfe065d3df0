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
/* The clock costs as much as a quick handler does for a packet or two: one call of so many is timed. */
#define TIME_EVERY 16
#define SLOW_NS 1000000
/* Packets whose first bytes are fetched ahead of their turn. */
#define AHEAD 4
#define NO_VERDICT 0xff

void afp_call_per_packet(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port,
			 void *user)
{
	const struct afp_per_packet *own = user;

	for (uint32_t i = 0; i < n; i++) {
		const struct afp_desc *d = &descs[i];
		int verdict;

		if (i + AHEAD < n)
			__builtin_prefetch((const void *)((uintptr_t)umem + d[AHEAD].addr)); /* an address may be any */
		if (unlikely(d->addr > size || d->len > size - d->addr)) {
			verdicts[i] = AFP_DROP;
			continue;
		}
		verdict = own->handle(umem + d->addr, d->len, port, own->user);
		verdicts[i] = likely(verdict >= 0 && verdict < NO_VERDICT) ? (uint8_t)verdict : NO_VERDICT;
	}
}

void afp_show_parts(const struct afp_table *t, const struct afp_desc *frames, const uint32_t *start, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct afp_parts parts = {.frames = frames + start[i], .count = start[i + 1] - start[i]};
		const uint64_t addr = parts.frames->addr;

		if (unlikely(frame_of(t, addr) == AFP_NO_FRAME || frame_offset(t, addr) < AFP_PARTS_ROOM))
			continue;
		for (uint32_t j = 0; j < parts.count; j++)
			parts.length += parts.frames[j].len;
		memcpy(t->area + addr - AFP_PARTS_ROOM, &parts, sizeof(parts));
	}
}

/* Whether this call is one to be timed. */
static inline bool begin_call(struct afp_engine *e)
{
	bump(&e->stat[E_CALLS], 1);
	return atomic_load_explicit(&e->stat[E_CALLS], memory_order_relaxed) % TIME_EVERY == 0;
}

static void end_call(struct afp_engine *e, uint64_t took_ns)
{
	bump(&e->stat[E_TIMED], 1);
	bump(&e->stat[E_HANDLER_NS], took_ns);
	if (took_ns > atomic_load_explicit(&e->stat[E_LONGEST_NS], memory_order_relaxed))
		atomic_store_explicit(&e->stat[E_LONGEST_NS], took_ns, memory_order_relaxed);
	if (took_ns > SLOW_NS)
		bump(&e->stat[E_SLOW], 1);
}

int afp_engine_run_compiled(struct afp_engine *e, uint64_t deadline_ns, afp_handler handler, void *user)
{
	const struct afp_table *t = e->table;

	e->hold = AFP_LIVE_SLICE; /* as the built-in loop: no interpreter to wait for */
	for (uint32_t turn = 1;; turn++) {
		int why = afp_engine_poll(e, deadline_ns);
		uint64_t begin;

		if (why != AFP_RAN_BATCH)
			return why;
		if (unlikely(e->multi))
			afp_show_parts(t, e->origin, e->start, e->busy_n);
		begin = begin_call(e) ? afp_now_ns() : 0;
		handler(e->descs, e->busy_n, t->area, t->size, e->verdicts, e->busy_port, user);
		if (unlikely(begin))
			end_call(e, afp_now_ns() - begin);
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
		if (unlikely(e->handed_ns))
			end_call(e, afp_now_ns() - e->handed_ns);
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
	if (why != AFP_RAN_BATCH)
		return ~(int64_t)why;
	e->handed_ns = begin_call(e) ? afp_now_ns() : 0;
	return (int64_t)e->busy_port << 16 | e->busy_n;
}
