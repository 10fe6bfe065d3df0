/* SPDX-License-Identifier: BSD-3-Clause */
/* The worker's loop: see engine.h for its shape and its rules. */
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* With frames in TX, completions may come without any event that ppoll() could see. */
#define COMPLETION_CHECK_NS 1000000ull
#define DRAIN_PAUSE_NS 50000
/* Below this a sleep costs more than it saves. */
#define WORTH_SLEEPING_NS 60000ull
/* A kick sends at most the kernel's budget: go on while it makes progress, but let the other ports have their turn. */
#define KICKS_A_ROUND 8

uint64_t afp_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

int afp_engine_init(struct afp_engine *e, struct afp_table *t, uint32_t batch, uint32_t spin)
{
	memset(e, 0, sizeof(*e));
	e->table = t;
	e->batch = batch < AFP_BATCH_MAX ? batch : AFP_BATCH_MAX;
	e->spin = spin;
	e->hold = AFP_LIVE_LARGE;
	e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return e->wake_fd < 0 ? -errno : 0;
}

void afp_engine_fini(struct afp_engine *e)
{
	close(e->wake_fd);
	e->wake_fd = -1;
}

int afp_engine_add(struct afp_engine *e, struct afp_port *port)
{
	if (e->nports == AFP_ENGINE_PORTS)
		return -1;
	e->port[e->nports] = port;
	e->route[e->nports] = (struct afp_route){.receive = 1};
	e->multi |= port->multi_buffer;
	return (int)e->nports++;
}

void afp_engine_stop(struct afp_engine *e)
{
	uint64_t one = 1;

	atomic_store(&e->stop, 1);
	(void)!write(e->wake_fd, &one, sizeof(one));
}

void afp_engine_clear_stop(struct afp_engine *e)
{
	uint64_t times;

	atomic_store(&e->stop, 0);
	(void)!read(e->wake_fd, &times, sizeof(times));
}

/* Parts of a round ----------------------------------------------------------------------------------------------------- */

/* Frames that the kernel is done with come home; FILL is topped up. 0 or AFP_WRONG_THREAD. */
static int recycle(struct afp_engine *e, bool refill, uint32_t *work)
{
	for (uint32_t i = 0; i < e->nports; i++) {
		struct afp_port *port = e->port[i];
		uint32_t want;

		if (refill && port->pool && unlikely(port_bind_pool(port)))
			return AFP_WRONG_THREAD;
		*work += afp_port_complete(port, 2 * e->batch);
		want = refill ? port_fill_want(port) : 0;
		if (want && afp_port_fill(port, want) < 0)
			return AFP_WRONG_THREAD;
	}
	return 0;
}

/*
 * A port that can send live waits for up to `hold` packets: a long slice costs less a packet than several short ones. No longer
 * than they take to come at full batches: what trickles in from one port is not to wait while another is flooded.
 */
static bool may_hold(const struct afp_engine *e, struct afp_live *live, uint32_t hold)
{
	return live_staged(live) + e->batch <= hold && ++live->held <= hold / e->batch;
}

int afp_engine_kick(struct afp_engine *e, uint32_t hold)
{
	for (uint32_t i = 0; i < e->nports; i++) {
		struct afp_port *port = e->port[i];
		uint32_t before = port->tx.ring ? port_pending(port) : 0;

		if (port->live && may_hold(e, port->live, hold))
			continue;
		for (int n = 0; before && n < KICKS_A_ROUND; n++) {
			uint32_t left;

			if (unlikely(afp_port_kick(port))) {
				e->failed_port = (int)i;
				return -port->error;
			}
			left = port_pending(port);
			if (left == 0 || left >= before)
				break; /* all sent, or stuck until completions are taken */
			before = left;
		}
	}
	return 0;
}

static void rewrite(const struct afp_engine *e, const struct afp_route *r, const struct afp_desc *descs, uint32_t n)
{
	for (uint32_t i = 0; i < n; i += likely(!e->multi) ? 1 : packet_frames(descs + i, n - i)) {
		uint8_t *eth = e->table->area + descs[i].addr, mac[6];

		if (unlikely(descs[i].len < 14))
			continue;
		if (r->rewrite & AFP_SWAP_MAC) {
			memcpy(mac, eth, 6);
			memcpy(eth, eth + 6, 6);
			memcpy(eth + 6, mac, 6);
		}
		if (r->rewrite & AFP_SET_DST)
			memcpy(eth, r->dst, 6);
		if (r->rewrite & AFP_SET_SRC)
			memcpy(eth + 6, r->src, 6);
	}
}

/* Frames that may be received at once: packets of several need more than the batch has packets. */
static inline uint32_t most_frames(const struct afp_engine *e)
{
	return likely(!e->multi) ? e->batch : AFP_BATCH_MAX;
}

/* How many frames may be received from a port so that all of them can leave. */
static uint32_t route_room(struct afp_engine *e, uint32_t in)
{
	const struct afp_route *r = &e->route[in];

	if (r->verdict == AFP_DROP)
		return most_frames(e);
	return port_tx_room(e->port[output_of(in, r->verdict)], most_frames(e));
}

/* Room for a whole batch on every port that can send: a handler may send all of it anywhere. */
static uint32_t any_room(struct afp_engine *e)
{
	uint32_t room = most_frames(e);

	for (uint32_t i = 0; i < e->nports; i++)
		if (e->port[i]->tx.ring)
			room = port_tx_room(e->port[i], room);
	return room;
}

/* Up to a batch of packets, in up to `room` frames; how many frames. One that no TX ring will ever have room for is dropped. */
static uint32_t receive(struct afp_engine *e, uint32_t in, struct afp_desc *out, uint32_t room)
{
	struct afp_port *port = e->port[in];
	uint32_t n, most = AFP_BATCH_MAX;

	if (likely(!port->multi_buffer))
		return afp_port_receive(port, out, room < e->batch ? room : e->batch);
	for (uint32_t i = 0; i < e->nports; i++)
		if (e->port[i]->tx.ring && e->port[i]->tx.size < most)
			most = e->port[i]->tx.size;
	while (!(n = afp_receive_packets(port, out, room, e->batch)) && unlikely(port->rx_next > most)) {
		n = afp_receive_packets(port, out, AFP_BATCH_MAX, 1);
		e->received++;
		afp_engine_drop(e, out, n, E_REFUSED);
	}
	return n;
}

static uint32_t serve_port(struct afp_engine *e, uint32_t in)
{
	const struct afp_route *r = &e->route[in];
	uint32_t room, n;

	if (!r->receive)
		return 0;
	room = route_room(e, in);
	n = room ? receive(e, in, e->descs, room) : 0;
	e->more |= n >= e->batch;
	if (!n) {
		afp_port_wake_rx(e->port[in]);
		return 0;
	}
	e->received += packets_of(e, e->descs, n);
	if (r->verdict == AFP_DROP) {
		afp_engine_drop(e, e->descs, n, E_DROPPED);
		return n;
	}
	if (r->rewrite)
		rewrite(e, r, e->descs, n);
	afp_engine_send(e, output_of(in, r->verdict), e->descs, e->descs, n, r->verdict == AFP_REFLECT ? E_REFLECTED : E_FORWARDED);
	return n;
}

/* Sleeping --------------------------------------------------------------------------------------------------------------- */

/* When to look again at what no event tells of: completions, and packets on a stage that wait for some. */
static uint64_t look_again(const struct afp_engine *e, uint64_t now)
{
	uint64_t when = UINT64_MAX;

	for (uint32_t i = 0; i < e->nports; i++) {
		const struct afp_port *port = e->port[i];

		if (port->live && live_staged(port->live))
			return now + AFP_LIVE_WAIT_NS;
		if (port_in_tx(port))
			when = now + COMPLETION_CHECK_NS;
	}
	return when;
}

static void sleep_until(struct afp_engine *e, uint64_t wake_ns)
{
	struct pollfd fds[AFP_ENGINE_PORTS + 1];
	uint64_t now = afp_now_ns(), look_ns = look_again(e, now);
	struct timespec ts;
	nfds_t n = 0;

	if (wake_ns > look_ns)
		wake_ns = look_ns;
	if (wake_ns < now + WORTH_SLEEPING_NS)
		return;
	fds[n++] = (struct pollfd){.fd = e->wake_fd, .events = POLLIN};
	for (uint32_t i = 0; i < e->nports; i++)
		/* Packets that wait for room to be sent would end the sleep at once; completions, checked for soon, make it. */
		if (e->route[i].receive && e->port[i]->fd >= 0 && (e->handler ? any_room(e) : route_room(e, i)))
			fds[n++] = (struct pollfd){.fd = e->port[i]->fd, .events = POLLIN};
	now = wake_ns - now;
	ts.tv_sec = (time_t)(now / 1000000000ull);
	ts.tv_nsec = (long)(now % 1000000000ull);
	count(e, E_SLEEPS, 1);
	if (ppoll(fds, n, &ts, NULL) < 0)
		return; /* EINTR: the caller looks at its signals at the deadline, or at stop */
	for (nfds_t i = 1; i < n; i++) {
		if (fds[i].revents & (POLLERR | POLLHUP | POLLNVAL)) {
			/* The netdev went away. Don't spin on it: the next kick or the caller will say so. */
			struct timespec pause = {0, COMPLETION_CHECK_NS};
			nanosleep(&pause, NULL);
			break;
		}
	}
}

/* After a round: AFP_RAN_* to return, or -1 to go on. */
static int settle(struct afp_engine *e, uint32_t work, uint64_t deadline_ns, uint64_t next_ns)
{
	count(e, E_ROUNDS, 1);
	if (unlikely(atomic_load_explicit(&e->stop, memory_order_relaxed)))
		return AFP_RAN_STOP;
	if (work) {
		e->idle = 0;
		/* The clock is read on every 16th busy round only. */
		if (atomic_load_explicit(&e->stat[E_ROUNDS], memory_order_relaxed) % 16)
			return -1;
	} else {
		count(e, E_IDLE, 1);
		if (++e->idle > e->spin)
			sleep_until(e, next_ns < deadline_ns ? next_ns : deadline_ns);
	}
	return afp_now_ns() >= deadline_ns ? AFP_RAN_DEADLINE : -1;
}

/* The loops ---------------------------------------------------------------------------------------------------------------- */

int afp_engine_run(struct afp_engine *e, uint64_t deadline_ns)
{
	struct afp_generator *g = e->generator;

	for (;;) {
		uint64_t next_ns = UINT64_MAX;
		uint32_t work = 0;
		int why;

		if (recycle(e, true, &work))
			return AFP_RAN_WRONG_THREAD;
		e->more = false;
		for (uint32_t i = 0; i < e->nports; i++)
			work += serve_port(e, i);
		if (g) {
			uint32_t sent = afp_generate(g, e->port[g->port], e->descs, e->batch, &next_ns);

			e->more |= sent == e->batch;
			work += sent;
		}
		if (afp_engine_kick(e, e->more ? AFP_LIVE_SLICE : 0))
			return AFP_RAN_ERROR;
		if ((g && g->count && g->sent >= g->count) || (e->packet_limit && e->received >= e->packet_limit))
			return AFP_RAN_COUNT;
		why = settle(e, work, deadline_ns, next_ns);
		if (why >= 0)
			return why;
	}
}

/* A batch for a handler: the first frame of each packet in `descs`, all of them in `origin`. How many packets. */
static uint32_t receive_batch(struct afp_engine *e, uint32_t in, uint32_t room)
{
	uint32_t n, frames;

	if (likely(!e->multi)) {
		n = e->busy_frames = afp_port_receive(e->port[in], e->descs, room);
		memcpy(e->origin, e->descs, n * sizeof(e->descs[0]));
		return n;
	}
	e->busy_frames = receive(e, in, e->origin, room);
	for (n = frames = 0; frames < e->busy_frames; n++) {
		e->descs[n] = e->origin[frames];
		e->start[n] = frames;
		frames += packet_frames(e->origin + frames, e->busy_frames - frames);
	}
	e->start[n] = frames;
	return n;
}

int afp_engine_poll(struct afp_engine *e, uint64_t deadline_ns)
{
	e->handler = true;
	for (;;) {
		uint32_t work = 0, room, n = 0;
		int why;

		/* Under load every call has a batch, and settle() is never reached. */
		if (unlikely(atomic_load_explicit(&e->stop, memory_order_relaxed)))
			return AFP_RAN_STOP;
		if (recycle(e, true, &work))
			return AFP_RAN_WRONG_THREAD;
		room = any_room(e);
		for (uint32_t i = 0; room && i < e->nports; i++) {
			uint32_t in = (e->next + i) % e->nports;

			if (!e->route[in].receive)
				continue;
			n = receive_batch(e, in, room);
			if (n) {
				memset(e->verdicts, AFP_DROP, n); /* of packets a handler says nothing about */
				e->busy_port = in;
				e->busy_n = n;
				e->received += n;
				e->next = in + 1;
				e->idle = 0;
				count(e, E_ROUNDS, 1);
				return AFP_RAN_BATCH;
			}
			afp_port_wake_rx(e->port[in]);
		}
		if (afp_engine_kick(e, 0))
			return AFP_RAN_ERROR;
		why = settle(e, work, deadline_ns, UINT64_MAX);
		if (why >= 0)
			return why;
	}
}

uint32_t afp_engine_drain(struct afp_engine *e, uint64_t deadline_ns)
{
	const struct timespec pause = {0, DRAIN_PAUSE_NS};

	/* A batch nobody has decided about: the handler raised, or a signal came before it was called. */
	afp_engine_drop(e, e->origin, e->busy_frames, E_DROPPED);
	e->busy_n = e->busy_frames = 0;
	for (;;) {
		uint32_t left = 0, work = 0;

		(void)recycle(e, false, &work);
		(void)afp_engine_kick(e, 0);
		for (uint32_t i = 0; i < e->nports; i++)
			left += port_in_tx(e->port[i]);
		if (!left || afp_now_ns() >= deadline_ns)
			return left;
		if (!work)
			nanosleep(&pause, NULL);
	}
}

void afp_engine_read_stats(const struct afp_engine *e, struct afp_engine_stats *out)
{
	uint64_t *field = &out->rounds;

	for (int i = 0; i < AFP_ENGINE_COUNTERS; i++)
		field[i] = atomic_load_explicit(&e->stat[i], memory_order_relaxed);
}
