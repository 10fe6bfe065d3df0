/* SPDX-License-Identifier: BSD-3-Clause */
/* Waiting until the driver has let go of a queue. See release.h. */
#include "release.h"

#include <errno.h>
#include <linux/if_xdp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 4096

int afp_waiter_open(void)
{
	int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	void *area = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct xdp_umem_reg umem = {.addr = (uintptr_t)area, .len = CHUNK, .chunk_size = CHUNK};
	int entries = 2, err = 0;

	/* A bind wants memory and three rings, used or not. */
	if (fd < 0 || area == MAP_FAILED || setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof(umem)) ||
	    setsockopt(fd, SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof(entries)) ||
	    setsockopt(fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, sizeof(entries)) ||
	    setsockopt(fd, SOL_XDP, XDP_TX_RING, &entries, sizeof(entries)))
		err = -errno;
	if (area != MAP_FAILED)
		munmap(area, CHUNK); /* the kernel has pinned it */
	if (err && fd >= 0)
		close(fd);
	return err ? err : fd;
}

int afp_waiter_wait(int fd, uint32_t ifindex, uint32_t queue, uint32_t timeout_ms)
{
	const struct timespec step = {.tv_nsec = 1000000};
	struct sockaddr_xdp to = {
		.sxdp_family = AF_XDP, .sxdp_flags = XDP_COPY, .sxdp_ifindex = ifindex, .sxdp_queue_id = queue,
	};
	int err = 0;

	/* Any other error says that the device is down or gone, and so is the driver's hold on the frames. */
	while (bind(fd, (struct sockaddr *)&to, sizeof(to)) && errno == EBUSY) {
		if (!timeout_ms--) {
			err = -ETIMEDOUT;
			break;
		}
		nanosleep(&step, NULL);
	}
	close(fd);
	return err;
}
