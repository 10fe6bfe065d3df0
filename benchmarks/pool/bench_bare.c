/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * `bare`: no pool, but what any pool must do to memory. A stack of frame numbers, a word a frame, and 16 bytes that stand for
 * the frame, as our descriptors; nothing is checked, counted or kept from going wrong.
 *
 *   alloc   take a number from the stack, write the frame's word, write the 16 bytes
 *   put     read the 16 bytes, read and write the word, put the number on the stack
 *   remote  the returner reads the 16 bytes and the word, and writes the number into a queue of its own, which the owner reads:
 *           the same lines go from core to core as with the pool
 *
 * What a pool takes beyond this is its own; this is the machine's.
 */
#include "bench.h"

#include <stdatomic.h>
#include <stdlib.h>

#define SHIFT 12

struct item {
	uint64_t addr, rest;
};

static struct lane {
	_Alignas(64) _Atomic uint64_t head;
	_Alignas(64) _Atomic uint64_t tail;
	uint64_t *entry;
} lanes[RETURNERS_MAX];

static _Atomic uint64_t *word; /* relaxed: two threads look at it, as at the pool's */
static uint32_t *stack, top, frames;
static uint64_t mask;
static _Thread_local struct lane *lane;
static _Thread_local uint64_t seen; /* so that the words are really read */

static bool bare_open(const struct options *o)
{
	uint64_t room = 1;

	frames = o->frames;
	while (room < frames)
		room <<= 1;
	mask = room - 1;
	word = calloc(frames, sizeof(*word));
	stack = malloc(frames * sizeof(*stack));
	for (uint32_t i = 0; o->kind == CASE_REMOTE && i < o->threads; i++)
		if (!(lanes[i].entry = malloc(room * sizeof(uint64_t))))
			return false;
	for (top = 0; stack && top < frames; top++)
		stack[top] = frames - 1 - top;
	return word && stack;
}

static void collect(void)
{
	for (uint32_t i = 0; i < RETURNERS_MAX && lanes[i].entry; i++) {
		uint64_t tail = atomic_load_explicit(&lanes[i].tail, memory_order_relaxed);
		uint64_t head = atomic_load_explicit(&lanes[i].head, memory_order_acquire);

		for (; tail != head; tail++) {
			uint64_t frame = lanes[i].entry[tail & mask];

			atomic_store_explicit(&word[frame], frame, memory_order_relaxed);
			stack[top++] = (uint32_t)frame;
		}
		atomic_store_explicit(&lanes[i].tail, tail, memory_order_release);
	}
}

static uint32_t bare_alloc(void *items, uint32_t n)
{
	struct item *item = items;

	if (top < n)
		collect();
	n = n < top ? n : top;
	top -= n;
	_Atomic uint64_t *const words = word;
	const uint32_t *const from = stack + top + n - 1;

#pragma GCC unroll 8
	for (uint32_t i = 0; i < n; i++) {
		uint64_t frame = from[-(int64_t)i];

		atomic_store_explicit(&words[frame], frame + 1, memory_order_relaxed);
		item[i].addr = frame << SHIFT;
		item[i].rest = 0;
	}
	return n;
}

static void put_to_lane(const struct item *item, uint32_t n)
{
	uint64_t head = atomic_load_explicit(&lane->head, memory_order_relaxed);

	_Atomic uint64_t *const words = word;
	uint64_t *const entry = lane->entry;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t frame = item[i].addr >> SHIFT;

		sum += atomic_load_explicit(&words[frame], memory_order_relaxed);
		entry[(head + i) & mask] = frame;
	}
	seen += sum;
	atomic_store_explicit(&lane->head, head + n, memory_order_release);
}

static void bare_put(const void *items, uint32_t n)
{
	const struct item *item = items;

	if (lane) {
		put_to_lane(items, n);
		return;
	}
	_Atomic uint64_t *const words = word;
	uint32_t *const to = stack + top;

#pragma GCC unroll 8
	for (uint32_t i = 0; i < n; i++) {
		uint64_t frame = item[i].addr >> SHIFT;

		atomic_store_explicit(&words[frame], atomic_load_explicit(&words[frame], memory_order_relaxed) - 1,
				      memory_order_relaxed);
		to[i] = (uint32_t)frame;
	}
	top += n;
}

static void bare_enter(uint32_t thread)
{
	lane = &lanes[thread];
}

static void bare_leave(void)
{
	if (seen == 1)
		die("no frame was ever looked at");
}

static uint64_t bare_home(void)
{
	uint64_t idle = 0;
	uint8_t *found = calloc(frames, 1);

	collect();
	for (uint32_t i = 0; i < top; i++)
		idle += !found[stack[i]]++;
	free(found);
	return idle;
}

static void bare_counters(void)
{
}

const struct subject bare = {
	.name = "bare",
	.cases = 1u << CASE_DIRECT | 1u << CASE_REMOTE,
	.item_size = sizeof(struct item),
	.open = bare_open,
	.alloc = bare_alloc,
	.put = bare_put,
	.enter = bare_enter,
	.leave = bare_leave,
	.home = bare_home,
	.counters = bare_counters,
};
