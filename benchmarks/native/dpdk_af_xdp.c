/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * dpdk_af_xdp: DPDK's net_af_xdp driver, with a loop of bursts round it as short as testpmd's.
 *
 * It needs no huge pages and no PCI, and leaves no files. The driver's sockets live on the mbuf pool itself,
 * so what is received on one port and sent on the other is not copied by it. Busy polling, the driver's
 * default, is off unless
 * --busy-budget asks for it: on veth it is slower.
 *
 * Invariant: an mbuf is the driver's or, within one round, ours.
 */
#include "engine.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <limits.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_version.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xdp/libxdp.h>

#define MAX_BURST 512u
#define MAX_PORTS 2
#define CACHE 256 /* mbufs the core keeps by itself; testpmd's is 250 */
#define ROOM 2048 /* bytes of packet an mbuf holds, behind its headroom */
#define TX_RETRIES 64

static struct {
	__u32 busy_budget, mbufs, ring;
} dpdk = {.mbufs = 16384, .ring = 2048};

static struct rte_mempool *pool;
static __u16 n_ports, out_port;
static __u64 received, received_bytes, sent, tx_refused;
static __u32 empty_rounds;
static __u8 packet[ROOM];
static struct pollfd xsk[MAX_PORTS];
static int n_xsk;

/* ---- the data path ---- */

/* A full ring empties only by further bursts: try again as testpmd does, then give up. */
static void transmit(struct rte_mbuf **burst, __u16 n)
{
	__u16 done = rte_eth_tx_burst(out_port, 0, burst, n);

	for (int i = 0; done < n && i < TX_RETRIES; i++)
		done += rte_eth_tx_burst(out_port, 0, burst + done, n - done);
	sent += done;
	if (unlikely(done < n)) {
		tx_refused += n - done;
		rte_pktmbuf_free_bulk(burst + done, n - done);
	}
}

static void idle(void)
{
	if (opt.poll && ++empty_rounds >= opt.spin && !stop)
		poll(xsk, n_xsk, POLL_MS);
}

static inline __attribute__((always_inline)) __u32 receive_round(enum job job)
{
	struct rte_mbuf *burst[MAX_BURST];
	__u16 n = rte_eth_rx_burst(0, 0, burst, opt.batch);
	__u64 bytes = 0;

	if (!n) {
		idle();
		return 0;
	}
	empty_rounds = 0;
	for (__u16 i = 0; i < n; i++) {
		bytes += rte_pktmbuf_pkt_len(burst[i]);
		if (job == REFLECT)
			swap_macs(rte_pktmbuf_mtod(burst[i], __u8 *));
	}
	received += n;
	received_bytes += bytes;
	if (job == DROP)
		rte_pktmbuf_free_bulk(burst, n);
	else
		transmit(burst, n);
	return n;
}

static __u32 drop_round(void)
{
	return receive_round(DROP);
}

static __u32 forward_round(void)
{
	return receive_round(FORWARD);
}

static __u32 reflect_round(void)
{
	return receive_round(REFLECT);
}

/* The packet lies in every mbuf of the pool already. */
static __u32 tx_round(void)
{
	struct rte_mbuf *burst[MAX_BURST];

	if (rte_pktmbuf_alloc_bulk(pool, burst, opt.batch)) {
		rte_eth_tx_burst(out_port, 0, burst, 0); /* takes back what was sent */
		return 0;
	}
	for (__u32 i = 0; i < opt.batch; i++)
		burst[i]->data_len = burst[i]->pkt_len = opt.size;
	transmit(burst, opt.batch);
	return 0;
}

/* ---- opening ---- */

static bool failed(const char *subject, const char *doing, int err)
{
	complain("%s: %s: %s", subject, doing, strerror(err < 0 ? -err : err));
	return false;
}

static int first_cpu(void)
{
	cpu_set_t allowed;

	if (!sched_getaffinity(0, sizeof(allowed), &allowed))
		for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
			if (CPU_ISSET(cpu, &allowed))
				return cpu;
	return 0;
}

static bool open_eal(void)
{
	const char *interfaces[] = {opt.in, opt.out};
	char device[MAX_PORTS][128], cpu[16], megabytes[16], prefix[32];
	/* --no-huge excludes --in-memory, so EAL makes a directory, of our own name; close_all() removes it.
	 */
	char *args[16] = {"dpdk_af_xdp",
			  "--no-huge",
			  "--no-pci",
			  "--no-shconf",
			  "--no-telemetry",
			  "--file-prefix",
			  prefix,
			  "--log-level",
			  opt.verbose ? "debug" : "error",
			  "-l",
			  cpu,
			  "-m",
			  megabytes};
	int n = 13, used;

	snprintf(prefix, sizeof(prefix), "dpdk_af_xdp_%d", getpid());
	n_ports = opt.job == FORWARD ? 2 : 1;
	out_port = n_ports - 1;
	snprintf(cpu, sizeof(cpu), "%d", first_cpu());
	/* Without huge pages, memory is what -m says and no more: the mbufs, rings, and what EAL wants
	 * itself. */
	snprintf(megabytes, sizeof(megabytes), "%u", 64 + dpdk.mbufs / 256);
	for (int i = 0; i < n_ports; i++) {
		used = snprintf(device[i], sizeof(device[i]),
				"--vdev=net_af_xdp%d,iface=%s,start_queue=%u,queue_count=1,busy_budget=%u", i,
				interfaces[i], opt.queue, dpdk.busy_budget);
		if (used >= (int)sizeof(device[i]))
			return failed(interfaces[i], "naming it to EAL", ENAMETOOLONG);
		args[n++] = device[i];
	}
	rte_openlog_stream(stderr); /* stdout is for the report */
	if (!opt.verbose) {
		libbpf_set_print(NULL);
		libxdp_set_print(NULL);
	}
	if (rte_eal_init(n, args) < 0)
		return failed("EAL", "starting", rte_errno);
	if (rte_eth_dev_count_avail() != n_ports) {
		complain("net_af_xdp does not know these interfaces (--verbose says more)");
		return false;
	}
	return true;
}

static bool open_port(__u16 port, const char *name)
{
	const struct rte_eth_conf config = {};
	int err = rte_eth_dev_configure(port, 1, 1, &config);

	if (!err)
		err = rte_eth_rx_queue_setup(port, 0, dpdk.ring, rte_socket_id(), NULL, pool);
	if (!err)
		err = rte_eth_tx_queue_setup(port, 0, dpdk.ring, rte_socket_id(), NULL);
	if (!err)
		err = rte_eth_dev_start(port);
	return !err || failed(name, "opening the port", err);
}

/* The driver keeps its sockets to itself; but only they say how often the RX ring was full, and can be waited
 * for. */
static void find_sockets(void)
{
	struct rlimit files;

	getrlimit(RLIMIT_NOFILE, &files);
	for (int fd = 0; fd < (int)files.rlim_cur && fd < 1024 && n_xsk < MAX_PORTS; fd++) {
		int domain = 0;
		socklen_t len = sizeof(domain);

		if (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) && domain == AF_XDP)
			xsk[n_xsk++] = (struct pollfd){.fd = fd, .events = POLLIN};
	}
}

static void write_packet(struct rte_mempool *from, void *unused, void *object, unsigned int index)
{
	struct rte_mbuf *mbuf = object;

	(void)from, (void)unused, (void)index;
	rte_memcpy((__u8 *)mbuf->buf_addr + RTE_PKTMBUF_HEADROOM, packet, opt.size);
}

static bool open_all(void)
{
	if (opt.job == TX && build_packet(packet))
		return false;
	if (!open_eal())
		return false;
	pool = rte_pktmbuf_pool_create("frames", dpdk.mbufs, CACHE, 0, RTE_PKTMBUF_HEADROOM + ROOM,
				       rte_socket_id());
	if (!pool)
		return failed("mbuf pool", "making it", rte_errno);
	if (opt.job == TX)
		rte_mempool_obj_iter(pool, write_packet, NULL);
	if (!open_port(0, opt.in) || (n_ports > 1 && !open_port(1, opt.out)))
		return false;
	find_sockets();
	return true;
}

static void close_all(void)
{
	char directory[PATH_MAX];

	for (__u16 port = 0; port < rte_eth_dev_count_avail(); port++) {
		rte_eth_dev_stop(port);
		rte_eth_dev_close(port);
	}
	snprintf(directory, sizeof(directory), "%s", rte_eal_get_runtime_dir());
	rte_eal_cleanup();
	rmdir(directory);
}

/* ---- the command line and the report ---- */

static const char usage[] =
    "      --busy-budget N  packets a busy poll, 0 = no busy polling (0; the driver's own default is 64)\n"
    "      --mbufs N        (16384)\n"
    "      --ring N         descriptors of the RX and TX ring (2048)\n";

enum { BUSY_BUDGET = 16, MBUFS, RING };

static const struct extra extras[] = {
    {"busy-budget", BUSY_BUDGET, true},
    {"mbufs", MBUFS, true},
    {"ring", RING, true},
    {},
};

static bool set(int letter, const char *value)
{
	switch (letter) {
	case BUSY_BUDGET:
		return parse_number(value, &dpdk.busy_budget);
	case MBUFS:
		return parse_number(value, &dpdk.mbufs);
	case RING:
		return parse_number(value, &dpdk.ring);
	default:
		return false;
	}
}

static const char *objection(void)
{
	if (opt.batch > MAX_BURST)
		return "--batch is at most 512";
	if (dpdk.busy_budget > 65535)
		return "--busy-budget is at most 65535";
	if (dpdk.mbufs < 8192 || dpdk.mbufs > 1 << 20)
		return "--mbufs is from 8192 to 1048576";
	if (dpdk.ring < 64 || dpdk.ring > 4096 || dpdk.ring & (dpdk.ring - 1))
		return "--ring is a power of two from 64 to 4096";
	if (opt.size > ROOM)
		return "--size is at most 2048";
	return NULL;
}

static const struct engine engine = {"dpdk_af_xdp", usage, extras, set, objection};
static struct rte_eth_stats in_stats, out_stats;

static void report_more(void)
{
	printf(", \"received_bytes\": %llu, \"tx_refused\": %llu, \"imissed\": %llu, \"ierrors\": %llu, "
	       "\"rx_nombuf\": %llu, \"opackets\": %llu, \"oerrors\": %llu, \"busy_budget\": %u, "
	       "\"mbufs\": %u, \"ring\": %u, \"dpdk\": \"%s\"",
	       received_bytes, tx_refused, (__u64)in_stats.imissed, (__u64)in_stats.ierrors,
	       (__u64)in_stats.rx_nombuf, (__u64)out_stats.opackets, (__u64)out_stats.oerrors,
	       dpdk.busy_budget, dpdk.mbufs, dpdk.ring, rte_version());
}

static void report_all(void)
{
	struct counts counts = {.received = received, .sent = sent};

	rte_eth_stats_get(0, &in_stats);
	rte_eth_stats_get(out_port, &out_stats);
	for (int i = 0; i < n_xsk;
	     i++) { /* the one that only sends has nothing to tell but descriptors it lacked */
		struct xdp_statistics stats = {};
		socklen_t len = sizeof(stats);

		getsockopt(xsk[i].fd, SOL_XDP, XDP_STATISTICS, &stats, &len);
		counts.rx_dropped += stats.rx_dropped;
		counts.rx_ring_full += stats.rx_ring_full;
	}
	counts.kernel_dropped = counts.rx_dropped + counts.rx_ring_full;
	report(&engine, &counts, report_more);
}

int main(int argc, char **argv)
{
	static __u32 (*const rounds[])(void) = {drop_round, forward_round, reflect_round, tx_round};
	bool open;

	parse_options(argc, argv, &engine);
	open = open_all();
	catch_signals(); /* after EAL, which may have its own ideas of them */
	if (open) {
		run(rounds[opt.job]);
		report_all();
	} else {
		exit_status = 1;
	}
	close_all();
	return exit_status;
}
