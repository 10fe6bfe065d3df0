/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * kernel_xdp: drop, forward and reflect by the kernel alone, as the ceiling of what any socket can reach.
 *
 * It attaches one program of kernel_xdp.bpf.c in native mode, by a BPF link that ends with this process, and
 * sleeps. All work is done where the packets arrive, in the kernel's softirq, so it is on nobody's account
 * here: the process's own seconds say nothing about it.
 */
#include "engine.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The compiled programs, within this one: it runs from any directory. */
__asm__(".section .rodata\n"
	".balign 8\n"
	"object_start: .incbin \"build/kernel_xdp.bpf.o\"\n"
	"object_end:\n"
	".previous\n");
extern const char object_start[], object_end[];

struct counters { /* as in kernel_xdp.bpf.c */
	__u64 received, sent, bytes;
};

static struct counters total;

static __u32 nap(void)
{
	const struct timespec pause = {.tv_nsec = POLL_MS * 1000 * 1000};

	if (!stop)
		nanosleep(&pause, NULL); /* a signal ends it */
	return 0;
}

static bool failed(const char *doing, int err)
{
	complain("%s: %s: %s", opt.in, doing, strerror(err < 0 ? -err : err));
	return false;
}

static bool attach(struct bpf_object *object)
{
	LIBBPF_OPTS(bpf_link_create_opts, native, .flags = XDP_FLAGS_DRV_MODE);
	struct bpf_program *program = bpf_object__find_program_by_name(object, job_names[opt.job]);
	__u32 zero = 0, to;
	int link;

	if (opt.job == FORWARD) {
		to = if_nametoindex(opt.out);
		if (!to)
			return failed("looking for the interface to forward to", errno);
		if (bpf_map_update_elem(bpf_object__find_map_fd_by_name(object, "out"), &zero, &to, 0))
			return failed("writing the device map", errno);
	}
	/* Its descriptor is never closed: the link ends with the process. */
	link = bpf_link_create(bpf_program__fd(program), if_nametoindex(opt.in), BPF_XDP, &native);
	return link >= 0 || failed("attaching the XDP program in native mode", link);
}

static bool read_counters(struct bpf_object *object)
{
	int cpus = libbpf_num_possible_cpus();
	struct counters *each = cpus > 0 ? calloc(cpus, sizeof(*each)) : NULL;
	__u32 zero = 0;

	if (!each || bpf_map_lookup_elem(bpf_object__find_map_fd_by_name(object, "counters"), &zero, each)) {
		free(each);
		return failed("reading the counters", errno);
	}
	for (int i = 0; i < cpus; i++) {
		total.received += each[i].received;
		total.sent += each[i].sent;
		total.bytes += each[i].bytes;
	}
	free(each);
	return true;
}

static const char *objection(void)
{
	return opt.job == TX ? "the kernel has no job tx of its own: live frames are its ceiling" : NULL;
}

static const struct engine engine = {.name = "kernel_xdp", .objection = objection};

static void report_more(void)
{
	printf(", \"received_bytes\": %llu", total.bytes);
}

int main(int argc, char **argv)
{
	struct bpf_object *object;
	int err;

	parse_options(argc, argv, &engine);
	catch_signals();
	if (!opt.verbose)
		libbpf_set_print(NULL);
	object = bpf_object__open_mem(object_start, object_end - object_start, NULL);
	err = object ? bpf_object__load(object) : -errno;
	if (err) {
		failed("loading the BPF programs", err);
		return 1;
	}
	if (!attach(object))
		return 1;
	run(nap);
	if (!read_counters(object))
		return 1;
	report(&engine, &(struct counts){.received = total.received, .sent = total.sent}, report_more);
	bpf_object__close(object);
	return exit_status;
}
