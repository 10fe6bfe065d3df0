#include "bpf_glue.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Per thread, because an error quotes the lines its own call produced. */
static __thread char log_text[8192];
static __thread size_t log_used;

static int keep_line(int level, const char *format, va_list args)
{
	if (level > LIBBPF_INFO)
		return 0;
	char line[4096];
	int printed = vsnprintf(line, sizeof(line), format, args);
	if (printed <= 0)
		return 0;
	size_t size = (size_t)printed < sizeof(line) ? (size_t)printed : sizeof(line) - 1;
	if (log_used + size >= sizeof(log_text)) {
		/* The verifier says why on its last lines: the oldest go. */
		size_t drop = log_used + size + 1 - sizeof(log_text);
		memmove(log_text, log_text + drop, log_used - drop);
		log_used -= drop;
	}
	memcpy(log_text + log_used, line, size);
	log_used += size;
	log_text[log_used] = '\0';
	return printed;
}

static int keep_libbpf(enum libbpf_print_level level, const char *format, va_list args)
{
	return keep_line((int)level, format, args);
}

static int keep_libxdp(enum libxdp_print_level level, const char *format, va_list args)
{
	return keep_line((int)level, format, args);
}

void afp_bpf_log_start(void)
{
	libbpf_set_print(keep_libbpf);
	libxdp_set_print(keep_libxdp);
	log_used = 0;
	log_text[0] = '\0';
}

const char *afp_bpf_log(void)
{
	return log_text;
}

struct bpf_object *afp_object_open(const void *data, size_t size, const char *name)
{
	LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = name);
	return bpf_object__open_mem(data, size, &options);
}

int afp_program_bind(struct bpf_program *program, uint32_t ifindex)
{
	bpf_program__set_ifindex(program, ifindex);
	return bpf_program__set_flags(program, bpf_program__flags(program) | BPF_F_XDP_DEV_BOUND_ONLY);
}

int afp_prog_info(int fd, struct afp_prog_info *out)
{
	struct bpf_prog_info info = {0};
	uint32_t size = sizeof(info);
	memset(out, 0, sizeof(*out));
	info.map_ids = (uintptr_t)out->map_ids;
	info.nr_map_ids = AFP_MAX_MAP_IDS;
	if (bpf_obj_get_info_by_fd(fd, &info, &size))
		return -errno;
	out->id = info.id;
	out->type = info.type;
	out->load_time_ns = info.load_time;
	memcpy(out->tag, info.tag, sizeof(out->tag));
	out->run_time_ns = info.run_time_ns;
	out->run_cnt = info.run_cnt;
	out->map_count = info.nr_map_ids;
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

int afp_map_info(int fd, struct afp_map_info *out)
{
	struct bpf_map_info info = {0};
	uint32_t size = sizeof(info);
	memset(out, 0, sizeof(*out));
	if (bpf_obj_get_info_by_fd(fd, &info, &size))
		return -errno;
	out->id = info.id;
	out->type = info.type;
	out->key_size = info.key_size;
	out->value_size = info.value_size;
	out->max_entries = info.max_entries;
	out->flags = info.map_flags;
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

int afp_link_info(int fd, struct afp_link_info *out)
{
	struct bpf_link_info info = {0};
	uint32_t size = sizeof(info);
	memset(out, 0, sizeof(*out));
	if (bpf_obj_get_info_by_fd(fd, &info, &size))
		return -errno;
	out->id = info.id;
	out->type = info.type;
	out->prog_id = info.prog_id;
	out->ifindex = info.type == BPF_LINK_TYPE_XDP ? info.xdp.ifindex : 0;
	return 0;
}

int afp_map_create(uint32_t type, const char *name, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
		   uint32_t flags)
{
	LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = flags);

	return bpf_map_create(type, name, key_size, value_size, max_entries, &options);
}

int afp_xdp_query(int ifindex, struct afp_hook *out)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, options);
	memset(out, 0, sizeof(*out));
	int failed = bpf_xdp_query(ifindex, 0, &options);
	if (failed)
		return failed;
	out->native_id = options.drv_prog_id;
	out->generic_id = options.skb_prog_id;
	out->hardware_id = options.hw_prog_id;
	return 0;
}

int afp_xdp_attach(int ifindex, int prog_fd, uint32_t flags, int expected_prog_fd)
{
	LIBBPF_OPTS(bpf_xdp_attach_opts, options);
	if (expected_prog_fd >= 0) {
		options.old_prog_fd = expected_prog_fd;
		flags |= XDP_FLAGS_REPLACE;
	}
	return bpf_xdp_attach(ifindex, prog_fd, flags, &options);
}

int afp_xdp_link(int prog_fd, int ifindex, uint32_t flags)
{
	LIBBPF_OPTS(bpf_link_create_opts, options, .flags = flags);
	return bpf_link_create(prog_fd, ifindex, BPF_XDP, &options);
}

int afp_prog_run(int prog_fd, const void *data, uint32_t size, void *out, struct afp_run *run)
{
	/* The kernel takes a context only with data_end equal to the frame's length. */
	struct xdp_md context = {
		.data_end = size,
		.ingress_ifindex = run->ifindex,
		.rx_queue_index = run->queue,
	};
	LIBBPF_OPTS(bpf_test_run_opts, options,
		.data_in = data,
		.data_size_in = size,
		.data_out = out,
		.data_size_out = out ? run->out_size : 0,
		.ctx_in = run->ifindex ? &context : NULL,
		.ctx_size_in = run->ifindex ? sizeof(context) : 0,
		.repeat = (int)run->repeat,
		.batch_size = run->batch,
		.flags = run->flags,
	);
	int failed = bpf_prog_test_run_opts(prog_fd, &options);
	run->retval = options.retval;
	run->duration_ns = options.duration;
	run->out_size = options.data_size_out;
	return failed;
}
