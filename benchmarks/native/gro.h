/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Generic receive offload, on as it is on every device by default: veth takes packets that XDP redirects into it only
 * when its end has a program or GRO. AF_PACKET has no program, so a lab that turned GRO off gets it back for the run.
 */
#ifndef GRO_H
#define GRO_H

#include <stdbool.h>

bool gro_on(const char *interface); /* false: the kernel refused, said on stderr */
void gro_restore(void);             /* as it was before */

#endif
