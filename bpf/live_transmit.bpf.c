/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * Live-frame transmit: frames of the Umem out of a port, without a socket buffer.
 *
 * The Umem lies in an array map, so the program sees the same frames as the socket. User space writes descriptors into a
 * ring and runs live_transmit with BPF_PROG_RUN. For each frame the kernel takes a page of its own; the program copies the
 * next descriptor's frame into it and redirects it to the port's device. The consumer index is the completion.
 *
 * What happens behind the redirect no caller is told. Two tracing programs look, each at the runs of the task that is in
 * live_transmit just now: live_xmit counts what the device took and refused, live_pool the runs whose pages outlive them.
 *
 * Invariant: consumed = delivered + dropped + bad, or the rest was swallowed by a device that takes no such frames.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define DESCS 2048 /* AFP_LIVE_RING in live.h */
#define SHORT 64 /* copied in words; the page has so much room at least */
#define LONGEST 4096

/* As much as is looked at; found by BTF (CO-RE). */
struct net_device { int ifindex; } __attribute__((preserve_access_index));

struct live_desc { __u64 addr; __u32 len; __u32 options; };

/* struct afp_live_ring in live.h: `producer` is written by user space, the rest up to the descriptors by the programs. */
struct live_ring {
	__u32 producer;
	__u32 unused[15];
	__u32 consumer;
	__s32 error;      /* the device's last refusal, a negative errno */
	__u64 task;       /* of the run under way; user space clears it */
	__u64 delivered;  /* frames the device took */
	__u64 dropped;    /* frames it refused: its ring, or its peer's, was full */
	__u64 bad;        /* descriptors that fit no frame or not the page, or for a device that is gone */
	__s64 pools_left; /* runs whose pages are still somewhere */
	struct live_desc desc[DESCS];
	__u64 head[DESCS][SHORT / 8] __attribute__((aligned(64))); /* each packet's first bytes */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, LONGEST); /* in fact the Umem and one frame more; the map is given by user space */
} live_umem SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct live_ring);
} live_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} live_device SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} live_pools SEC(".maps");

const volatile __u64 umem_size = 0; /* bytes in frames; the map holds one frame more */

static __always_inline struct live_ring *the_ring(void)
{
	return bpf_map_lookup_elem(&live_ring, &(__u32){0});
}

SEC("xdp")
int live_transmit(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct live_ring *ring = the_ring();
	__u32 zero = 0, at, len, room;
	__u8 *umem = bpf_map_lookup_elem(&live_umem, &zero);
	__u64 addr, *to = data, *from;

	if (!ring || !umem || data + SHORT > data_end)
		return XDP_ABORTED;
	at = ring->consumer;
	if (at == *(volatile __u32 *)&ring->producer)
		return XDP_DROP; /* a run may be longer than the ring: nothing is lost */
	if (!ring->task)
		ring->task = bpf_get_current_task();
	ring->consumer = at + 1;
	/* Read once: user space can write here. */
	addr = *(volatile __u64 *)&ring->desc[at & (DESCS - 1)].addr;
	len = *(volatile __u32 *)&ring->desc[at & (DESCS - 1)].len;
	room = data_end - data;
	if (addr >= umem_size || len > room || len > LONGEST || len < 14)
		goto bad;
	from = (void *)(umem + addr);
	if (len <= SHORT) {
#pragma unroll
		for (int i = 0; i < SHORT / 8; i++)
			to[i] = ring->head[at & (DESCS - 1)][i];
	} else if (bpf_xdp_store_bytes(ctx, 0, from, len)) {
		goto bad;
	}
	if (len != room && bpf_xdp_adjust_tail(ctx, (int)len - (int)room))
		goto bad;
	if (bpf_redirect_map(&live_device, 0, XDP_DROP) == XDP_REDIRECT)
		return XDP_REDIRECT;
bad:
	ring->bad++;
	return XDP_DROP;
}

/* A device's answer to up to 16 frames: (from, to, sent, drops, err). From a loopback (ifindex 1) come those of runs only. */
SEC("tp_btf/xdp_devmap_xmit")
int live_xmit(__u64 *args)
{
	struct live_ring *ring = the_ring();
	const struct net_device *from = (const void *)args[0];

	if (!ring || !ring->task || ring->task != bpf_get_current_task() || from->ifindex != 1)
		return 0;
	ring->delivered += (__s32)args[2];
	ring->dropped += (__s32)args[3];
	if ((__s32)args[4] < 0)
		ring->error = (__s32)args[4];
	return 0;
}

/* The kernel looks whether a run's page_pool can go, at its end and from time to time until it can: (pool, inflight). */
SEC("tp_btf/page_pool_release")
int live_pool(__u64 *args)
{
	struct live_ring *ring = the_ring();
	__s32 inflight = (__s32)args[1];
	__u64 key = args[0];
	__u32 one = 1;

	if (ring && ring->task && ring->task == bpf_get_current_task()) {
		if (inflight > 0 && !bpf_map_update_elem(&live_pools, &key, &one, BPF_NOEXIST))
			__sync_fetch_and_add(&ring->pools_left, 1);
	} else if (ring && ring->pools_left > 0 && inflight == 0 && !bpf_map_delete_elem(&live_pools, &key)) {
		__sync_fetch_and_add(&ring->pools_left, -1);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
