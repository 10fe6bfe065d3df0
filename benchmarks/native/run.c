/* SPDX-License-Identifier: BSD-3-Clause */
/* Beginning and end of an engine's loop, and the report. */
#include "engine.h"

#include <stdio.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

volatile sig_atomic_t stop;
int exit_status;
double seconds;

static void on_signal(int signum)
{
	(void)signum;
	stop = 1;
}

void catch_signals(void)
{
	const struct sigaction action = {.sa_handler = on_signal};

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	sigaction(SIGALRM, &action, NULL);
	signal(SIGPIPE, SIG_IGN); /* a reader that went away must not keep us from detaching */
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec * 1e-9;
}

/* A signal for the end of the run: the loop reads no clock. */
static void set_alarm(double after)
{
	struct itimerval timer = {};

	timer.it_value.tv_sec = (time_t)after;
	timer.it_value.tv_usec = (suseconds_t)((after - (time_t)after) * 1e6);
	setitimer(ITIMER_REAL, &timer, NULL);
}

void run(__u32 (*round)(void))
{
	double start, deadline;

	fputs("ready\n", stderr);
	set_alarm(opt.duration > 0 ? opt.duration : MAX_SECONDS);
	start = now();
	while (!stop)
		round();
	seconds = now() - start;
	deadline = now() + DRAIN_SECONDS;
	while (opt.job != TX && !exit_status && round() && now() < deadline)
		;
}

static double seconds_of(struct timeval time)
{
	return time.tv_sec + time.tv_usec * 1e-6;
}

void report(const struct engine *engine, const struct counts *counts, void (*more)(void))
{
	__u64 packets = opt.job == TX ? counts->sent : counts->received;
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	printf(
	    "{\"engine\": \"%s\", \"job\": \"%s\", \"received\": %llu, \"sent\": %llu, \"rx_dropped\": %llu, "
	    "\"rx_ring_full\": %llu, \"kernel_dropped\": %llu, \"seconds\": %.6f, \"pps\": %.1f, "
	    "\"user_seconds\": %.6f, \"sys_seconds\": %.6f, \"batch\": %u",
	    engine->name, job_names[opt.job], counts->received, counts->sent, counts->rx_dropped,
	    counts->rx_ring_full, counts->kernel_dropped, seconds, seconds > 0 ? packets / seconds : 0,
	    seconds_of(usage.ru_utime), seconds_of(usage.ru_stime), opt.batch);
	if (more)
		more();
	puts("}");
	fflush(stdout);
}
