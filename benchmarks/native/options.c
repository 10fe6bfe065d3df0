/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line of the peer. */
#include "peer.h"

#include <getopt.h>
#include <linux/if_link.h>
#include <netinet/ether.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xdp/xsk.h>

#define MIN_PACKET 60u

const char *const mode_names[] = {"drop", "forward", "reflect", "tx"};

struct options opt = {
    .batch = 64,
    .frames = 8192,
    .frame_size = 4096,
    .fill = 4096,
    .ring = XSK_RING_PROD__DEFAULT_NUM_DESCS,
    .size = 64,
    .tx_budget = 256,
    .spin = 1000,
    .duration = 10,
    .bind_flags = XDP_USE_NEED_WAKEUP,
    .dst = {{0x02, 0, 0, 0, 0, 0x02}},
};

void complain(const char *format, ...)
{
	va_list args;

	fputs("peer: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

static const char usage[] =
    "usage: peer drop|reflect -i IF [options]\n"
    "       peer forward -i IF -o IF [options]\n"
    "       peer tx -i IF [--size N] [--dst-mac MAC] [--template-hex HEX] [options]\n"
    "\n"
    "  -i, --in IF          interface to receive from (tx: to send to)\n"
    "  -o, --out IF         interface to forward to\n"
    "  -q, --queue N        queue, on both interfaces (0)\n"
    "  -d, --duration S     seconds, 0 = until SIGINT or SIGTERM (10)\n"
    "  -b, --batch N        packets a round (64)\n"
    "  -n, --frames N       frames of the UMEM (8192)\n"
    "  -f, --frame-size N   bytes, 2048 or 4096 (4096)\n"
    "  -F, --fill N         frames kept in the fill ring, at most twice the ring size (4096)\n"
    "  -r, --ring N         descriptors of the RX, TX and completion ring; the fill ring has twice that "
    "(2048)\n"
    "  -B, --tx-budget N    packets a sendto, 0 = leave the kernel's default of 32 (256)\n"
    "  -c, --copy           force copy mode\n"
    "  -z, --zero-copy      force zero-copy mode\n"
    "  -S, --skb            generic XDP instead of native\n"
    "  -p, --poll           sleep in poll after --spin empty rounds, instead of a busy loop (not in tx)\n"
    "      --spin N         (1000)\n"
    "  -v, --verbose        show what libbpf and libxdp have to say\n"
    "      --size N         bytes of a sent packet, without FCS (64)\n"
    "      --dst-mac MAC    (02:00:00:00:00:02)\n"
    "      --template-hex H bytes to lay over the start of the sent packet\n"
    "\n"
    "Prints \"ready\" on stderr when the loop starts, and one JSON object on stdout at the end.\n";

static bool parse_number(const char *text, __u32 *value)
{
	char *end;
	unsigned long parsed = strtoul(text, &end, 0);

	if (end == text || *end || *text == '-' || parsed > UINT32_MAX)
		return false;
	*value = parsed;
	return true;
}

static bool parse_hex(const char *text)
{
	while (text[0] && text[1] && opt.template_len < sizeof(opt.template)) {
		const char byte[3] = {text[0], text[1], 0};
		char *end;

		opt.template[opt.template_len++] = strtoul(byte, &end, 16);
		if (*end)
			return false;
		text += 2;
	}
	return !*text;
}

static bool parse(int argc, char **argv)
{
	static const struct option longs[] = {
	    {"in", 1, NULL, 'i'},         {"out", 1, NULL, 'o'},   {"queue", 1, NULL, 'q'},
	    {"duration", 1, NULL, 'd'},   {"batch", 1, NULL, 'b'}, {"frames", 1, NULL, 'n'},
	    {"frame-size", 1, NULL, 'f'}, {"fill", 1, NULL, 'F'},  {"ring", 1, NULL, 'r'},
	    {"tx-budget", 1, NULL, 'B'},  {"copy", 0, NULL, 'c'},  {"zero-copy", 0, NULL, 'z'},
	    {"skb", 0, NULL, 'S'},        {"poll", 0, NULL, 'p'},  {"spin", 1, NULL, 1},
	    {"size", 1, NULL, 2},         {"dst-mac", 1, NULL, 3}, {"template-hex", 1, NULL, 4},
	    {"verbose", 0, NULL, 'v'},    {"help", 0, NULL, 'h'},  {},
	};
	bool ok = true;
	char *end;
	int c;

	while (ok && (c = getopt_long(argc, argv, "i:o:q:d:b:n:f:F:r:B:czSpvh", longs, NULL)) != -1) {
		switch (c) {
		case 'i':
			opt.in = optarg;
			break;
		case 'o':
			opt.out = optarg;
			break;
		case 'q':
			ok = parse_number(optarg, &opt.queue);
			break;
		case 'd':
			opt.duration = strtod(optarg, &end);
			ok = !*end && opt.duration >= 0 && opt.duration < 1e6;
			break;
		case 'b':
			ok = parse_number(optarg, &opt.batch);
			break;
		case 'n':
			ok = parse_number(optarg, &opt.frames);
			break;
		case 'f':
			ok = parse_number(optarg, &opt.frame_size);
			break;
		case 'F':
			ok = parse_number(optarg, &opt.fill);
			break;
		case 'r':
			ok = parse_number(optarg, &opt.ring);
			break;
		case 'B':
			ok = parse_number(optarg, &opt.tx_budget);
			break;
		case 'c':
			opt.bind_flags |= XDP_COPY;
			break;
		case 'z':
			opt.bind_flags |= XDP_ZEROCOPY;
			break;
		case 'S':
			opt.xdp_flags = XDP_FLAGS_SKB_MODE;
			break;
		case 'p':
			opt.poll = true;
			break;
		case 'v':
			opt.verbose = true;
			break;
		case 1:
			ok = parse_number(optarg, &opt.spin);
			break;
		case 2:
			ok = parse_number(optarg, &opt.size);
			break;
		case 3:
			ok = ether_aton_r(optarg, &opt.dst) != NULL;
			break;
		case 4:
			ok = parse_hex(optarg);
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			return false;
		}
		if (!ok)
			complain("bad value: %s", optarg);
	}
	return ok;
}

static bool power_of_two(__u32 n)
{
	return n && !(n & (n - 1));
}

static const char *objection(int argc, char **argv)
{
	int mode = 0;

	if (optind != argc - 1)
		return "one mode is needed: drop, forward, reflect or tx";
	while (mode <= TX && strcmp(argv[optind], mode_names[mode]))
		mode++;
	if (mode > TX)
		return "the mode is one of drop, forward, reflect, tx";
	opt.mode = mode;
	if (!opt.in || (opt.mode == FORWARD) != !!opt.out)
		return "-i is needed, and -o in mode forward only";
	if (!power_of_two(opt.ring) || opt.ring > 1 << 20)
		return "--ring is a power of two, at most 1048576";
	if (opt.frame_size != 2048 && opt.frame_size != 4096)
		return "--frame-size is 2048 or 4096";
	if (!opt.batch || opt.batch > opt.ring || opt.batch > opt.frames)
		return "--batch is from 1 to the ring size and the number of frames";
	if (opt.frames > 1 << 22)
		return "--frames is at most 4194304";
	if (!opt.fill || opt.fill > 2 * opt.ring)
		return "--fill is from 1 to twice the ring size";
	if (opt.size < MIN_PACKET || opt.size > opt.frame_size || opt.template_len > opt.size)
		return "--size is from 60 to the frame size, and not below the template's";
	if ((opt.bind_flags & XDP_COPY) && (opt.bind_flags & XDP_ZEROCOPY))
		return "-c and -z exclude each other";
	if (opt.tx_budget > opt.ring) /* the kernel refuses more */
		opt.tx_budget = opt.ring;
	return NULL;
}

/* Leaves the process when the command line makes no sense. */
void parse_options(int argc, char **argv)
{
	const char *wrong;

	if (!parse(argc, argv)) {
		fputs(usage, stderr);
		exit(2);
	}
	wrong = objection(argc, argv);
	if (wrong) {
		complain("%s", wrong);
		exit(2);
	}
}
