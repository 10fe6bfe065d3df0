/* SPDX-License-Identifier: BSD-3-Clause */
/* One owner and N threads that give back: nothing lost, nothing twice, whatever the order. Built with ThreadSanitizer too. */
#include "fake.h"

#include <pthread.h>
#include <sched.h>

#ifndef ROUNDS
#define ROUNDS 2000
#endif
#define SLOTS 1024u
#define MAX_RETURNERS 4

/* A queue from one thread to another: what a program would hand packets over by. */
struct lane {
	_Alignas(64) _Atomic uint32_t head, tail;
	_Atomic int done;
	struct afp_desc slot[SLOTS];
};

struct job {
	struct afp_table *t;
	struct lane *lane;
	struct afp_pool *pool;
	uint64_t honoured, refused;
	uint32_t who;
};

static void lane_send(struct lane *l, const struct afp_desc *d, uint32_t n)
{
	uint32_t head = atomic_load_explicit(&l->head, memory_order_relaxed);

	while (SLOTS - (head - atomic_load_explicit(&l->tail, memory_order_acquire)) < n)
		sched_yield();
	for (uint32_t i = 0; i < n; i++)
		l->slot[(head + i) % SLOTS] = d[i];
	atomic_store_explicit(&l->head, head + n, memory_order_release);
}

static uint32_t lane_take(struct lane *l, struct afp_desc *d, uint32_t n)
{
	uint32_t tail = atomic_load_explicit(&l->tail, memory_order_relaxed);
	uint32_t there = atomic_load_explicit(&l->head, memory_order_acquire) - tail;

	n = n < there ? n : there;
	for (uint32_t i = 0; i < n; i++)
		d[i] = l->slot[(tail + i) % SLOTS];
	atomic_store_explicit(&l->tail, tail + n, memory_order_release);
	return n;
}

/* Writes into each frame while it holds it: a race on the memory itself would be seen. */
static void *give_back(void *arg)
{
	struct job *j = arg;
	struct afp_desc d[32];

	for (;;) {
		int done = atomic_load(&j->lane->done);
		uint32_t n = lane_take(j->lane, d, 1 + j->honoured % 32);

		if (!n && done)
			return NULL;
		if (!n) {
			sched_yield();
			continue;
		}
		for (uint32_t i = 0; i < n; i++)
			memset(j->t->area + d[i].addr, (int)j->who, 64);
		CHECK_EQ(put(j->t, d, n), n);
		j->honoured += n;
	}
}

static void owner_and_returners(struct afp_table *t, uint32_t returners)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	struct lane *lanes = aligned_alloc(64, returners * sizeof(*lanes));
	struct job job[MAX_RETURNERS];
	pthread_t thread[MAX_RETURNERS];
	uint64_t sent = 0, own = 0, home = 0;
	struct afp_pool_stats s;

	memset(lanes, 0, returners * sizeof(*lanes));
	for (uint32_t i = 0; i < returners; i++) {
		job[i] = (struct job){.t = t, .lane = &lanes[i], .who = i};
		CHECK_EQ(pthread_create(&thread[i], NULL, give_back, &job[i]), 0);
	}
	for (uint32_t round = 0; round < ROUNDS * 4; round++) {
		struct afp_desc d[48];
		int n = afp_pool_alloc(p, d, 1 + round % 48);

		CHECK(n >= 0);
		for (int i = 0; i < n; i++)
			memset(t->area + d[i].addr, 0xaa, 64);
		if (n > 4) {
			own += put(t, d, 4);
			lane_send(&lanes[round % returners], d + 4, (uint32_t)n - 4);
			sent += (uint32_t)n - 4;
		} else {
			own += put(t, d, (uint32_t)n);
		}
		if (!n)
			sched_yield();
	}
	for (uint32_t i = 0; i < returners; i++) {
		atomic_store(&lanes[i].done, 1);
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
		home += job[i].honoured;
	}
	CHECK_EQ(home, sent);
	afp_pool_collect(p);
	s = stats_of(p);
	CHECK_EQ(s.remote_frames, sent);
	CHECK_EQ(s.late_refused, 0);
	CHECK_EQ(s.alloc_fast + s.alloc_refill + s.alloc_slow, own + sent);
	CHECK_EQ(s.recycle_cached + s.recycle_ring + s.recycle_ring_full, own + sent);
	check_whole(t);
	CHECK_EQ(afp_pool_destroy(p), 0);
	CHECK_EQ(t->nfree, FRAMES);
	free(lanes);
}

static void one_returner(struct afp_table *t)
{
	owner_and_returners(t, 1);
}
static void two_returners(struct afp_table *t)
{
	owner_and_returners(t, 2);
}
static void four_returners(struct afp_table *t)
{
	owner_and_returners(t, 4);
}

/* Everyone puts everything: of all the puts of one life exactly one brings the frame home. */
struct race {
	struct afp_table *t;
	pthread_barrier_t *barrier;
	struct afp_desc d[64];
	uint32_t n;
	_Atomic int end;
};

static void *put_everything(void *arg)
{
	struct race *r = arg;

	for (;;) {
		pthread_barrier_wait(r->barrier);
		if (atomic_load(&r->end))
			return NULL;
		put(r->t, r->d, r->n);
		pthread_barrier_wait(r->barrier);
	}
}

static void racing_double_puts(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	pthread_barrier_t barrier;
	struct race r = {.t = t, .barrier = &barrier, .n = 64};
	pthread_t thread[3];

	CHECK_EQ(pthread_barrier_init(&barrier, NULL, 4), 0);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&thread[i], NULL, put_everything, &r), 0);
	for (int round = 0; round < ROUNDS; round++) {
		CHECK_EQ(afp_pool_alloc(p, r.d, 64), 64);
		pthread_barrier_wait(&barrier);
		if (round & 1)
			put(t, r.d, 64); /* the owner races too, every other time */
		pthread_barrier_wait(&barrier);
		afp_pool_collect(p);
		CHECK_EQ(put(t, r.d, 64), 0);
		if (round % 64 == 0)
			check_whole(t);
		CHECK_EQ(audit(t).state[AFP_POOL] + audit(t).state[AFP_UMEM], FRAMES);
	}
	atomic_store(&r.end, 1);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	pthread_barrier_destroy(&barrier);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

/* The last two references, dropped at once: one of the two droppers sends the frame home. */
static void last_two_references(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	pthread_barrier_t barrier;
	struct race r = {.t = t, .barrier = &barrier, .n = 64};
	struct afp_refusals refused = {0};
	pthread_t thread[3];

	CHECK_EQ(pthread_barrier_init(&barrier, NULL, 4), 0);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&thread[i], NULL, put_everything, &r), 0);
	for (int round = 0; round < ROUNDS; round++) {
		CHECK_EQ(afp_pool_alloc(p, r.d, 64), 64);
		for (int i = 0; i < 3; i++)
			CHECK_EQ(afp_ref(t, r.d, 64, &refused), 64);
		pthread_barrier_wait(&barrier);
		CHECK_EQ(put(t, r.d, 64), 64); /* four holders, four puts: none is refused */
		pthread_barrier_wait(&barrier);
		afp_pool_collect(p);
		CHECK_EQ(audit(t).state[AFP_APP], 0);
	}
	CHECK_EQ(stats_of(p).late_refused, 0);
	atomic_store(&r.end, 1);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	pthread_barrier_destroy(&barrier);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

/* Two threads send and complete clones of the same frames out of a port each, while the owner puts its own references. */
static void *send_and_complete(void *arg)
{
	struct race *r = arg;
	struct afp_port *port = fake_port(r->t, NULL, 64, 1);

	for (;;) {
		struct afp_refusals refused = {0};

		pthread_barrier_wait(r->barrier);
		if (atomic_load(&r->end))
			break;
		CHECK_EQ(afp_port_transmit(port, r->d, 64, &refused), 64);
		CHECK_EQ(fake_send(port), 64);
		CHECK_EQ(afp_port_complete(port, 64), 64);
		pthread_barrier_wait(r->barrier);
	}
	afp_port_free(port);
	return NULL;
}

static void clones_out_of_ports_of_other_threads(struct afp_table *t)
{
	struct afp_pool *p = afp_pool_create(t, 64, 0);
	pthread_barrier_t barrier;
	struct race r = {.t = t, .barrier = &barrier, .n = 64};
	struct afp_refusals refused = {0};
	pthread_t thread[2];

	CHECK_EQ(pthread_barrier_init(&barrier, NULL, 3), 0);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&thread[i], NULL, send_and_complete, &r), 0);
	for (int round = 0; round < ROUNDS; round++) {
		CHECK_EQ(afp_pool_alloc(p, r.d, 64), 64);
		for (int i = 0; i < 64; i++)
			r.d[i].len = 60;
		for (int i = 0; i < 2; i++)
			CHECK_EQ(afp_ref(t, r.d, 64, &refused), 64);
		pthread_barrier_wait(&barrier);
		CHECK_EQ(put(t, r.d, 64), 64);
		pthread_barrier_wait(&barrier);
		afp_pool_collect(p);
		check_whole(t);
		CHECK_EQ(audit(t).state[AFP_APP] + audit(t).state[AFP_TX], 0);
	}
	CHECK_EQ(stats_of(p).late_refused, 0);
	atomic_store(&r.end, 1);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	pthread_barrier_destroy(&barrier);
	CHECK_EQ(afp_pool_destroy(p), 0);
}

/* The pool is closed while returners bring its last frames, and its struct used again at once. */
static void destroy_while_the_last_frames_return(struct afp_table *t)
{
	struct lane *lanes = aligned_alloc(64, 3 * sizeof(*lanes));
	struct job job[3];
	pthread_t thread[3];

	memset(lanes, 0, 3 * sizeof(*lanes));
	for (uint32_t i = 0; i < 3; i++) {
		job[i] = (struct job){.t = t, .lane = &lanes[i], .who = i};
		CHECK_EQ(pthread_create(&thread[i], NULL, give_back, &job[i]), 0);
	}
	for (int round = 0; round < ROUNDS; round++) {
		struct afp_pool *p = afp_pool_create(t, 8, 0);
		struct afp_desc d[30];
		int n = afp_pool_alloc(p, d, 30);

		CHECK(n >= 0);
		for (int i = 0; i < n; i++)
			lane_send(&lanes[(uint32_t)i % 3], &d[i], 1);
		if (n < 30) /* the returners are behind: let them be */
			sched_yield();
		CHECK_EQ(afp_pool_destroy(p), 0);
	}
	for (int i = 0; i < 3; i++) {
		atomic_store(&lanes[i].done, 1);
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	}
	/* No reaping here: the last return itself must have freed each pool. */
	CHECK_EQ(t->nfree, FRAMES);
	for (int id = 1; id < AFP_MAX_POOLS; id++)
		CHECK(!t->pools[id] || afp_pool_life(t->pools[id]) == AFP_DEAD);
	free(lanes);
}

/* Of threads that bind, use and close one pool, at most one has it at a time. */
static void *bind_and_close(void *arg)
{
	struct job *j = arg;
	struct afp_desc d[8];

	for (int i = 0; i < ROUNDS; i++) {
		int n = afp_pool_alloc(j->pool, d, 8);

		if (n == AFP_CLOSED)
			break;
		if (n < 0) {
			sched_yield();
			continue;
		}
		j->honoured++;
		put(j->t, d, (uint32_t)n);
		if (i > ROUNDS / 2 && j->who == 0) {
			CHECK_EQ(afp_pool_destroy(j->pool), 0);
			break;
		}
		CHECK_EQ(afp_pool_unbind(j->pool), 0);
	}
	return NULL;
}

static void binding_is_exclusive_even_while_closing(struct afp_table *t)
{
	for (int round = 0; round < 10; round++) {
		struct afp_pool *p = afp_pool_create(t, 8, 0);
		struct job job[3];
		pthread_t thread[3];

		for (uint32_t i = 0; i < 3; i++) {
			job[i] = (struct job){.t = t, .pool = p, .who = i};
			CHECK_EQ(pthread_create(&thread[i], NULL, bind_and_close, &job[i]), 0);
		}
		for (int i = 0; i < 3; i++)
			CHECK_EQ(pthread_join(thread[i], NULL), 0);
		if (afp_pool_life(p) == AFP_LIVE)
			CHECK_EQ(afp_pool_destroy(p), 0);
		check_whole(t);
		CHECK_EQ(t->nfree, FRAMES);
	}
}

static const struct test tests[] = {
	{"one_returner", one_returner, 0},
	{"two_returners", two_returners, 0},
	{"four_returners", four_returners, 0},
	{"racing_double_puts", racing_double_puts, 0},
	{"last_two_references", last_two_references, 0},
	{"clones_out_of_ports_of_other_threads", clones_out_of_ports_of_other_threads, 0},
	{"destroy_while_the_last_frames_return", destroy_while_the_last_frames_return, 0},
	{"binding_is_exclusive_even_while_closing", binding_is_exclusive_even_while_closing, 0},
};

TESTS_MAIN(tests)
