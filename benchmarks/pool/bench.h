/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One way to measure every frame pool: a subject says how it hands out and takes back a batch, cases.c drives it.
 *
 * A batch is measured through one indirect call, the same for all subjects. Times are in nanoseconds a frame; medians are
 * over rounds of at least 64 frames, so that a round that lost its CPU does not count.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RETURNERS_MAX 16
#define BULK_MAX 256

enum bench_case {
	CASE_DIRECT, /* alloc and put, in the owner; with a window, put those taken longest ago */
	CASE_RING,   /* more taken and put than the cache holds */
	CASE_SLOW,   /* every 64 frames back to where the pool got them from */
	CASE_SOLO,   /* the steps of a remote return in one thread: nobody contends */
	CASE_REMOTE, /* the owner takes, `threads` others put */
	CASES,
};

struct options {
	const char *subject;
	enum bench_case kind;
	uint32_t bulk, frames, window, threads;
	uint32_t rounds; /* count instead of time: this many rounds after the warm-up, for callgrind */
	int cpu;
	int other_cpu[RETURNERS_MAX]; /* the returners' CPUs in turn */
	uint32_t other_cpus;
	double seconds;
};

struct subject {
	const char *name;
	unsigned cases;   /* bit mask of 1 << enum bench_case */
	size_t item_size; /* what stands for a frame in a batch */
	bool (*open)(const struct options *o);
	uint32_t (*alloc)(void *items, uint32_t n);
	void (*put)(const void *items, uint32_t n); /* every frame must be taken, or the program ends */
	void (*to_origin)(void);                    /* CASE_SLOW: idle frames back to where the pool got them from */
	void (*as_other)(bool other);               /* CASE_SOLO: puts are now those of another thread */
	void (*enter)(uint32_t thread);             /* CASE_REMOTE: in each returner, before its first put */
	void (*leave)(void);                        /* and after its last */
	uint64_t (*home)(void); /* in the owner, at the end: idle frames counted one by one; must be all of them */
	void (*counters)(void); /* may print `, "key": number` to stdout */
};

#define RING_BURST 1152   /* the pool's cache and its ring of 1024 */
#define SLOW_BURST 64     /* what the pool takes from the Umem at once */
#define SLOW_BURSTS 16
#define SOLO_BURST 1024

extern struct options opt;
extern const struct subject bare;               /* of bench_pool */
extern const struct subject *subject;          /* the one that is measured */
void run_case(void);
void pin(int cpu);                             /* -1: anywhere */

/* Given by each program: */
extern const struct subject *const subjects[]; /* ends with NULL */
int bench_start(const struct options *o);      /* the program's own start, before the subject is opened */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
