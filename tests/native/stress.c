/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Stress of the remote returns: one owner, many returners, a hundred million frames, under ThreadSanitizer.
 *
 *     stress RETURNERS FRAMES
 *
 * The owner allocates batches and hands each to a returner by a ring of its own. One batch in 61 goes to two returners at
 * once, who race to put it: of the two returns of each frame exactly one is honoured, the other is refused to its caller or,
 * if it came too late to be told, by the owner. At the end every frame is home, and the numbers agree.
 *
 * `make stress` runs it with 1, 2, 4 and 8 returners.
 */
#include "audit.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#define BATCH 64u
#define SLOTS 64u /* batches a lane holds */
#define FRAMES 16384u
#define RETURNERS 8u

struct lane {
	_Alignas(64) _Atomic uint32_t head;
	_Alignas(64) _Atomic uint32_t tail;
	struct afp_desc slot[SLOTS][BATCH];
};

static struct afp_table table;
static struct lane lanes[RETURNERS];
static _Atomic int done;
static _Atomic uint64_t refused_to_callers;

static void *returner(void *of)
{
	struct lane *lane = of;
	uint64_t refused_here = 0;

	for (;;) {
		uint32_t tail = atomic_load_explicit(&lane->tail, memory_order_relaxed);
		struct afp_refusals refused = {0};

		if (tail == atomic_load_explicit(&lane->head, memory_order_acquire)) {
			if (atomic_load(&done) && tail == atomic_load(&lane->head))
				break;
			sched_yield();
			continue;
		}
		afp_put(&table, lane->slot[tail % SLOTS], BATCH, &refused);
		refused_here += refused.n;
		atomic_store_explicit(&lane->tail, tail + 1, memory_order_release);
	}
	atomic_fetch_add(&refused_to_callers, refused_here);
	return NULL;
}

static bool hand_over(struct lane *lane, const struct afp_desc *batch)
{
	uint32_t head = atomic_load_explicit(&lane->head, memory_order_relaxed);

	if (head - atomic_load_explicit(&lane->tail, memory_order_acquire) == SLOTS)
		return false;
	for (uint32_t i = 0; i < BATCH; i++)
		lane->slot[head % SLOTS][i] = batch[i];
	atomic_store_explicit(&lane->head, head + 1, memory_order_release);
	return true;
}

static void must_hand_over(struct lane *lane, const struct afp_desc *batch)
{
	while (!hand_over(lane, batch))
		sched_yield();
}

int main(int argc, char **argv)
{
	uint32_t count = argc > 1 ? (uint32_t)atoi(argv[1]) : 2;
	uint64_t total = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000000, handed = 0, twice = 0, batches = 0;
	struct afp_refusals refused = {0};
	struct afp_pool_stats stats;
	struct afp_audit *audit = calloc(1, sizeof(*audit));
	void *area = aligned_alloc(4096, (size_t)FRAMES * 2048);
	pthread_t threads[RETURNERS];
	struct afp_pool *pool;

	if (count < 1 || count > RETURNERS || !audit || !area || afp_table_init(&table, area, FRAMES, 2048, 0))
		return 2;
	pool = afp_pool_create(&table, 1024, 0);
	for (uint32_t i = 0; i < count; i++)
		pthread_create(&threads[i], NULL, returner, &lanes[i]);
	while (handed < total) {
		struct afp_desc batch[BATCH];
		uint32_t to = (uint32_t)(batches % count);
		int got = afp_pool_alloc(pool, batch, BATCH);

		if (got < (int)BATCH) {
			if (got > 0)
				afp_put(&table, batch, (uint32_t)got, &refused);
			sched_yield();
			continue;
		}
		must_hand_over(&lanes[to], batch);
		if (++batches % 61 == 0 && count > 1) {
			must_hand_over(&lanes[(to + 1) % count], batch);
			twice += BATCH;
		}
		handed += BATCH;
	}
	atomic_store(&done, 1);
	for (uint32_t i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	afp_pool_collect(pool);
	afp_audit(&table, audit);
	afp_pool_read_stats(pool, &stats);
	printf("{\"returners\": %u, \"returned\": %llu, \"put_twice\": %llu, \"refused_to_caller\": %llu, \"refused_by_owner\": %llu, "
	       "\"posts\": %llu, \"audit_wrong\": %u, \"not_home\": %u}\n",
	       count, (unsigned long long)handed, (unsigned long long)twice, (unsigned long long)atomic_load(&refused_to_callers),
	       (unsigned long long)stats.late_refused, (unsigned long long)stats.remote_batches, audit->nwrong,
	       audit->state[AFP_APP] + audit->state[AFP_TX] + audit->state[AFP_FILL]);
	if (audit->nwrong || audit->state[AFP_APP] || refused.n || atomic_load(&refused_to_callers) + stats.late_refused != twice)
		return 1;
	afp_table_fini(&table);
	free(area);
	free(audit);
	return 0;
}
