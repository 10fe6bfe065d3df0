/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a link needs so that AF_PACKET is all that handles its packets. Two programs of two instructions:
 *
 *   XDP, "pass":      veth takes the packets that XDP redirects into it only when its end has a program or
 * GRO; tcx ingress, "drop": runs behind the taps, so the socket has its copy, and keeps the packet from the
 * host's stack, which would otherwise route it, or answer it, on the sender's account.
 *
 * Both hang on descriptors of this process: they end with it, however it ends.
 */
#ifndef TAP_H
#define TAP_H

#include <stdbool.h>

bool tap_link(const char *interface); /* false: the kernel refused, said on stderr */

#endif
