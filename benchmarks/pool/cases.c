/* SPDX-License-Identifier: BSD-3-Clause */
/* The cases: what each does with a subject, timed, its medians printed as members of a JSON object. See bench.h. */
#include "bench.h"

#include "handoff.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SAMPLES_MAX (1u << 16)
#define LOST_CPU_NS 100e3 /* a batch that took longer was interrupted: it counts in the median, not in the mean */

/* The clock ----------------------------------------------------------------------------------------------------------- */

static double tick_ns, clock_cost; /* nanoseconds a tick; ticks that reading the clock twice costs */

static uint64_t wall_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static inline uint64_t ticks(void)
{
#if defined(__x86_64__)
	uint32_t aux;
	uint64_t now = __builtin_ia32_rdtscp(&aux);

	__builtin_ia32_lfence();
	return now;
#else
	return wall_ns();
#endif
}

static void clock_start(void)
{
	uint64_t wall = wall_ns(), tick = ticks(), least = UINT64_MAX;

	while (wall_ns() - wall < 20000000)
		for (int i = 0; i < 100; i++) {
			uint64_t from = ticks(), cost = ticks() - from;

			least = cost < least ? cost : least;
		}
	tick_ns = (double)(wall_ns() - wall) / (double)(ticks() - tick);
	clock_cost = (double)least;
}

struct samples {
	double *each; /* nanoseconds a frame */
	uint32_t n;
	uint64_t frames; /* in the mean */
	uint64_t lost;   /* batches left out of the mean */
	double ns;
};

static void sample(struct samples *s, uint64_t spent, uint32_t frames)
{
	double ns = ((double)spent - clock_cost) * tick_ns;

	if (!s->each)
		s->each = malloc(SAMPLES_MAX * sizeof(double));
	s->each[s->n++ % SAMPLES_MAX] = ns / frames;
	if (ns < LOST_CPU_NS) {
		s->ns += ns;
		s->frames += frames;
	} else {
		s->lost++;
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void report(const char *name, const struct samples *s)
{
	uint32_t n = s->n < SAMPLES_MAX ? s->n : SAMPLES_MAX;

	if (!n)
		return;
	qsort(s->each, n, sizeof(double), by_value);
	printf(", \"%s\": %.4f, \"%s_p10\": %.4f, \"%s_mean\": %.4f", name, s->each[n / 2], name, s->each[n / 10], name,
	       s->frames ? s->ns / (double)s->frames : 0.0);
	if (s->lost)
		printf(", \"%s_lost\": %lu", name, (unsigned long)s->lost);
}

void pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("cannot run on CPU %d", cpu);
}

/* One thread -------------------------------------------------------------------------------------------------------- */

static struct samples pair_ns, alloc_ns, put_ns;
static uint64_t moved; /* frames of measured rounds */

static void must_alloc(void *items, uint32_t n)
{
	uint32_t got = subject->alloc(items, n);

	if (got != n)
		die("%s: %u frames wanted, %u got", subject->name, n, got);
}

/* Callgrind counts inside of this function only: the warm-up is outside. */
__attribute__((noinline)) static void measured(void (*once)(uint8_t *, bool), uint8_t *items, uint32_t rounds)
{
	while (rounds--)
		once(items, true);
}

static void repeat(void (*once)(uint8_t *, bool), uint8_t *items)
{
	uint64_t end;

	for (int i = 0; i < 100; i++)
		once(items, false);
	if (opt.rounds) {
		measured(once, items, opt.rounds);
		return;
	}
	end = wall_ns() + (uint64_t)(opt.seconds * 1e9);
	while (wall_ns() < end)
		measured(once, items, 16);
}

static void direct_once(uint8_t *items, bool keep)
{
	uint32_t pairs = opt.bulk < 64 ? 1024 / opt.bulk : 16;
	uint64_t from = ticks();

	for (uint32_t i = 0; i < pairs; i++) {
		must_alloc(items, opt.bulk);
		subject->put(items, opt.bulk);
	}
	if (keep)
		sample(&pair_ns, ticks() - from, pairs * opt.bulk);
	moved += keep ? pairs * opt.bulk : 0;
}

/* Frames stay out for `window` others: their table entries go cold, as with a real application. */
static void window_once(uint8_t *items, bool keep)
{
	static uint32_t at;
	uint32_t pairs = opt.bulk < 64 ? 1024 / opt.bulk : 16;
	uint64_t from = ticks();

	for (uint32_t i = 0; i < pairs; i++) {
		uint8_t *oldest = items + at * subject->item_size;

		subject->put(oldest, opt.bulk);
		must_alloc(oldest, opt.bulk);
		at += opt.bulk;
		if (at == opt.window)
			at = 0;
	}
	if (keep)
		sample(&pair_ns, ticks() - from, pairs * opt.bulk);
	moved += keep ? pairs * opt.bulk : 0;
}

static void burst_once(uint8_t *items, bool keep)
{
	uint32_t burst = opt.kind == CASE_RING ? RING_BURST : SOLO_BURST;
	uint64_t from, between, to;

	from = ticks();
	for (uint32_t i = 0; i < burst; i += opt.bulk)
		must_alloc(items + i * subject->item_size, opt.bulk);
	between = ticks();
	if (opt.kind == CASE_SOLO)
		subject->as_other(true);
	for (uint32_t i = 0; i < burst; i += opt.bulk)
		subject->put(items + i * subject->item_size, opt.bulk);
	if (opt.kind == CASE_SOLO)
		subject->as_other(false);
	to = ticks();
	if (!keep)
		return;
	moved += burst;
	sample(&alloc_ns, between - from, burst);
	sample(&put_ns, to - between, burst);
	sample(&pair_ns, to - from, burst);
}

static void slow_once(uint8_t *items, bool keep)
{
	uint64_t from = ticks();

	for (int i = 0; i < SLOW_BURSTS; i++) {
		for (uint32_t k = 0; k < SLOW_BURST; k += opt.bulk)
			must_alloc(items + k * subject->item_size, opt.bulk);
		for (uint32_t k = 0; k < SLOW_BURST; k += opt.bulk)
			subject->put(items + k * subject->item_size, opt.bulk);
		subject->to_origin();
	}
	if (keep)
		sample(&pair_ns, ticks() - from, SLOW_BURSTS * SLOW_BURST);
	moved += keep ? SLOW_BURSTS * SLOW_BURST : 0;
}

static void run_window(void)
{
	size_t size = subject->item_size;
	uint8_t *items = calloc(opt.window, size), *tmp = malloc(size);
	uint64_t random = 88172645463325252ull;

	if (!items || !tmp)
		die("no memory");
	for (uint32_t i = 0; i < opt.window; i += opt.bulk)
		must_alloc(items + i * size, opt.bulk);
	for (uint32_t i = opt.window - 1; i; i--) { /* out of order, as packets come back */
		random ^= random << 13, random ^= random >> 7, random ^= random << 17;
		uint32_t j = (uint32_t)(random % (i + 1));
		memcpy(tmp, items + i * size, size);
		memcpy(items + i * size, items + j * size, size);
		memcpy(items + j * size, tmp, size);
	}
	repeat(window_once, items);
	for (uint32_t i = 0; i < opt.window; i += opt.bulk)
		subject->put(items + i * size, opt.bulk);
	free(items);
	free(tmp);
}

static void run_alone(void)
{
	uint8_t *items = calloc(RING_BURST + BULK_MAX, subject->item_size);

	if (!items)
		die("no memory");
	repeat(opt.kind == CASE_DIRECT ? direct_once : opt.kind == CASE_SLOW ? slow_once : burst_once, items);
	free(items);
}

/* Several threads --------------------------------------------------------------------------------------------------- */

static struct returner {
	struct handoff from_owner;
	struct samples take_ns, put_ns;
	pthread_t thread;
	uint32_t number;
} returners[RETURNERS_MAX];
static _Atomic bool finished;

/* Threads that have CPUs of their own wait on them; others let each other run. */
static void wait_a_little(void)
{
	if (opt.threads > opt.other_cpus)
		sched_yield();
	else
		for (int i = 0; i < 16; i++)
#if defined(__x86_64__)
			__builtin_ia32_pause();
#else
			__asm__ volatile("" ::: "memory");
#endif
}

static void *returner_main(void *argument)
{
	struct returner *me = argument;
	_Alignas(64) uint64_t items[2 * BULK_MAX];

	if (opt.other_cpus)
		pin(opt.other_cpu[me->number % opt.other_cpus]);
	subject->enter(me->number);
	for (;;) {
		bool last = atomic_load(&finished); /* before the look at the slots */
		struct slot *slot = handoff_peek(&me->from_owner);

		if (!slot) {
			if (last)
				break;
			wait_a_little();
			continue;
		}
		/* The handing over is the application's, whatever it does it with, and no part of a return: a thread has read what
		 * it returns. It is measured by itself. */
		uint32_t n = slot->n;
		uint64_t from = ticks();
		memcpy(items, slot->items, n * subject->item_size);
		handoff_release(&me->from_owner);
		uint64_t taken = ticks();
		subject->put(items, n);
		uint64_t to = ticks();
		sample(&me->take_ns, taken - from, n);
		sample(&me->put_ns, to - taken, n);
	}
	subject->leave();
	return NULL;
}

/* What all returners spent on one step. */
static void report_returners(const char *name, size_t step)
{
	struct samples all = {.each = malloc((size_t)opt.threads * SAMPLES_MAX * sizeof(double))};
	uint32_t n = 0;

	for (uint32_t i = 0; i < opt.threads; i++) {
		const struct samples *s = (const void *)((const char *)&returners[i] + step);
		uint32_t have = s->n < SAMPLES_MAX ? s->n : SAMPLES_MAX;

		if (have)
			memcpy(all.each + n, s->each, have * sizeof(double));
		n += have;
		all.ns += s->ns;
		all.frames += s->frames;
		all.lost += s->lost;
	}
	if (n) {
		qsort(all.each, n, sizeof(double), by_value);
		printf(", \"%s\": %.4f, \"%s_p10\": %.4f, \"%s_mean\": %.4f, \"%s_lost\": %lu", name, all.each[n / 2], name,
		       all.each[n / 10], name, all.frames ? all.ns / (double)all.frames : 0.0, name, (unsigned long)all.lost);
	}
	free(all.each);
}

/* How far the owner's CPU is from the first of the others: nanoseconds until a line that went there is back, as the median of
 * some rounds, as a CPU may be taken away meanwhile. */
#define TRIP_ROUNDS 41
#define TRIP_ROUND 500
#define TRIPS (TRIP_ROUNDS * TRIP_ROUND)
static _Alignas(128) _Atomic uint32_t ball;

static void *trip_back(void *argument)
{
	(void)argument;
	pin(opt.other_cpu[0]);
	for (uint32_t i = 0; i < TRIPS; i++) {
		while (atomic_load(&ball) != 2 * i + 1)
			;
		atomic_store(&ball, 2 * i + 2);
	}
	return NULL;
}

static void report_trip(const char *name)
{
	double each[TRIP_ROUNDS];
	pthread_t other;

	if (!opt.other_cpus || opt.cpu < 0 || opt.other_cpu[0] == opt.cpu)
		return;
	atomic_store(&ball, 0);
	if (pthread_create(&other, NULL, trip_back, NULL))
		die("no thread");
	for (uint32_t round = 0, i = 0; round < TRIP_ROUNDS; round++) {
		uint64_t from = wall_ns();

		for (; i < (round + 1) * TRIP_ROUND; i++) {
			atomic_store(&ball, 2 * i + 1);
			while (atomic_load(&ball) != 2 * i + 2)
				;
		}
		each[round] = (double)(wall_ns() - from) / TRIP_ROUND;
	}
	pthread_join(other, NULL);
	qsort(each, TRIP_ROUNDS, sizeof(double), by_value);
	printf(", \"%s\": %.1f", name, each[TRIP_ROUNDS / 2]);
}

static void run_remote(void)
{
	uint64_t begin, waits = 0, frames = 0;

	report_trip("trip_before");
	for (uint32_t i = 0; i < opt.threads; i++) {
		returners[i].number = i;
		if (pthread_create(&returners[i].thread, NULL, returner_main, &returners[i]))
			die("no thread");
	}
	begin = wall_ns();
	for (uint32_t turn = 0; (turn & 63) || wall_ns() - begin < (uint64_t)(opt.seconds * 1e9); turn++) {
		struct returner *to = &returners[turn % opt.threads];
		struct slot *slot = handoff_reserve(&to->from_owner);

		if (!slot) {
			wait_a_little();
			continue;
		}
		uint64_t from = ticks();
		slot->n = subject->alloc(slot->items, opt.bulk);
		uint64_t spent = ticks() - from;
		if (!slot->n) {
			waits++;
			wait_a_little();
			continue;
		}
		sample(&alloc_ns, spent, slot->n);
		frames += slot->n;
		handoff_submit(&to->from_owner);
	}
	atomic_store(&finished, true);
	for (uint32_t i = 0; i < opt.threads; i++)
		pthread_join(returners[i].thread, NULL);
	moved = frames;
	printf(", \"wall\": %.4f, \"waits\": %lu", (double)(wall_ns() - begin) / (double)frames, (unsigned long)waits);

	report_returners("take", offsetof(struct returner, take_ns));
	report_returners("put", offsetof(struct returner, put_ns));
	report_trip("trip_after");
}

void run_case(void)
{
	clock_start();
	if (opt.kind == CASE_REMOTE)
		run_remote();
	else if (opt.window)
		run_window();
	else
		run_alone();
	report("pair", &pair_ns);
	report("alloc", &alloc_ns);
	if (opt.kind != CASE_REMOTE)
		report("put", &put_ns);
	printf(", \"moved\": %lu", (unsigned long)moved);
}
