/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Live-frame transmit, with a test that plays the kernel's program: whatever a run answers, packets leave in order, each once,
 * by one way or the other, and every frame comes home.
 */
#include "fake.h"

#include <errno.h>
#include <pthread.h>

#define ALL UINT32_MAX
#define PACKETS (1u << 17)

/* What the next runs do. take: frames handled before `error` ends the run. Of those taken: delivered, refused, or swallowed. */
struct script {
	uint32_t take, deliver, refuse;
	int error, device_error;
	uint32_t times; /* runs that go so; then all goes well */
};

struct world {
	struct afp_table *t;
	struct afp_pool *p;
	struct afp_port *port;
	struct afp_live live;
	struct afp_live_ring *ring;
	struct script script;
	uint32_t runs, largest, next;
	uint32_t *out, nout;       /* numbers of the packets that left, in order, by either way */
	uint64_t taken[FRAMES * 8]; /* by the socket, not completed yet */
	uint32_t ntaken;
};

static void left(struct world *w, uint64_t addr)
{
	CHECK(w->nout < PACKETS);
	memcpy(&w->out[w->nout++], w->t->area + addr, sizeof(uint32_t));
}

static uint32_t at_most(uint32_t *budget, uint32_t n)
{
	n = n < *budget ? n : *budget;
	*budget -= n;
	return n;
}

static int play(struct afp_live *live, uint32_t n, uint32_t longest)
{
	struct world *w = live->user;
	struct script s = {ALL, ALL, 0, 0, 0, 0};
	struct afp_live_ring *ring = live->ring;
	uint32_t from = ring->consumer;
	bool lost; /* as nobody had them, they leave later, by the socket */

	CHECK(n > 0 && n <= AFP_LIVE_SLICE && n <= live_staged(live));
	CHECK(longest >= AFP_LIVE_SHORTEST && longest <= AFP_LIVE_LONGEST);
	CHECK_EQ(port_in_tx(w->port), ring->producer - live->home); /* nothing else is under way */
	w->runs++;
	w->largest = n > w->largest ? n : w->largest;
	if (w->script.times) {
		w->script.times--;
		s = w->script;
	}
	n = n < s.take ? n : s.take;
	lost = !s.deliver && (!s.refuse || s.device_error);
	ring->task = 1;
	ring->error = s.device_error;
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *d = &ring->desc[ring->consumer++ & (AFP_LIVE_RING - 1)];

		CHECK(d->len >= AFP_LIVE_MINIMUM && d->len <= longest);
		if (at_most(&s.deliver, 1))
			ring->delivered++;
		else if (at_most(&s.refuse, 1))
			ring->dropped++;
		if (!lost)
			left(w, d->addr);
	}
	CHECK_EQ(ring->consumer - from, n);
	return s.error;
}

static struct world *begin(struct afp_table *t, uint32_t size, uint32_t index, uint32_t least)
{
	struct world *w = calloc(1, sizeof(*w));

	CHECK(w);
	w->t = t;
	w->p = afp_pool_create(t, 64, 0);
	w->port = fake_port(t, w->p, size, size);
	fake_start(w->port, index);
	w->ring = aligned_alloc(64, sizeof(*w->ring));
	w->out = calloc(PACKETS, sizeof(*w->out));
	CHECK(w->p && w->ring && w->out);
	memset(w->ring, 0, sizeof(*w->ring));
	w->ring->producer = w->ring->consumer = index;
	w->script.deliver = ALL;
	afp_live_init(&w->live, w->ring, -1, least);
	afp_live_play(&w->live, play, w);
	afp_port_set_live(w->port, &w->live);
	return w;
}

static void script(struct world *w, struct script s)
{
	w->script = s;
}

static uint32_t transmit(struct world *w, const struct afp_desc *d, uint32_t n)
{
	struct afp_refusals refused = {0};

	return afp_port_transmit(w->port, d, n, &refused);
}

/* n packets of `len` bytes, numbered on, and staged; not kicked. How many there was room and were frames for. */
static uint32_t stage(struct world *w, uint32_t n, uint32_t len)
{
	struct afp_desc d[FRAMES];
	uint32_t sent;
	int got;

	n = n < FRAMES ? n : FRAMES;
	got = afp_pool_alloc(w->p, d, n);
	for (int i = 0; i < got; i++) {
		uint32_t number = w->next + (uint32_t)i;

		d[i].len = len;
		memcpy(w->t->area + d[i].addr, &number, sizeof(number));
	}
	sent = transmit(w, d, (uint32_t)got);
	w->next += sent;
	CHECK_EQ(put(w->t, d + sent, (uint32_t)got - sent), (uint32_t)got - sent);
	return sent;
}

static void kick(struct world *w)
{
	CHECK_EQ(afp_port_kick(w->port), 0);
	check_whole(w->t);
}

/* The kernel takes up to n packets out of the TX ring, and completes up to m of those it has taken. */
static void socket_sends(struct world *w, uint32_t n, uint32_t m)
{
	while (n-- && fake_waiting(w->port, TX)) {
		uint64_t addr = fake_take_tx(w->port).addr;

		left(w, addr);
		w->taken[w->ntaken++] = addr;
	}
	m = m < w->ntaken ? m : w->ntaken;
	for (uint32_t i = 0; i < m; i++) {
		if (fake_waiting(w->port, COMP) == w->port->mock[COMP].size) {
			m = i;
			break;
		}
		fake_comp(w->port, w->taken[i]);
	}
	memmove(w->taken, w->taken + m, (w->ntaken - m) * sizeof(w->taken[0]));
	w->ntaken -= m;
}

static uint32_t completed(struct world *w)
{
	uint32_t sum = 0, n;

	while ((n = afp_port_complete(w->port, 64)))
		sum += n;
	return sum;
}

/* Everything leaves; each packet did so once, and in order. */
static void all_left(struct world *w)
{
	for (int i = 0; port_in_tx(w->port) && i < 10000; i++) {
		w->live.waiting_ns = 1; /* it has waited long enough */
		kick(w);
		socket_sends(w, ALL, ALL);
		completed(w);
	}
	CHECK_EQ(port_in_tx(w->port), 0);
	CHECK_EQ(w->nout, w->next);
	for (uint32_t i = 0; i < w->nout; i++)
		CHECK_EQ(w->out[i], i);
}

static struct afp_live_stats stats(const struct world *w)
{
	struct afp_live_stats s;

	afp_live_read_stats(&w->live, &s);
	CHECK_EQ(s.frames, s.delivered + s.dropped);
	return s;
}

static void end(struct world *w)
{
	all_left(w);
	stats(w);
	afp_port_free(w->port);
	CHECK_EQ(afp_pool_destroy(w->p), 0);
	free(w->ring);
	free(w->out);
	free(w);
}

static void a_slice_goes_live_and_its_frames_are_home_and_told_once(struct afp_table *t)
{
	struct world *w = begin(t, 64, UINT32_MAX - 100, AFP_LIVE_LEAST);

	for (uint32_t round = 1; round <= 10; round++) {
		CHECK_EQ(stage(w, 40, 100), 40);
		CHECK_EQ(port_pending(w->port), 40);
		kick(w);
		CHECK_EQ(w->runs, round);
		CHECK_EQ(fake_waiting(w->port, TX), 0);
		CHECK_EQ(audit(t).state[AFP_TX], 0);
		CHECK_EQ(afp_port_complete(w->port, 30), 30);
		CHECK_EQ(afp_port_complete(w->port, 30), 10);
		CHECK_EQ(afp_port_complete(w->port, 30), 0);
	}
	CHECK_EQ(stats(w).delivered, 400);
	CHECK_EQ(stats(w).slices, 10);
	CHECK_EQ(w->live.trouble, AFP_LIVE_FINE);
	end(w);
}

static void few_go_by_the_socket_unless_none_may(struct afp_table *t)
{
	struct world *w = begin(t, 64, 0, AFP_LIVE_LEAST);

	CHECK_EQ(stage(w, AFP_LIVE_LEAST - 1, 60), AFP_LIVE_LEAST - 1);
	kick(w);
	CHECK_EQ(w->runs, 0);
	CHECK_EQ(fake_waiting(w->port, TX), AFP_LIVE_LEAST - 1);
	socket_sends(w, ALL, ALL);
	CHECK_EQ(stage(w, AFP_LIVE_LEAST, 60), AFP_LIVE_LEAST);
	kick(w);
	CHECK_EQ(w->runs, 1);
	/* Those of the socket came in on the way, and are told with the others. */
	CHECK_EQ(completed(w), 2 * AFP_LIVE_LEAST - 1);
	end(w);
	w = begin(t, 64, 0, 1);
	CHECK_EQ(stage(w, 1, 60), 1);
	kick(w);
	CHECK_EQ(w->runs, 1);
	end(w);
}

static void what_does_not_fit_goes_by_the_socket_in_its_place(struct afp_table *t)
{
	const uint32_t lens[] = {AFP_LIVE_LONGEST + 1, FRAME_SIZE, AFP_LIVE_MINIMUM - 1, 4};

	for (int i = 0; i < 4; i++) {
		struct world *w = begin(t, 256, UINT32_MAX - 75, AFP_LIVE_LEAST);

		CHECK_EQ(stage(w, 70, AFP_LIVE_LONGEST), 70);
		CHECK_EQ(stage(w, 1, lens[i]), 1);
		CHECK_EQ(stage(w, 70, AFP_LIVE_MINIMUM), 70);
		CHECK_EQ(stage(w, 70, lens[i]), 70);
		kick(w);
		CHECK_EQ(w->nout, 70); /* the rest waits for the long one */
		CHECK_EQ(fake_waiting(w->port, TX), 1);
		socket_sends(w, ALL, 0);
		kick(w);
		CHECK_EQ(w->nout, 71); /* which is sent, but not completed */
		socket_sends(w, 0, ALL);
		kick(w);
		CHECK_EQ(w->nout, 141);
		CHECK_EQ(fake_waiting(w->port, TX), 70);
		end(w);
	}
}

static void what_a_device_drops_is_counted_and_not_sent_again(struct afp_table *t)
{
	struct world *w = begin(t, 64, 0, AFP_LIVE_LEAST);

	script(w, (struct script){ALL, 30, 20, 0, 0, 1});
	CHECK_EQ(stage(w, 50, 60), 50);
	kick(w);
	CHECK_EQ(stats(w).dropped, 20);
	script(w, (struct script){ALL, 0, ALL, 0, 0, 1}); /* all of them, and no error: its ring is full */
	CHECK_EQ(stage(w, 50, 60), 50);
	kick(w);
	CHECK_EQ(stats(w).dropped, 70);
	script(w, (struct script){ALL, 10, 0, 0, 0, 1}); /* forty that nobody counted are as lost */
	CHECK_EQ(stage(w, 50, 60), 50);
	kick(w);
	CHECK_EQ(stats(w).dropped, 110);
	CHECK_EQ(stats(w).frames, 150);
	CHECK_EQ(stats(w).resent, 0);
	CHECK_EQ(w->live.trouble, AFP_LIVE_FINE);
	end(w);
}

static void what_nobody_had_goes_by_the_socket_and_live_again_later(struct afp_table *t)
{
	const struct {
		uint32_t refuse;
		int device_error, trouble;
	} answers[] = {{0, 0, AFP_LIVE_SILENT}, {ALL, -ENXIO, AFP_LIVE_UNABLE}};

	for (int i = 0; i < 2; i++) {
		struct world *w = begin(t, 64, UINT32_MAX - 30, AFP_LIVE_LEAST);

		script(w, (struct script){ALL, 0, answers[i].refuse, 0, answers[i].device_error, ALL});
		CHECK_EQ(stage(w, 50, 60), 50);
		kick(w);
		CHECK_EQ(w->live.trouble, answers[i].trouble);
		CHECK_EQ(w->live.error, -answers[i].device_error);
		CHECK_EQ(stats(w).resent, 50);
		CHECK_EQ(stats(w).frames, 0);
		socket_sends(w, ALL, ALL);
		CHECK_EQ(w->nout, 50);
		CHECK_EQ(stage(w, 50, 60), 50);
		kick(w);
		CHECK_EQ(w->runs, 1); /* not so soon */
		completed(w);
		socket_sends(w, ALL, ALL);
		w->live.not_before_ns = 0;
		script(w, (struct script){.deliver = ALL});
		CHECK_EQ(stage(w, 50, 60), 50);
		kick(w);
		CHECK_EQ(w->runs, 2);
		CHECK_EQ(stats(w).delivered, 50);
		end(w);
	}
}

static void signals_interrupt_and_nothing_is_lost_or_sent_twice(struct afp_table *t)
{
	struct world *w = begin(t, 64, 0, AFP_LIVE_LEAST);

	script(w, (struct script){7, ALL, 0, -EINTR, 0, 3});
	CHECK_EQ(stage(w, 50, 60), 50);
	kick(w);
	CHECK_EQ(w->runs, 4);
	CHECK_EQ(w->nout, 50);
	CHECK_EQ(stats(w).slices, 1);
	/* One signal after the other: what is left goes by the socket. */
	script(w, (struct script){0, ALL, 0, -EINTR, 0, ALL});
	CHECK_EQ(stage(w, 50, 60), 50);
	kick(w);
	CHECK_EQ(fake_waiting(w->port, TX), 50);
	CHECK_EQ(w->live.trouble, AFP_LIVE_FINE);
	end(w);
}

static void a_run_that_fails_is_tried_again_only_if_that_may_help(struct afp_table *t)
{
	const struct {
		int error, passes;
	} errors[] = {{-ENOMEM, 1}, {-ENOSPC, 1}, {-EAGAIN, 1}, {-EBUSY, 1}, {-EPERM, 0}, {-EINVAL, 0}};

	for (int i = 0; i < 6; i++) {
		struct world *w = begin(t, 64, 0, 1);

		/* Some went before it failed: they are counted, and the rest goes by the socket. */
		script(w, (struct script){10, ALL, 0, errors[i].error, 0, 1});
		CHECK_EQ(stage(w, 30, 60), 30);
		kick(w);
		CHECK_EQ(w->runs, 2);
		CHECK_EQ(stats(w).delivered, 30);
		script(w, (struct script){0, ALL, 0, errors[i].error, 0, ALL});
		CHECK_EQ(stage(w, 30, 60), 30);
		kick(w);
		CHECK_EQ(w->live.trouble, AFP_LIVE_FAILED);
		CHECK_EQ(w->live.error, -errors[i].error);
		CHECK_EQ(w->live.not_before_ns != UINT64_MAX, errors[i].passes);
		CHECK_EQ(fake_waiting(w->port, TX), 30);
		end(w);
	}
}

static void runs_that_leave_pages_behind_become_few_and_then_none(struct afp_table *t)
{
	struct world *w = begin(t, 256, 0, 1);
	uint64_t last;

	w->ring->pools_left = 1;
	CHECK_EQ(stage(w, AFP_LIVE_LARGE - 1, 60), AFP_LIVE_LARGE - 1);
	kick(w);
	CHECK_EQ(w->runs, 0);
	all_left(w);
	CHECK_EQ(stage(w, AFP_LIVE_LARGE, 60), AFP_LIVE_LARGE);
	kick(w);
	CHECK_EQ(w->runs, 1);
	w->live.last_ns = last = afp_now_ns();
	CHECK_EQ(stage(w, AFP_LIVE_LARGE, 60), AFP_LIVE_LARGE);
	kick(w);
	CHECK(w->runs == 1 || afp_now_ns() - last > AFP_LIVE_SELDOM_NS);
	all_left(w);
	w->ring->pools_left = AFP_LIVE_POOLS;
	w->live.last_ns = 0;
	w->runs = 0;
	CHECK_EQ(stage(w, AFP_LIVE_LARGE, 60), AFP_LIVE_LARGE);
	kick(w);
	CHECK_EQ(w->runs, 0);
	CHECK_EQ(w->live.trouble, AFP_LIVE_POOLED);
	all_left(w);
	w->ring->pools_left = 0;
	CHECK_EQ(stage(w, 1, 60), 1);
	kick(w);
	CHECK_EQ(w->runs, 1);
	CHECK_EQ(stats(w).pools_left, 0);
	end(w);
}

static void what_the_socket_has_under_way_leaves_first(struct afp_table *t)
{
	struct world *w = begin(t, 64, 0, AFP_LIVE_LEAST);

	CHECK_EQ(stage(w, 5, 60), 5);
	kick(w);
	socket_sends(w, ALL, 4);
	CHECK_EQ(stage(w, 50, 60), 50);
	w->live.waiting_ns = 0;
	kick(w);
	CHECK_EQ(w->runs, 0);
	CHECK_EQ(live_staged(&w->live), 50); /* it waits */
	socket_sends(w, 0, ALL);
	kick(w);
	CHECK_EQ(w->runs, 1);
	CHECK_EQ(completed(w), 55);
	/* A completion that does not come holds nothing up for long. */
	CHECK_EQ(stage(w, 5, 60), 5);
	kick(w);
	socket_sends(w, ALL, 4);
	CHECK_EQ(stage(w, 50, 60), 50);
	kick(w);
	w->live.waiting_ns = afp_now_ns() - AFP_LIVE_WAIT_NS;
	kick(w);
	CHECK_EQ(w->runs, 1);
	CHECK_EQ(fake_waiting(w->port, TX), 50);
	end(w);
}

static int take_all(struct afp_live *live, uint32_t n, uint32_t longest)
{
	(void)longest;
	live->ring->consumer += n;
	live->ring->delivered += n;
	return 0;
}

/* It is honoured, once, as of what went by the socket; nothing waits for it, and the frame's end by the other way is none. */
static void a_completion_of_what_is_staged_is_a_lie(struct afp_table *t)
{
	struct world *w = begin(t, 64, 0, AFP_LIVE_LEAST);
	struct afp_port_stats s;

	afp_live_play(&w->live, take_all, NULL);
	CHECK_EQ(stage(w, 50, 60), 50);
	fake_comp(w->port, w->ring->desc[7].addr);
	fake_comp(w->port, w->ring->desc[7].addr);
	CHECK_EQ(completed(w), 1);
	kick(w);
	CHECK_EQ(stats(w).frames, 50);
	CHECK_EQ(completed(w), 49);
	CHECK_EQ(port_in_tx(w->port), 0);
	afp_port_read_stats(w->port, &s);
	CHECK_EQ(s.completion_bad, 2);
	check_whole(t);
	w->nout = w->next = 0;
	end(w);
}

static void a_full_stage_and_a_full_ring_are_counts(struct afp_table *t)
{
	struct world *w = begin(t, 64, UINT32_MAX - 1000, AFP_LIVE_LEAST);
	struct afp_desc d[FRAMES];
	struct afp_refusals refused = {0};
	uint32_t sent = 0, left_to_put = 400;

	/* A packet is sent many times: more than there are frames. */
	CHECK_EQ(afp_pool_alloc(w->p, d, 400), 400);
	for (uint32_t i = 0; i < 400; i++) {
		d[i].len = FRAME_SIZE; /* none fits */
		memset(t->area + d[i].addr, 0, sizeof(uint32_t));
		for (int ref = 0; ref < 6; ref++)
			CHECK_EQ(afp_ref(t, &d[i], 1, &refused), 1);
	}
	for (int round = 0; round < 6; round++)
		sent += transmit(w, d, 400);
	CHECK_EQ(sent, AFP_LIVE_RING);
	CHECK_EQ(port_tx_room(w->port, 1), 0);
	kick(w);
	CHECK_EQ(fake_waiting(w->port, TX), 64);
	CHECK_EQ(port_tx_room(w->port, ALL), 64);
	for (uint32_t rest = sent; rest; rest -= 64) {
		socket_sends(w, ALL, ALL);
		kick(w);
		CHECK_EQ(completed(w), 64);
	}
	CHECK_EQ(w->nout, sent);
	CHECK_EQ(port_in_tx(w->port), 0);
	/* Live they go a slice at a time. */
	for (uint32_t i = 0; i < 400; i++)
		d[i].len = 60;
	CHECK_EQ(transmit(w, d, 352), 352);
	kick(w);
	CHECK_EQ(w->largest, 352);
	CHECK_EQ(completed(w), 352);
	/* Each frame had 7 references; 2400 were to be sent, and some had no room. */
	while (left_to_put) {
		left_to_put = 0;
		for (uint32_t i = 0; i < 400; i++)
			left_to_put += put(t, &d[i], 1);
	}
	w->nout = w->next = 0;
	end(w);
}

static void clones_and_fragments_come_home_by_either_way(struct afp_table *t)
{
	struct world *w = begin(t, 256, 0, AFP_LIVE_LEAST);
	struct afp_refusals refused = {0};
	struct afp_desc d[64];

	CHECK_EQ(afp_pool_alloc(w->p, d, 1), 1);
	d[0].len = 60;
	memset(t->area + d[0].addr, 0, sizeof(uint32_t));
	for (int i = 1; i < 64; i++) {
		CHECK_EQ(afp_ref(t, &d[0], 1, &refused), 1);
		d[i] = d[0];
	}
	for (int way = 0; way < 2; way++) {
		CHECK_EQ(transmit(w, d, way ? 10 : 40), way ? 10 : 40);
		kick(w);
		if (way)
			socket_sends(w, ALL, ALL);
		CHECK_EQ(completed(w), way ? 10 : 40);
		check_whole(t);
	}
	CHECK_EQ(w->runs, 1);
	CHECK_EQ(put(t, d, 14), 14);
	CHECK_EQ(put(t, d, 1), 0);
	CHECK_EQ(afp_pool_alloc_fragments(w->p, d, 64, 256), 64);
	for (int i = 0; i < 64; i++) {
		d[i].len = 100;
		memset(t->area + d[i].addr, 0, sizeof(uint32_t));
	}
	CHECK_EQ(transmit(w, d, 10), 10);
	kick(w);
	socket_sends(w, ALL, ALL);
	CHECK_EQ(transmit(w, d + 10, 54), 54);
	kick(w);
	CHECK_EQ(w->runs, 2);
	CHECK_EQ(completed(w), 64);
	check_whole(t);
	w->nout = w->next = 0;
	end(w);
}

struct giver {
	struct afp_table *t;
	struct afp_pool *p;
	struct afp_desc d[100];
};

static void *give(void *arg)
{
	struct giver *g = arg;

	g->p = afp_pool_create(g->t, 64, 0);
	CHECK(g->p);
	CHECK_EQ(afp_pool_alloc(g->p, g->d, 100), 100);
	return NULL;
}

static void *collect(void *arg)
{
	struct giver *g = arg;

	CHECK_EQ(afp_pool_bind(g->p), 0);
	(void)afp_pool_collect(g->p);
	return NULL;
}

static void frames_of_another_threads_pool_are_posted_to_it(struct afp_table *t)
{
	struct world *w = begin(t, 64, 0, AFP_LIVE_LEAST);
	struct giver g = {.t = t};
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, give, &g), 0);
	pthread_join(thread, NULL);
	for (uint32_t i = 0; i < 100; i++) {
		uint32_t number = w->next++;

		g.d[i].len = 60;
		memcpy(t->area + g.d[i].addr, &number, sizeof(number));
	}
	CHECK_EQ(transmit(w, g.d, 100), 100);
	kick(w);
	CHECK_EQ(w->runs, 1);
	CHECK_EQ(completed(w), 100);
	CHECK_EQ(stats_of(g.p).remote_frames + audit(t).inbox, 100);
	check_whole(t);
	end(w);
	CHECK_EQ(afp_pool_unbind(g.p) < 0, 1); /* it is the other thread's still */
	CHECK_EQ(pthread_create(&thread, NULL, collect, &g), 0);
	pthread_join(thread, NULL);
	CHECK_EQ(audit(t).inbox, 0);
	(void)afp_pool_destroy(g.p);
	afp_table_reap(t);
}

static void closing_takes_back_what_is_staged_and_what_is_under_way(struct afp_table *t)
{
	struct world *w = begin(t, 64, 0, AFP_LIVE_LEAST);
	struct afp_port_stats s;

	CHECK_EQ(stage(w, 5, 60), 5);
	kick(w);
	socket_sends(w, 3, 1);
	CHECK_EQ(stage(w, 50, 60), 50);
	afp_port_close(w->port);
	afp_port_close(w->port);
	check_whole(t);
	CHECK_EQ(audit(t).state[AFP_TX], 0);
	CHECK_EQ(afp_port_kick(w->port), 0);
	CHECK_EQ(afp_port_complete(w->port, 64), 0);
	CHECK_EQ(live_staged(&w->live), 0);
	afp_port_read_stats(w->port, &s);
	CHECK_EQ(s.tx_completed + s.tx_reclaimed, 55);
	CHECK_EQ(s.tx_completed, 1);
	w->nout = w->next = 0;
	end(w);
}

static void whatever_happens_order_is_kept(struct afp_table *t)
{
	struct world *w = begin(t, 64, UINT32_MAX - 5000, AFP_LIVE_LEAST);
	uint64_t x = SEED;
	uint32_t by_socket = 0;

	for (int step = 0; step < 20000; step++) {
		const int errors[] = {0, 0, -EINTR, -EINTR, -ENOMEM, -EPERM};
		uint32_t r;

		next_random(&x);
		r = (uint32_t)(x >> 24);
		switch (x % 8) {
		case 0:
		case 1:
		case 2:
			stage(w, 1 + r % 200, r & 0xff000 ? 14 + (r >> 8) % 3287 : r & 0x40 ? 3301 : 4);
			break;
		case 3:
		case 4:
			/* A run may be told anything, except to lose: then nothing could be said of the order. */
			script(w, (struct script){r % 100, ALL, 0, errors[(r >> 8) % 6], 0, (r >> 12) % 4});
			if (!w->script.error)
				w->script.take = ALL;
			w->live.not_before_ns = r & 0x8000 ? 0 : w->live.not_before_ns;
			kick(w);
			script(w, (struct script){.deliver = ALL});
			break;
		case 5:
			by_socket += fake_waiting(w->port, TX);
			socket_sends(w, r % 64, (r >> 8) % 64);
			break;
		case 6:
			completed(w);
			break;
		case 7:
			/* Nobody had them. */
			script(w, (struct script){ALL, 0, r & 1 ? ALL : 0, 0, r & 1 ? -EOPNOTSUPP : 0, 1});
			w->ring->pools_left = (r >> 1) % 64 ? 0 : (r >> 8) % 20;
			kick(w);
			script(w, (struct script){.deliver = ALL});
			break;
		}
		if (w->next > PACKETS - 1000)
			break;
	}
	w->ring->pools_left = 0;
	all_left(w);
	/* Both ways were gone. How often depends on the clock, which runs on while others have the CPU. */
	CHECK(stats(w).delivered > 100 && by_socket > 100);
	end(w);
}

static void what_trickles_out_of_one_port_does_not_wait_for_a_flood_to_end(struct afp_table *t)
{
	struct world *w = begin(t, 64, 0, 1);
	struct afp_port *other = fake_port(t, w->p, 64, 64);
	struct afp_engine *e = calloc(1, sizeof(*e));
	uint32_t rounds;

	CHECK(e);
	CHECK_EQ(afp_engine_init(e, t, 16, 0), 0);
	CHECK_EQ(afp_engine_add(e, w->port), 0);
	CHECK_EQ(afp_engine_add(e, other), 1);
	CHECK_EQ(afp_port_fill(w->port, 64), 64);
	CHECK_EQ(stage(w, 1, 60), 1);
	for (rounds = 0; !w->nout; rounds++) {
		CHECK(rounds <= AFP_LIVE_LARGE / 16);
		fake_deliver(t, w->port, 16, 60, 0);
		CHECK_EQ(afp_engine_poll(e, afp_now_ns() + 1000000000ull), AFP_RAN_BATCH);
		memset(e->verdicts, AFP_FORWARD | 1, 16);
		CHECK_EQ(afp_engine_dispatch(e), 0);
		fake_send(other);
	}
	CHECK(rounds > 1); /* it did wait for more */
	(void)afp_engine_drain(e, 0);
	afp_engine_fini(e);
	free(e);
	while (fake_send(other))
		(void)afp_port_complete(other, 64);
	while (afp_port_complete(other, 64))
		;
	afp_port_free(other);
	end(w);
}

static const struct test tests[] = {
	{"a_slice_goes_live_and_its_frames_are_home_and_told_once", a_slice_goes_live_and_its_frames_are_home_and_told_once, 0},
	{"few_go_by_the_socket_unless_none_may", few_go_by_the_socket_unless_none_may, 0},
	{"what_does_not_fit_goes_by_the_socket_in_its_place", what_does_not_fit_goes_by_the_socket_in_its_place, 0},
	{"what_a_device_drops_is_counted_and_not_sent_again", what_a_device_drops_is_counted_and_not_sent_again, 0},
	{"what_nobody_had_goes_by_the_socket_and_live_again_later", what_nobody_had_goes_by_the_socket_and_live_again_later, 0},
	{"signals_interrupt_and_nothing_is_lost_or_sent_twice", signals_interrupt_and_nothing_is_lost_or_sent_twice, 0},
	{"a_run_that_fails_is_tried_again_only_if_that_may_help", a_run_that_fails_is_tried_again_only_if_that_may_help, 0},
	{"runs_that_leave_pages_behind_become_few_and_then_none", runs_that_leave_pages_behind_become_few_and_then_none, 0},
	{"what_the_socket_has_under_way_leaves_first", what_the_socket_has_under_way_leaves_first, 0},
	{"a_completion_of_what_is_staged_is_a_lie", a_completion_of_what_is_staged_is_a_lie, 0},
	{"a_full_stage_and_a_full_ring_are_counts", a_full_stage_and_a_full_ring_are_counts, 0},
	{"clones_and_fragments_come_home_by_either_way", clones_and_fragments_come_home_by_either_way, 0},
	{"frames_of_another_threads_pool_are_posted_to_it", frames_of_another_threads_pool_are_posted_to_it, 0},
	{"closing_takes_back_what_is_staged_and_what_is_under_way", closing_takes_back_what_is_staged_and_what_is_under_way, 0},
	{"whatever_happens_order_is_kept", whatever_happens_order_is_kept, 0},
	{"what_trickles_out_does_not_wait", what_trickles_out_of_one_port_does_not_wait_for_a_flood_to_end, 0},
};

TESTS_MAIN(tests)
