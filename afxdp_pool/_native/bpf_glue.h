/* libbpf and libxdp behind plain arguments: option structs, info structs and the print callbacks stay in C,
 * where their size is the one of the installed headers. Every function returns 0 (or a descriptor) or -errno. */
#pragma once

#include <sched.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <xdp/libxdp.h>

#define AFP_MAX_MAP_IDS 32

#ifndef BPF_F_XDP_DEV_BOUND_ONLY /* Linux 6.3 */
#define BPF_F_XDP_DEV_BOUND_ONLY (1U << 6)
#endif

struct afp_prog_info {
	uint32_t id;
	uint32_t type;
	uint64_t load_time_ns; /* CLOCK_BOOTTIME */
	uint32_t map_count;    /* may be more than map_ids holds */
	uint32_t map_ids[AFP_MAX_MAP_IDS];
	char name[BPF_OBJ_NAME_LEN];
	uint8_t tag[BPF_TAG_SIZE];
	uint64_t run_time_ns, run_cnt; /* counted while kernel.bpf_stats_enabled is set */
};

struct afp_map_info {
	uint32_t id;
	uint32_t type;
	uint32_t key_size;
	uint32_t value_size;
	uint32_t max_entries;
	uint32_t flags;
	char name[BPF_OBJ_NAME_LEN];
};

struct afp_link_info {
	uint32_t id;
	uint32_t type;
	uint32_t prog_id;
	uint32_t ifindex; /* of an XDP link, 0 otherwise */
};

struct afp_hook {
	uint32_t native_id;
	uint32_t generic_id;
	uint32_t hardware_id;
};

struct afp_run {
	uint32_t repeat;
	uint32_t batch;
	uint32_t flags;
	uint32_t ifindex; /* 0: the context is left to the kernel */
	uint32_t queue;
	uint32_t retval;      /* out */
	uint32_t duration_ns; /* out */
	uint32_t out_size;    /* in: room, out: length */
};

void afp_bpf_log_start(void);
const char *afp_bpf_log(void);

struct bpf_object *afp_object_open(const void *data, size_t size, const char *name);
/* Load it for that device alone, so that it may ask the driver for metadata (Linux 6.3). */
int afp_program_bind(struct bpf_program *program, uint32_t ifindex);
int afp_prog_info(int fd, struct afp_prog_info *out);
int afp_map_info(int fd, struct afp_map_info *out);
int afp_link_info(int fd, struct afp_link_info *out);
int afp_map_create(uint32_t type, const char *name, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
		   uint32_t flags);
int afp_xdp_query(int ifindex, struct afp_hook *out);
int afp_xdp_attach(int ifindex, int prog_fd, uint32_t flags, int expected_prog_fd);
int afp_xdp_link(int prog_fd, int ifindex, uint32_t flags);
int afp_prog_run(int prog_fd, const void *data, uint32_t size, void *out, struct afp_run *run);
