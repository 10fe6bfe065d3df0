/* SPDX-License-Identifier: BSD-3-Clause */
#include "tap.h"
#include "engine.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <net/if.h>
#include <string.h>

#define TCX_INGRESS 46 /* BPF_TCX_INGRESS, Linux 6.6, include/uapi/linux/bpf.h */

/* A program that returns `verdict`, on the link for as long as we live; a negative errno when it can't be. */
static int attach(const char *interface, enum bpf_prog_type type, int where, int verdict)
{
	const struct bpf_insn returns[] = {
	    {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = verdict},
	    {.code = BPF_JMP | BPF_EXIT},
	};
	int program = bpf_prog_load(type, "tap", "Dual BSD/GPL", returns, 2, NULL);

	return program < 0 ? program : bpf_link_create(program, if_nametoindex(interface), where, NULL);
}

bool tap_link(const char *interface)
{
	int link = attach(interface, BPF_PROG_TYPE_XDP, BPF_XDP, XDP_PASS);

	if (link < 0) {
		complain("%s: cannot attach the XDP program: %s", interface, strerror(-link));
		return false;
	}
	link = attach(interface, BPF_PROG_TYPE_SCHED_CLS, TCX_INGRESS, TC_ACT_SHOT);
	if (link < 0)
		complain("%s: the host's stack sees every packet, too (no tcx: %s)", interface,
			 strerror(-link));
	return true;
}
