/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Waiting until the driver has let go of a queue.
 *
 * close() on an AF_XDP socket returns before a zero-copy driver has stopped: the kernel unbinds in a work item
 * (net/xdp/xsk_buff_pool.c, xp_put_pool()), and until then the NIC may write to the frames it was given. The same work item
 * makes the queue free for other sockets, after the driver has stopped (xp_clear_dev()). So a second socket, made while the
 * first was opened, asks for the queue until it gets it. It asks for copy mode, of which the driver learns nothing.
 */
#ifndef AFXDP_POOL_RELEASE_H
#define AFXDP_POOL_RELEASE_H

#include <stdint.h>

/* A socket that can be bound; it is of this thread's network namespace. Or a negative errno. */
int afp_waiter_open(void);
/* Binds it to the queue as soon as nobody has it, and closes it. 0, or -ETIMEDOUT after `timeout_ms`. */
int afp_waiter_wait(int fd, uint32_t ifindex, uint32_t queue, uint32_t timeout_ms);

#endif
