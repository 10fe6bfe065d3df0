/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The loops of 1 to 16 workers over rings in plain memory, for counting instructions: what a packet costs must not depend
 * on how many workers there are.
 *
 *   forward   each worker sends what it receives out of a port of its own: nothing is shared but the frame table
 *   cross     each worker keeps what it receives and hands it to the next one, which sends it: every frame comes home as
 *             a remote return
 *
 * Threads take turns, so that the counts are the same every time; the double of the kernel, and the handing over, are not
 * in measured(). Every frame must be home in its own pool at the end.
 */
#include "fake.h"

#include <pthread.h>
#include <stdbool.h>

#define BATCH 64u
#define WORKERS_MAX 16
#define RING 256u

struct worker {
	struct afp_pool *pool;
	struct afp_port *port[2]; /* received by the first, sent by the second */
	struct afp_engine *engine;
	struct afp_desc given[BATCH]; /* by the worker before it */
	uint32_t ngiven;
};

static struct worker worker[WORKERS_MAX];
static struct afp_table table;
static uint32_t workers, rounds;
static bool cross;
static pthread_barrier_t turn;
static uint64_t moved;

/* One round of one worker: what is counted. Not inlined, so that callgrind finds it. */
__attribute__((noinline)) void measured(struct worker *w, struct worker *next);
void measured(struct worker *w, struct worker *next)
{
	if (!cross) {
		CHECK_EQ(afp_engine_run(w->engine, 0), AFP_RAN_DEADLINE);
		return;
	}
	if (w->ngiven) {
		struct afp_refusals refused = {0};

		CHECK_EQ(afp_port_transmit(w->port[1], w->given, w->ngiven, &refused), w->ngiven);
		w->ngiven = 0;
	}
	if (afp_engine_poll(w->engine, 0) == AFP_RAN_BATCH) {
		memset(w->engine->verdicts, AFP_KEEP, w->engine->busy_n);
		memcpy(next->given, w->engine->descs, w->engine->busy_n * sizeof(struct afp_desc));
		next->ngiven = w->engine->busy_n;
		CHECK_EQ(afp_engine_dispatch(w->engine), 0);
	}
}

static void *work(void *argument)
{
	const uint32_t me = (uint32_t)(uintptr_t)argument;
	struct worker *w = &worker[me];

	CHECK_EQ(afp_pool_bind(w->pool), 0);
	/* Three rounds more: the last frames are received, sent, and come home. */
	for (uint32_t round = 0; round < rounds + 3; round++) {
		for (uint32_t one = 0; one < workers; one++) {
			pthread_barrier_wait(&turn);
			if (one != me)
				continue;
			if (round && round <= rounds && fake_waiting(w->port[0], FILL) >= BATCH) {
				fake_deliver(&table, w->port[0], BATCH, 64, 0);
				moved += BATCH;
			}
			measured(w, &worker[(me + 1) % workers]);
			fake_send(w->port[1]);
		}
	}
	pthread_barrier_wait(&turn);
	while (afp_port_complete(w->port[1], RING))
		;
	pthread_barrier_wait(&turn);
	CHECK(afp_pool_collect(w->pool) >= 0);
	CHECK_EQ(afp_pool_unbind(w->pool), 0);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[WORKERS_MAX];
	uint64_t remote = 0;
	uint32_t frames;

	CHECK(argc == 4);
	cross = !strcmp(argv[1], "cross");
	workers = (uint32_t)atoi(argv[2]);
	rounds = (uint32_t)atoi(argv[3]);
	CHECK(workers >= 1 && workers <= WORKERS_MAX);
	frames = workers * 2048;
	void *area = aligned_alloc(4096, (size_t)frames * FRAME_SIZE);
	CHECK(area);
	CHECK_EQ(afp_table_init(&table, area, frames, FRAME_SIZE, 0), 0);
	CHECK_EQ(pthread_barrier_init(&turn, NULL, workers), 0);
	for (uint32_t i = 0; i < workers; i++) {
		struct worker *w = &worker[i];

		w->pool = afp_pool_create(&table, 1024, 0);
		CHECK(w->pool);
		w->port[0] = fake_port(&table, w->pool, RING, RING);
		w->port[1] = fake_port(&table, w->pool, RING, 1);
		w->engine = calloc(1, sizeof(*w->engine));
		CHECK(w->engine);
		CHECK_EQ(afp_engine_init(w->engine, &table, BATCH, UINT32_MAX), 0);
		for (int p = 0; p < 2; p++)
			CHECK_EQ(afp_engine_add(w->engine, w->port[p]), p);
		w->engine->route[0].verdict = AFP_FORWARD | 1;
		w->engine->route[1].receive = 0;
	}
	for (uint32_t i = 0; i < workers; i++)
		CHECK_EQ(pthread_create(&thread[i], NULL, work, (void *)(uintptr_t)i), 0);
	for (uint32_t i = 0; i < workers; i++)
		CHECK_EQ(pthread_join(thread[i], NULL), 0);
	for (uint32_t i = 0; i < workers; i++) {
		remote += stats_of(worker[i].pool).remote_frames;
		CHECK_EQ(stats_of(worker[i].pool).late_refused, 0);
	}
	check_whole(&table);
	CHECK_EQ(audit(&table).state[AFP_APP] + audit(&table).state[AFP_TX], 0);
	/* In a run of one worker its own frames come back to itself. */
	CHECK_EQ(remote, cross && workers > 1 ? moved : 0);
	printf("{\"workers\": %u, \"moved\": %llu, \"remote\": %llu}\n", workers, (unsigned long long)moved,
	       (unsigned long long)remote);
	return 0;
}
