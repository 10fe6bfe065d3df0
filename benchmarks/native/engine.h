/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What every engine here has in common: the jobs, the command line, the loop's beginning and end, the packet
 * of job tx and the report. An engine is one thread with one loop; nothing changes the options once they are
 * parsed.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <linux/types.h>
#include <net/ethernet.h>
#include <signal.h>
#include <stdbool.h>

#define POLL_MS 100     /* the longest sleep: a signal that came just before it waits that long */
#define MAX_SECONDS 600 /* the longest run, so that no forgotten engine burns a core for ever */
#define MIN_PACKET 60u
#define MAX_PACKET 4096u

enum job { DROP, FORWARD, REFLECT, TX };

extern const char *const job_names[];

extern struct options {
	enum job job;
	const char *in, *out;
	__u32 queue, batch, size, spin;
	double duration;
	bool poll, verbose;
	struct ether_addr dst;
	__u8 template[MAX_PACKET];
	__u32 template_len;
} opt;

/* An option that only one engine has. Letters need not be printable. */
struct extra {
	const char *name;
	int letter;
	bool has_value;
};

struct engine {
	const char *name;
	const char *usage;                          /* of its own options, a line each; may be NULL */
	const struct extra *extras;                 /* up to one without a name; may be NULL */
	bool (*set)(int letter, const char *value); /* false: a bad value. value is NULL for a flag. */
	const char *(*objection)(void); /* what is wrong with the options, or NULL; may be NULL itself */
};

/* Leaves the process when the command line makes no sense. */
void parse_options(int argc, char **argv, const struct engine *engine);
bool parse_number(const char *text, __u32 *value);
__attribute__((format(printf, 1, 2))) void complain(const char *format, ...);

/* ---- the run ---- */

extern volatile sig_atomic_t stop; /* set by SIGINT, SIGTERM, SIGHUP and the end of the run */
extern int exit_status;
extern double seconds; /* how long the loop ran */

double now(void); /* CLOCK_MONOTONIC, seconds */
void catch_signals(void);
/*
 * Say "ready" and call `round`, which returns how many packets it received, until it is time to stop. Then go
 * on until it finds nothing more, for DRAIN_SECONDS at most, so that what was received is also counted (but
 * not in tx).
 */
void run(__u32 (*round)(void));
#define DRAIN_SECONDS 0.2

/* ---- the packet ---- */

/* Build the packet that job tx sends; 0, or -1 with the reason on stderr. */
int build_packet(__u8 *packet);

static inline void swap_macs(__u8 *packet)
{
	struct ether_addr *mac = (struct ether_addr *)packet, dst = mac[0];

	mac[0] = mac[1];
	mac[1] = dst;
}

/* ---- the report ---- */

struct counts {
	__u64 received;       /* packets the program was given */
	__u64 sent;           /* packets it handed to the kernel to send */
	__u64 rx_dropped;     /* by the kernel on their way to the program: no buffer, no frame */
	__u64 rx_ring_full;   /* by the kernel because the program's ring was full */
	__u64 kernel_dropped; /* all that the kernel counted as not delivered */
};

/* One JSON object on stdout; `more` prints what only this engine has as `, "name": value` and may be NULL. */
void report(const struct engine *engine, const struct counts *counts, void (*more)(void));

#endif
