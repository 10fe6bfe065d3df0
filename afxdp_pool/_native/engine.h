/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The engine: ports, what becomes of their packets, and the loop that moves them, run by one worker thread.
 *
 *   complete -> refill -> receive -> verdict -> transmit -> kick,   every port in turn, a batch at a time
 *
 * Back-pressure: a packet is received only when every port it may leave by has room for it. So nothing is ever dropped in
 * here for want of room; under overload the kernel drops and counts (XDP_STATISTICS), and order is kept.
 *
 * Packets of several frames (multi.h): a handler sees the first frame of each, and its verdict is that of them all.
 *
 * Idle: after `spin` rounds without work the worker sleeps in ppoll() until a packet, the next send time, a completion that
 * is due, the deadline, or stop.
 */
#ifndef AFXDP_POOL_ENGINE_H
#define AFXDP_POOL_ENGINE_H

#include "audit.h"
#include "multi.h"

#define AFP_ENGINE_PORTS 64
#define AFP_BATCH_MAX 1024

/* Verdicts: one byte a packet. FORWARD(port) is 0x80 | the port's index in the engine. */
enum afp_verdict {
	AFP_DROP = AFP_VERDICT_DROP,
	AFP_REFLECT = AFP_VERDICT_TX,
	AFP_KEEP = AFP_VERDICT_KEEP,
	AFP_FORWARD = AFP_VERDICT_FORWARD(0),
};
enum afp_rewrite { AFP_SWAP_MAC = 1, AFP_SET_DST = 2, AFP_SET_SRC = 4 };

/* What the built-in loop does with the packets of one port. */
struct afp_route {
	uint8_t receive; /* 0: only completions are looked after */
	uint8_t verdict;
	uint8_t rewrite;
	uint8_t dst[6], src[6];
};

/* The tx path: frames filled from templates, sent at a rate. A template is one part, or several if it is longer than a frame. */
struct afp_generator {
	struct afp_pool *pool;
	uint32_t port;            /* index of the engine's port to send from */
	uint32_t templates;
	const uint8_t *data;      /* the templates, one after the other */
	const uint32_t *offset;   /* [parts + 1] */
	const uint32_t *first;    /* [templates + 1] the first part of each; NULL: they are in one each, and ask for nothing */
	const struct afp_tx_metadata *request; /* [templates] what each asks for, or NULL */
	uint64_t stamp_every_ns;  /* one packet in so long asks when it is sent; its number is then, CLOCK_TAI. 0: none does */
	uint64_t stamped_ns;
	uint64_t count;           /* packets to send in all; 0 = no end */
	double rate;              /* packets a second; 0 = as fast as the port takes them */
	uint32_t sequence_at;     /* offset of a 64-bit big-endian sequence number to write; 0 = none */
	uint32_t checksum_at;     /* offset of the UDP checksum that covers it, valid for sequence number 0; 0 = none */
	uint32_t *written;        /* [nframes] or NULL: the template a frame got last, plus one, and in which of its lives */
	uint64_t sent;            /* out: packets handed to the port, which is also the next sequence number */
	uint64_t started_ns;      /* out: CLOCK_MONOTONIC */
};

/* The order of struct afp_engine_stats. */
enum {
	E_ROUNDS, E_IDLE, E_SLEEPS, E_DROPPED, E_REFLECTED, E_FORWARDED, E_KEPT, E_REFUSED,
	E_CALLS, E_TIMED, E_HANDLER_NS, E_LONGEST_NS, E_SLOW,
	AFP_ENGINE_COUNTERS
};

enum afp_why {
	AFP_RAN_DEADLINE, AFP_RAN_STOP, AFP_RAN_COUNT, AFP_RAN_BATCH, AFP_RAN_ERROR, AFP_RAN_WRONG_THREAD,
	AFP_RAN_VERDICT, /* a handler's verdicts meant nothing: `bad_verdicts` of the last batch, which were dropped */
};

struct afp_engine_stats {
	uint64_t rounds, idle_rounds, sleeps;
	uint64_t dropped, reflected, forwarded, kept; /* reflected: out of the port it came from, by whichever verdict */
	uint64_t refused; /* descriptors that a handler spoiled, or verdicts that mean nothing: dropped */
	uint64_t handler_calls; /* batches given to a handler; of those `timed` were, which took `ns` in all: see handler.c */
	uint64_t handler_timed, handler_ns, handler_longest_ns, handler_slow;
};

struct afp_engine {
	struct afp_table *table;
	uint32_t nports, batch, spin, next;
	struct afp_port *port[AFP_ENGINE_PORTS];
	struct afp_route route[AFP_ENGINE_PORTS];
	struct afp_generator *generator;
	uint64_t packet_limit; /* received packets after which run() returns; 0 = none */
	uint64_t received;
	uint32_t idle; /* rounds without work, in a row */
	uint32_t busy_port; /* of a batch in `descs`: the engine's index of the port it came from */
	uint32_t busy_n;      /* packets of it; and frames, in `origin` */
	uint32_t busy_frames;
	bool multi;   /* a port has packets of several frames */
	bool more;    /* this round found a full batch: the next one will find packets too */
	bool handler; /* driven by poll() and dispatch(): any packet may leave by any port */
	int wake_fd; /* eventfd: stop() from any thread */
	int failed_port;
	_Atomic int stop;
	_Atomic uint64_t stat[AFP_ENGINE_COUNTERS];
	uint64_t handed_ns; /* when the batch in `descs` was handed to a handler in Python; 0: it is not timed */
	struct afp_desc descs[AFP_BATCH_MAX];
	uint8_t verdicts[AFP_BATCH_MAX];
	/* What was received, out of the handler's reach: a spoiled descriptor does not lose its frame. */
	struct afp_desc origin[AFP_BATCH_MAX];
	uint32_t start[AFP_BATCH_MAX + 1]; /* where in `origin` each packet begins, if `multi` */
	uint32_t bad_verdicts;
	uint32_t hold; /* under load a handler's packets wait for so many to be sent live: more, when it is quick */
};

/* A handler of one packet, and its memory: the `user` of afp_call_per_packet(). */
struct afp_per_packet {
	afp_packet_handler handle;
	void *user;
};

/* 0 or a negative errno. The struct's memory is the caller's: a handler's views of it may outlive the engine. */
int afp_engine_init(struct afp_engine *e, struct afp_table *t, uint32_t batch, uint32_t spin);
void afp_engine_fini(struct afp_engine *e);
int afp_engine_add(struct afp_engine *e, struct afp_port *port); /* the port's index, or -1 when full */
/* Any thread, and a signal handler. */
void afp_engine_stop(struct afp_engine *e);
/* Forget a stop that was obeyed. */
void afp_engine_clear_stop(struct afp_engine *e);

/* The built-in loop, until deadline (CLOCK_MONOTONIC ns), stop or count: an enum afp_why. One thread at a time. */
int afp_engine_run(struct afp_engine *e, uint64_t deadline_ns);
/* For handlers: wait for one batch. AFP_RAN_BATCH: it is in descs[0..busy_n), of port busy_port, held by the caller. */
int afp_engine_poll(struct afp_engine *e, uint64_t deadline_ns);
/* Carry out verdicts[0..busy_n) over descs[0..busy_n). How many of them meant nothing. Packets that leave by one port keep
 * their order. */
uint32_t afp_engine_dispatch(struct afp_engine *e);
/* handler.c: the loop with a compiled handler: an enum afp_why, as afp_engine_run(). */
int afp_engine_run_compiled(struct afp_engine *e, uint64_t deadline_ns, afp_handler handler, void *user);
/* The batch handler that calls one of a packet. A packet whose descriptor leaves the Umem is not shown; what is no verdict is
 * refused as one. */
void afp_call_per_packet(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port,
			 void *user);
/* Tell machine code which frames each of n packets has: those of packet i are frames[start[i]] to frames[start[i + 1]]. It is written
 * before the packet (struct afp_parts), where there is room. */
void afp_show_parts(const struct afp_table *t, const struct afp_desc *frames, const uint32_t *start, uint32_t n);
/* For Python: dispatch() what the last call brought, its verdicts all `all` unless that is negative, then poll(). The next
 * batch, as port << 16 | n, or the complement of an enum afp_why. */
int64_t afp_engine_turn(struct afp_engine *e, uint64_t deadline_ns, int all);
/* Receive no more; drop what poll() returned and dispatch() never saw; send and complete what is under way, until nothing is or the deadline. Frames still in TX. */
uint32_t afp_engine_drain(struct afp_engine *e, uint64_t deadline_ns);
void afp_engine_read_stats(const struct afp_engine *e, struct afp_engine_stats *out);
uint64_t afp_now_ns(void);

/* Between engine.c and dispatch.c ----------------------------------------------------------------------------------------- */

static inline void count(struct afp_engine *e, int which, uint64_t n)
{
	bump(&e->stat[which], n);
}

/* Packets that these frames are. */
static inline uint32_t packets_of(const struct afp_engine *e, const struct afp_desc *descs, uint32_t n)
{
	return likely(!e->multi) ? n : packets_in(descs, n);
}

static inline uint32_t output_of(uint32_t in, uint8_t verdict)
{
	return verdict == AFP_REFLECT ? in : verdict & 0x7fu;
}

/* Frames go home; `counter` counts their packets. */
void afp_engine_drop(struct afp_engine *e, const struct afp_desc *descs, uint32_t n, int counter);
/* A run of packets, out of one port. `origin` is what was received: a descriptor that a handler spoiled, or pointed at another
 * frame, is not sent, and the frame it came with is dropped. */
void afp_engine_send(struct afp_engine *e, uint32_t out, const struct afp_desc *descs, const struct afp_desc *origin, uint32_t n,
		     int counter);
/* Tell the kernel what there is to send; a port that can send live may wait for up to `hold` packets. 0 or a negative errno. */
int afp_engine_kick(struct afp_engine *e, uint32_t hold);

/* generate.c: one step of the tx path; how many packets went. `*next_ns`: when it wants to be called again. */
uint32_t afp_generate(struct afp_generator *g, struct afp_port *port, struct afp_desc *scratch, uint32_t batch, uint64_t *next_ns);

#endif
