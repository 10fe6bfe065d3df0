/* What Python may call and see of the engine; explained in the headers these come from. */

#define AFP_WRONG_THREAD ...
#define AFP_CLOSED ...
#define AFP_STATES 5
#define AFP_BATCH_MAX ...
#define AFP_REFUSALS ...
#define AFP_WRONGS ...
#define AFP_RING_DEFAULT ...
#define AFP_RING_MAX ...
#define XDP_COPY ...
#define XDP_ZEROCOPY ...
#define XDP_USE_SG ...
#define AFP_CONTD ...
#define AFP_PACKET_FRAMES ...
#define XDP_USE_NEED_WAKEUP ...

/* table.h */
struct afp_rx_metadata;
#define AFP_RX_TIMESTAMP ...
#define AFP_RX_ARRIVAL ...
struct afp_table { uint32_t nframes; uint32_t nfree; uint32_t frame_size; uint32_t headroom; uint64_t foreign_puts; struct afp_rx_metadata *known; ...; };
struct afp_desc { uint64_t addr; uint32_t len; uint16_t options; uint16_t gen; };
int afp_table_init(struct afp_table *t, void *area, uint32_t nframes, uint32_t frame_size, uint32_t headroom);
int afp_table_init_unaligned(struct afp_table *t, void *area, uint32_t nframes, uint32_t frame_size, uint32_t headroom);
#define AFP_BLOCK ...
void afp_table_fini(struct afp_table *t);
void afp_table_reap(struct afp_table *t);

/* pool.h */
struct afp_pool {
	uint32_t id; uint32_t serial; uint32_t quota; uint32_t ncache; uint32_t ring_size; uint32_t ring_head; uint32_t ring_tail; uint32_t nspill;
	...;
};
struct afp_pool_stats {
	uint64_t alloc_fast, alloc_slow, alloc_slow_high_order, alloc_empty, alloc_refill, alloc_waive;
	uint64_t recycle_cached, recycle_cache_full, recycle_ring, recycle_ring_full, recycle_released_refcnt;
	uint64_t alloc_failed, alloc_quota, remote_batches, remote_frames, late_refused;
	uint32_t hold_cnt, release_cnt;
};
struct afp_refusal { uint32_t index; uint32_t reason; uint64_t addr; };
struct afp_refusals { uint32_t n; struct afp_refusal item[16]; };
struct afp_pool *afp_pool_create(struct afp_table *t, uint32_t ring_size, uint32_t quota);
int afp_pool_destroy(struct afp_pool *p);
int afp_pool_bind(struct afp_pool *p);
int afp_pool_unbind(struct afp_pool *p);
int afp_pool_flush(struct afp_pool *p);
int afp_pool_collect(struct afp_pool *p);
int afp_pool_owner_tid(const struct afp_pool *p);
int afp_pool_life(const struct afp_pool *p);
void afp_pool_read_stats(const struct afp_pool *p, struct afp_pool_stats *out);
int afp_pool_alloc(struct afp_pool *p, struct afp_desc *out, uint32_t n);
uint32_t afp_put(struct afp_table *t, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused);
uint32_t afp_put_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n);
uint32_t afp_ref_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n);
uint32_t afp_keep_all(struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint32_t *done);
uint32_t afp_put_noted(struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint32_t *done);
struct afp_refusals *afp_last_refusals(void);

/* ring.h, port.h */
struct afp_mock_ring { uint32_t producer; uint32_t consumer; uint32_t flags; uint32_t size; void *entries; };
struct afp_port_stats {
	uint64_t fill_submitted, rx_packets, rx_bytes, rx_bad, tx_packets, tx_bytes, tx_completed, completion_bad;
	uint64_t tx_kicks, tx_again, tx_busy, tx_errors, rx_kicks, fill_reclaimed, tx_reclaimed, rx_parts, tx_parts, tx_completed_parts;
};
struct xsk_ring_prod { uint32_t cached_prod; uint32_t cached_cons; ...; };
struct xsk_ring_cons { uint32_t cached_prod; uint32_t cached_cons; ...; };
struct afp_tap;
struct afp_port {
	uint32_t id; uint32_t fill_level; int fd; int error; bool busy_poll; bool multi_buffer, by_packet; uint32_t max_frames, rx_next;
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons rx, comp;
	struct afp_mock_ring mock[4];
	struct afp_tap *tap;
	...;
};
struct afp_port_config {
	const char *netdev;
	uint32_t queue;
	uint32_t fill_size, comp_size, rx_size, tx_size;
	uint32_t bind_flags;
	uint32_t umem_flags;
	uint32_t tx_budget;
	int busy_poll_us, busy_poll_budget;
};
enum afp_stage { AFP_STAGE_NONE, AFP_STAGE_TABLE, AFP_STAGE_UMEM, AFP_STAGE_BIND, AFP_STAGE_BUSY_POLL };
struct afp_port *afp_port_new(struct afp_table *t, struct afp_pool *pool, uint32_t fill_level);
int afp_port_open(struct afp_port *port, const struct afp_port_config *config, int *stage);
int afp_port_mock(struct afp_port *port, uint32_t fill_size, uint32_t comp_size, uint32_t rx_size, uint32_t tx_size);
void afp_port_close(struct afp_port *port);
void afp_port_end(struct afp_port *port);
void afp_port_abandon(struct afp_port *port);
void afp_port_forget(struct afp_port *port);
void afp_port_read_stats(const struct afp_port *port, struct afp_port_stats *out);
void afp_port_ring_levels(struct afp_port *port, uint32_t *out);
int afp_port_fill(struct afp_port *port, uint32_t n);
uint32_t afp_port_receive(struct afp_port *port, struct afp_desc *out, uint32_t n);
uint32_t afp_port_transmit(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused);
uint32_t afp_port_transmit_noted(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused,
				 uint32_t *done);
uint32_t afp_port_complete(struct afp_port *port, uint32_t n);
uint32_t afp_receive_packets(struct afp_port *port, struct afp_desc *out, uint32_t room, uint32_t packets);
int afp_port_kick(struct afp_port *port);
void afp_port_wake_rx(struct afp_port *port);
struct afp_turn { uint32_t completed, waiting, in_tx, missing; int error; };
int afp_port_recycle(struct afp_port *port, struct afp_turn *out);
int afp_port_zero_copy(const struct afp_port *port);
int afp_port_kernel_stats(const struct afp_port *port, uint64_t *out);

/* lease.c */
int afp_socket_tune(int fd, const struct afp_port_config *c, int *stage);
int afp_lease_make(void *area, uint64_t size, uint32_t frame_size, uint32_t headroom, const uint64_t *stock, uint32_t n, const struct afp_port_config *config, int *stage);
int afp_lease_stock(struct afp_port *port, uint32_t fill_size, uint32_t most);
int afp_lease_take(struct afp_port *port, int fd, const struct afp_port_config *config);

/* live.h */
#define AFP_LIVE_RING ...
#define AFP_LIVE_LEAST ...
#define AFP_LIVE_LONGEST ...
#define AFP_LIVE_SLICE ...
#define AFP_LIVE_POOLS ...
enum afp_trouble { AFP_LIVE_FINE, AFP_LIVE_SILENT, AFP_LIVE_UNABLE, AFP_LIVE_FAILED, AFP_LIVE_POOLED };
struct xdp_desc { uint64_t addr; uint32_t len; uint32_t options; };
struct afp_live_ring {
	uint32_t producer, consumer; int32_t error; uint64_t task, delivered, dropped, bad; int64_t pools_left;
	struct xdp_desc desc[...];
	...;
};
struct afp_live_stats {
	uint64_t frames, delivered, dropped, resent, slices, stalls, longest_ns, pools_left, pools_left_most;
};
struct afp_live { struct afp_live_ring *ring; uint32_t home, least, longest, held; uint64_t not_before_ns; int trouble; int error; ...; };
typedef int (*afp_live_run)(struct afp_live *live, uint32_t n, uint32_t longest);
void afp_live_init(struct afp_live *live, struct afp_live_ring *ring, int program, uint32_t least);
void afp_live_play(struct afp_live *live, afp_live_run run, void *user);
void afp_live_read_stats(const struct afp_live *live, struct afp_live_stats *out);
void afp_port_set_live(struct afp_port *port, struct afp_live *live);
extern "Python" int afp_python_run(struct afp_live *live, uint32_t n, uint32_t longest);

/* tap.h */
enum afp_way { AFP_IN, AFP_OUT };
struct afp_tap_ring { uint8_t *data; uint64_t size; uint64_t head; uint64_t tail; };
struct afp_tap { struct afp_tap_ring *ring; uint32_t interface, queue; uint32_t snaplen; uint32_t ways; uint32_t stamp; uint64_t tai_ahead_ns; uint64_t taken, dropped; };
void afp_port_set_tap(struct afp_port *port, struct afp_tap *tap);
uint64_t afp_tap_take(struct afp_tap_ring *ring, uint8_t *out, uint64_t size);
void afp_tap_counts(const struct afp_tap *tap, uint64_t *out);
uint32_t afp_tap_walk(const uint8_t *data, uint64_t size, uint32_t *starts);

/* audit.h */
struct afp_wrong_item { uint32_t frame; uint32_t what; uint64_t word; int64_t expected, found; };
struct afp_audit {
	uint32_t nframes;
	uint32_t state[5];
	uint32_t inbox;
	uint32_t nwrong;
	struct afp_wrong_item wrong[64];
};
int afp_audit(struct afp_table *t, struct afp_audit *out);
void afp_frame_words(const struct afp_table *t, uint64_t *out);
uint64_t afp_frame_word(const struct afp_table *t, uint32_t frame);
void afp_frame_states(const struct afp_table *t, uint8_t *out);
void afp_count_states(const struct afp_table *t, uint32_t *out);
uint32_t afp_held(const struct afp_table *t, const struct afp_desc *descs, uint32_t n, uint8_t *out);

/* engine.h */
struct afp_tx_metadata { uint64_t flags; uint16_t checksum_start, checksum_offset; ...; };
struct afp_route { uint8_t receive; uint8_t verdict; uint8_t rewrite; uint8_t dst[6], src[6]; };
struct afp_generator {
	struct afp_pool *pool;
	uint32_t port;
	uint32_t templates;
	const uint8_t *data;
	const uint32_t *offset;
	const uint32_t *first;
	const struct afp_tx_metadata *request;
	uint64_t stamp_every_ns, stamped_ns;
	uint64_t count;
	double rate;
	uint32_t sequence_at;
	uint32_t checksum_at;
	uint32_t *written;
	uint64_t sent;
	uint64_t started_ns;
};
enum afp_why { AFP_RAN_DEADLINE, AFP_RAN_STOP, AFP_RAN_COUNT, AFP_RAN_BATCH, AFP_RAN_ERROR, AFP_RAN_WRONG_THREAD, AFP_RAN_VERDICT };
struct afp_engine_stats {
	uint64_t rounds, idle_rounds, sleeps, dropped, reflected, forwarded, kept, refused;
	uint64_t handler_calls, handler_timed, handler_ns, handler_longest_ns, handler_slow;
};
struct afp_engine {
	uint32_t nports, batch;
	struct afp_route route[64];
	struct afp_generator *generator;
	uint64_t packet_limit, received;
	uint32_t busy_port, busy_n, busy_frames;
	bool multi;
	int failed_port;
	struct afp_desc descs[1024];
	uint8_t verdicts[1024];
	struct afp_desc origin[1024];
	uint32_t start[1025];
	uint32_t bad_verdicts;
	...;
};
int afp_engine_init(struct afp_engine *e, struct afp_table *t, uint32_t batch, uint32_t spin);
void afp_engine_fini(struct afp_engine *e);
int afp_engine_add(struct afp_engine *e, struct afp_port *port);
void afp_engine_stop(struct afp_engine *e);
void afp_engine_clear_stop(struct afp_engine *e);
int afp_engine_run(struct afp_engine *e, uint64_t deadline_ns);
typedef void (*afp_handler)(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port, void *user);
typedef int (*afp_packet_handler)(uint8_t *packet, uint32_t length, uint32_t port, void *user);
struct afp_per_packet { afp_packet_handler handle; void *user; };
void afp_call_per_packet(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port, void *user);
int afp_engine_run_compiled(struct afp_engine *e, uint64_t deadline_ns, afp_handler handler, void *user);
void afp_show_parts(const struct afp_table *t, const struct afp_desc *frames, const uint32_t *start, uint32_t n);
int64_t afp_engine_turn(struct afp_engine *e, uint64_t deadline_ns, int all);
uint32_t afp_engine_drain(struct afp_engine *e, uint64_t deadline_ns);
void afp_engine_read_stats(const struct afp_engine *e, struct afp_engine_stats *out);
uint64_t afp_now_ns(void);

/* fragments and hooks */
#define AFP_TOO_LARGE ...
int afp_pool_alloc_fragments(struct afp_pool *p, struct afp_desc *out, uint32_t n, uint32_t size);
typedef void (*afp_pool_hook)(void *user, int event, const uint32_t *frames, uint32_t n);
void afp_pool_set_hook(struct afp_pool *p, afp_pool_hook hook, void *user);
extern "Python" void afp_python_hook(void *user, int event, const uint32_t *frames, uint32_t n);

/* fields.h */
struct afp_packets { const struct afp_desc *descs; uint8_t *area; uint64_t size; uint32_t n; const struct afp_desc *frames; const int64_t *starts; };
struct afp_five_tuple {
	uint32_t *src, *dst;
	uint64_t *src6, *dst6;
	uint16_t *sport, *dport;
	uint8_t *proto;
	uint8_t *version;
	uint32_t *l4;
	uint8_t *valid;
};
void afp_load(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint32_t width, int swap, void *out);
uint32_t afp_store(const struct afp_packets *p, const uint32_t *base, uint32_t offset, uint32_t width, int swap, const void *values, const uint8_t *where);
uint32_t afp_swap_macs(const struct afp_packets *p, const uint8_t *where);
void afp_five_tuples(const struct afp_packets *p, const struct afp_five_tuple *out);

/* metadata.h */
struct afp_rx_columns {
	uint64_t *timestamp, *arrival;
	uint32_t *hash;
	uint16_t *hash_type, *vlan_tci, *vlan_proto;
	uint8_t *has_hash, *has_timestamp, *has_vlan, *has_arrival;
};
int afp_port_want_metadata(struct afp_port *port);
void afp_rx_columns(const struct afp_table *t, const struct afp_desc *descs, uint32_t n, const struct afp_rx_columns *out);

/* requests.h */
#define XDP_UMEM_TX_SW_CSUM ...
#define XDP_UMEM_TX_METADATA_LEN ...
#define AFP_STAMPS ...
#define AFP_TX_ROOM ...
#define AFP_TX_OPTION ...
enum afp_request { AFP_ASK_TIMESTAMP, AFP_ASK_CHECKSUM, AFP_ASK_LAUNCH, ... };
struct afp_stamp { uint64_t number, timestamp; };
void afp_tx_ask(const struct afp_table *t, const struct afp_packets *p, enum afp_request what, const uint64_t *values, const uint8_t *where, uint8_t *done);
int afp_port_want_requests(struct afp_port *port, bool stamps);
uint32_t afp_port_take_stamps(struct afp_port *port, struct afp_stamp *out, uint32_t n, uint64_t *lost);

/* headers.h */
enum afp_header { AFP_ETH, AFP_VLAN, AFP_ARP, AFP_IPV4, AFP_IPV6, AFP_TCP, AFP_UDP, AFP_ICMP, AFP_ICMPV6 };
#define AFP_RSS_KEY ...
struct afp_toeplitz { ...; };
void afp_header_find(const struct afp_packets *p, enum afp_header kind, uint32_t *at, uint8_t *valid);
int64_t afp_header_of(const struct afp_packets *p, uint32_t i, enum afp_header kind);
void afp_header_load(const struct afp_packets *p, enum afp_header kind, uint32_t offset, uint32_t width, void *out);
uint32_t afp_header_store(const struct afp_packets *p, enum afp_header kind, uint32_t offset, uint32_t width, const void *values, const uint8_t *where);
bool afp_checksum_begin(const struct afp_packets *p, uint32_t i, uint16_t *start, uint16_t *offset);
uint32_t afp_checksum_fill(const struct afp_packets *p, uint32_t kinds, const uint8_t *where);
void afp_checksum_verify(const struct afp_packets *p, uint32_t kinds, uint8_t *good);
uint32_t afp_decrement_ttl(const struct afp_packets *p, const uint8_t *where, uint8_t *expired);
void afp_toeplitz_init(struct afp_toeplitz *t, const uint8_t *key);
void afp_rss_hash(const struct afp_packets *p, const struct afp_toeplitz *t, int ports, uint32_t *out);
void afp_flow_hash(const struct afp_packets *p, int symmetric, uint64_t seed, uint64_t *out);
