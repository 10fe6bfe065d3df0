/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Live-frame transmit: a port's second way out, beside its socket.
 *
 * In copy mode the kernel builds a socket buffer for every packet sent. Here an XDP program that sees the Umem (it lies in a
 * BPF array map) copies frames into pages of the kernel's and redirects them to the port's device: see
 * bpf/live_transmit.bpf.c. It runs when this thread calls BPF_PROG_RUN, a slice of frames at a time, and when the call
 * returns the frames are free again.
 *
 * Descriptors a port is to send are staged in the ring that the program reads. Each kick decides which way they go: live,
 * when there are enough of them to pay for a run, or into the socket's TX ring. Order is kept, because they leave the stage in
 * order, and go live only when the socket has nothing under way.
 *
 *   staged:  home <= consumer <= producer.   [consumer, producer) wait; [home, consumer) are copied out, and come home next.
 *
 * Where live transmit does not work it says so once (`trouble`) and the socket takes over: nothing is lost by the attempt, as
 * the frames are still there. What a device drops after it took part in the run is lost as on any wire, and counted.
 */
#ifndef AFXDP_POOL_LIVE_H
#define AFXDP_POOL_LIVE_H

#include <linux/if_xdp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define AFP_LIVE_RING 2048  /* DESCS in bpf/live_transmit.bpf.c */
#define AFP_LIVE_SLICE 1024 /* frames a run at most: longer ones gain nothing, and the thread sees nothing else meanwhile */
/* The fewest frames that pay for a run: it costs some 6 us, and a packet by the socket some 0.4 us. */
#define AFP_LIVE_LEAST 20
#define AFP_LIVE_BATCH 64     /* frames the kernel handles at once, before it lets the receiver run */
#define AFP_LIVE_SHORTEST 64  /* bytes of page a run asks for at least: the program copies so many at once */
#define AFP_LIVE_LONGEST 3300 /* bytes; what fits a page beside the kernel's own (xdp_page_head, skb_shared_info): 3408 */
#define AFP_LIVE_MINIMUM 14   /* bytes; an XDP program cannot make a packet shorter */
/*
 * Pages of a run can outlive it, in the queue of a receiver that has a thread of its own, say. The kernel then keeps the run's
 * page_pool for a second or more. While some are left only large slices go live, and few of them; above this none.
 */
#define AFP_LIVE_POOLS 16
#define AFP_LIVE_LARGE 256
#define AFP_LIVE_SELDOM_NS 1000000ull
#define AFP_LIVE_RETRY_NS 1000000000ull /* after trouble that may pass */
#define AFP_LIVE_WAIT_NS 200000ull      /* for what the socket has under way */
/* A slice of 1024 frames of 1500 bytes takes 0.13 ms. One that takes so long was stopped by something else. */
#define AFP_LIVE_STALL_NS 2000000ull

/* Shared with the programs: struct live_ring there. */
struct afp_live_ring {
	uint32_t producer;
	uint32_t unused[15];
	uint32_t consumer;
	int32_t error;
	uint64_t task;
	uint64_t delivered, dropped, bad;
	int64_t pools_left;
	struct xdp_desc desc[AFP_LIVE_RING];
	/*
	 * Each packet's first bytes. For a short one this is all the program reads: frames begin 4096 bytes apart, so their heads
	 * fall into the same few sets of a cache and are gone before a slice is through; here they lie side by side.
	 */
	uint8_t head[AFP_LIVE_RING][AFP_LIVE_SHORTEST] __attribute__((aligned(64)));
};

enum afp_trouble {
	AFP_LIVE_FINE,
	AFP_LIVE_SILENT, /* frames went in and nothing came of it: the peer takes no redirected frames */
	AFP_LIVE_UNABLE, /* the device refused all of them, with an error */
	AFP_LIVE_FAILED, /* BPF_PROG_RUN failed */
	AFP_LIVE_POOLED, /* too many runs have pages out */
};

struct afp_live_stats {
	uint64_t frames;    /* copied out and handed to the device */
	uint64_t delivered; /* of them: taken by the device ... */
	uint64_t dropped;   /* ... or refused, as its ring or its peer's was full. frames = delivered + dropped */
	uint64_t resent;    /* frames no device had taken: sent by the socket instead */
	uint64_t slices;    /* runs */
	uint64_t stalls;    /* of them: longer than 2 ms */
	uint64_t longest_ns;
	uint64_t pools_left;      /* runs whose pages are out now ... */
	uint64_t pools_left_most; /* ... and at most */
};
#define AFP_LIVE_STATS 9

struct afp_live;
/* One run: let the program handle up to n frames, the longest of them `longest` bytes. 0 or a negative errno. */
typedef int (*afp_live_run)(struct afp_live *live, uint32_t n, uint32_t longest);

struct afp_live {
	struct afp_live_ring *ring;
	uint32_t home;
	uint32_t least;   /* frames a slice takes at least: AFP_LIVE_LEAST, or 1 when nothing may go by the socket */
	uint32_t longest; /* bytes of the longest packet that goes live: AFP_LIVE_LONGEST, or less */
	uint32_t untold;  /* completions that came in with a kick, and that afp_port_complete() has not returned yet */
	uint32_t held;    /* rounds of the engine that the stage was left to grow */
	int program;     /* descriptor of live_transmit */
	int trouble;     /* enum afp_trouble: why the socket is used just now, or was last */
	int error;       /* the errno that goes with it, 0 = none */
	uint64_t not_before_ns; /* in trouble: when to try again; UINT64_MAX = never */
	uint64_t last_ns, waiting_ns;
	afp_live_run run;
	void *user; /* for a test's `run` */
	_Atomic uint64_t stat[AFP_LIVE_STATS];
};

enum afp_live_stat { L_FRAMES, L_DELIVERED, L_DROPPED, L_RESENT, L_SLICES, L_STALLS, L_LONGEST, L_POOLS, L_POOLS_MOST };

struct afp_port;
/* Send this port's packets through `live` too, from here on until it closes. Nothing is sent yet. Thread of the port. */
void afp_port_set_live(struct afp_port *port, struct afp_live *live);
void afp_live_init(struct afp_live *live, struct afp_live_ring *ring, int program, uint32_t least);
void afp_live_read_stats(const struct afp_live *live, struct afp_live_stats *out);
/* Send what is staged, one way or the other: as afp_port_kick(), which calls it. */
int afp_live_kick(struct afp_port *port);
/* Up to n of the completions that came in with kicks, told once. */
uint32_t afp_live_tell(struct afp_live *live, uint32_t n);
/* Nothing is staged any more: the port closes, and takes the frames back. */
void afp_live_forget(struct afp_live *live);
/* In place of BPF_PROG_RUN: a test plays the program and the kernel. */
void afp_live_play(struct afp_live *live, afp_live_run run, void *user);

static inline uint32_t live_staged(const struct afp_live *live)
{
	return live->ring->producer - live->ring->consumer;
}
/* Keep a packet's first bytes where the program finds them; `left`: bytes from there to the end of the Umem. */
static inline void live_head(struct afp_live *live, uint32_t at, const uint8_t *packet, uint64_t left)
{
	uint8_t *to = live->ring->head[at & (AFP_LIVE_RING - 1)];

	if (__builtin_expect(left >= AFP_LIVE_SHORTEST, 1))
		memcpy(to, packet, AFP_LIVE_SHORTEST);
	else
		memcpy(to, packet, left);
}
static inline uint32_t live_room(const struct afp_live *live)
{
	return AFP_LIVE_RING - (live->ring->producer - live->home);
}

#endif
