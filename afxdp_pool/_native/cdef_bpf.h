/* libbpf and libxdp as Python sees them; see bpf_glue.h for the afp_ part. */

struct bpf_object;
struct bpf_program;
struct bpf_map;
struct xdp_program;
struct xdp_multiprog;

#define BPF_ANY ...
#define BPF_NOEXIST ...
#define BPF_EXIST ...
#define BPF_F_MMAPABLE ...
#define BPF_F_TEST_XDP_LIVE_FRAMES ...
#define BPF_PROG_TYPE_XDP ...
#define BPF_LINK_TYPE_XDP ...
#define BPF_MAP_TYPE_ARRAY ...
#define BPF_MAP_TYPE_PERCPU_ARRAY ...
#define BPF_MAP_TYPE_PERCPU_HASH ...
#define BPF_MAP_TYPE_LRU_PERCPU_HASH ...
#define XDP_FLAGS_UPDATE_IF_NOEXIST ...
#define XDP_FLAGS_SKB_MODE ...
#define XDP_FLAGS_DRV_MODE ...
#define XDP_FLAGS_HW_MODE ...
#define XDP_MODE_UNSPEC ...
#define XDP_MODE_NATIVE ...
#define XDP_MODE_SKB ...
#define XDP_MODE_HW ...
#define CLONE_NEWNET ...

int libbpf_num_possible_cpus(void);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct bpf_program *bpf_object__find_program_by_name(const struct bpf_object *obj, const char *name);
int bpf_program__fd(const struct bpf_program *prog);
uint32_t bpf_program__flags(const struct bpf_program *prog);
int bpf_program__set_flags(struct bpf_program *prog, uint32_t flags);
#define BPF_F_XDP_HAS_FRAGS ...
struct bpf_map *bpf_object__find_map_by_name(const struct bpf_object *obj, const char *name);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);
const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int bpf_map__set_max_entries(struct bpf_map *map, uint32_t max_entries);
const void *bpf_map__initial_value(struct bpf_map *map, size_t *psize);

int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_prog_get_fd_by_id(uint32_t id);
int bpf_map_get_fd_by_id(uint32_t id);
int bpf_link_get_fd_by_id(uint32_t id);
int bpf_prog_get_next_id(uint32_t start_id, uint32_t *next_id);
int bpf_link_get_next_id(uint32_t start_id, uint32_t *next_id);
int bpf_link_detach(int link_fd);
int bpf_raw_tracepoint_open(const char *name, int prog_fd);
int bpf_obj_get(const char *pathname);

long libxdp_get_error(const void *ptr);
struct xdp_program *xdp_program__from_bpf_obj(struct bpf_object *obj, const char *section_name);
struct xdp_program *xdp_program__from_fd(int fd);
void xdp_program__close(struct xdp_program *prog);
uint32_t xdp_program__id(const struct xdp_program *prog);
int xdp_program__attach(struct xdp_program *prog, int ifindex, int mode, unsigned int flags);
int xdp_program__detach(struct xdp_program *prog, int ifindex, int mode, unsigned int flags);
struct xdp_multiprog *xdp_multiprog__get_from_ifindex(int ifindex);
struct xdp_program *xdp_multiprog__next_prog(const struct xdp_program *prog, const struct xdp_multiprog *mp);
int xdp_multiprog__detach(struct xdp_multiprog *mp);
void xdp_multiprog__close(struct xdp_multiprog *mp);

int setns(int fd, int nstype);
int unshare(int flags);
long syscall(long number, ...);

struct afp_prog_info {
	uint32_t id;
	uint32_t type;
	uint64_t load_time_ns;
	uint32_t map_count;
	uint32_t map_ids[32];
	char name[16];
	uint8_t tag[8];
	uint64_t run_time_ns, run_cnt;
};

struct afp_map_info {
	uint32_t id;
	uint32_t type;
	uint32_t key_size;
	uint32_t value_size;
	uint32_t max_entries;
	uint32_t flags;
	char name[16];
};

struct afp_link_info {
	uint32_t id;
	uint32_t type;
	uint32_t prog_id;
	uint32_t ifindex;
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
	uint32_t ifindex;
	uint32_t queue;
	uint32_t retval;
	uint32_t duration_ns;
	uint32_t out_size;
};

void afp_bpf_log_start(void);
const char *afp_bpf_log(void);
struct bpf_object *afp_object_open(const void *data, size_t size, const char *name);
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
