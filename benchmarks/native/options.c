/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line: what all engines have, and room for what one has. */
#include "engine.h"

#include <getopt.h>
#include <netinet/ether.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 32

const char *const job_names[] = {"drop", "forward", "reflect", "tx"};

struct options opt = {
    .batch = 64,
    .size = 64,
    .spin = 1000,
    .dst = {{0x02, 0, 0, 0, 0, 0x02}},
};

static const struct engine *self;

void complain(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "%s: ", self->name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

static const char usage[] =
    "usage: %1$s drop|reflect -i IF [options]\n"
    "       %1$s forward -i IF -o IF [options]\n"
    "       %1$s tx -i IF [--size N] [--dst-mac MAC] [--template-hex HEX] [options]\n"
    "\n"
    "  -i, --in IF          interface to receive from (tx: to send to)\n"
    "  -o, --out IF         interface to forward to\n"
    "  -q, --queue N        queue, on both interfaces (0)\n"
    "  -d, --duration S     seconds, at most 600; 0 = until SIGINT or SIGTERM, or 600 (0)\n"
    "  -b, --batch N        packets a round (64)\n"
    "  -p, --poll           sleep in poll after --spin empty rounds, instead of a busy loop (not in tx)\n"
    "      --spin N         (1000)\n"
    "  -v, --verbose        show what the libraries have to say\n"
    "      --size N         bytes of a sent packet, without FCS (64)\n"
    "      --dst-mac MAC    (02:00:00:00:00:02)\n"
    "      --template-hex H bytes to lay over the start of the sent packet\n";

static const char promise[] =
    "\nPrints \"ready\" on stderr when the loop starts, and one JSON object on stdout at the end.\n";

static void print_usage(FILE *stream)
{
	fprintf(stream, usage, self->name);
	if (self->usage)
		fputs(self->usage, stream);
	fputs(promise, stream);
}

bool parse_number(const char *text, __u32 *value)
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

static bool parse_duration(const char *text)
{
	char *end;

	opt.duration = strtod(text, &end);
	return end != text && !*end && opt.duration >= 0 && opt.duration <= MAX_SECONDS;
}

/* Letters below 'A' name options without a short form; an engine's own begin above those. */
enum { SPIN = 1, SIZE, DST_MAC, TEMPLATE };

static const struct option common[] = {
    {"in", 1, NULL, 'i'},
    {"out", 1, NULL, 'o'},
    {"queue", 1, NULL, 'q'},
    {"duration", 1, NULL, 'd'},
    {"batch", 1, NULL, 'b'},
    {"poll", 0, NULL, 'p'},
    {"verbose", 0, NULL, 'v'},
    {"spin", 1, NULL, SPIN},
    {"size", 1, NULL, SIZE},
    {"dst-mac", 1, NULL, DST_MAC},
    {"template-hex", 1, NULL, TEMPLATE},
    {"help", 0, NULL, 'h'},
};

#define COMMON (sizeof(common) / sizeof(*common))

static bool set(int letter, const char *value)
{
	switch (letter) {
	case 'i':
		opt.in = value;
		return true;
	case 'o':
		opt.out = value;
		return true;
	case 'q':
		return parse_number(value, &opt.queue);
	case 'd':
		return parse_duration(value);
	case 'b':
		return parse_number(value, &opt.batch);
	case 'p':
		opt.poll = true;
		return true;
	case 'v':
		opt.verbose = true;
		return true;
	case SPIN:
		return parse_number(value, &opt.spin);
	case SIZE:
		return parse_number(value, &opt.size);
	case DST_MAC:
		return ether_aton_r(value, &opt.dst) != NULL;
	case TEMPLATE:
		return parse_hex(value);
	default:
		return self->set && self->set(letter, value);
	}
}

static bool parse(int argc, char **argv)
{
	struct option longs[MAX_OPTIONS + 1] = {};
	char shorts[2 * MAX_OPTIONS + 1] = "";
	size_t n = COMMON, s = 0;
	int letter;

	memcpy(longs, common, sizeof(common));
	for (const struct extra *extra = self->extras; extra && extra->name && n < MAX_OPTIONS; extra++, n++)
		longs[n] = (struct option){extra->name, extra->has_value, NULL, extra->letter};
	for (size_t i = 0; i < n; i++) {
		if (longs[i].val < 'A')
			continue;
		shorts[s++] = longs[i].val;
		if (longs[i].has_arg)
			shorts[s++] = ':';
	}
	while ((letter = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
		if (letter == 'h') {
			print_usage(stdout);
			exit(0);
		}
		if (letter == '?')
			return false;
		if (!set(letter, optarg)) {
			complain("bad value: %s", optarg);
			return false;
		}
	}
	return true;
}

static const char *objection(int argc, char **argv)
{
	int job = 0;

	if (optind != argc - 1)
		return "one job is needed: drop, forward, reflect or tx";
	while (job <= TX && strcmp(argv[optind], job_names[job]))
		job++;
	if (job > TX)
		return "the job is one of drop, forward, reflect, tx";
	opt.job = job;
	if (!opt.in || (opt.job == FORWARD) != !!opt.out)
		return "-i is needed, and -o for job forward only";
	if (!opt.batch)
		return "--batch is at least 1";
	if (opt.size < MIN_PACKET || opt.size > MAX_PACKET || opt.template_len > opt.size)
		return "--size is from 60 to 4096, and not below the template's";
	return self->objection ? self->objection() : NULL;
}

void parse_options(int argc, char **argv, const struct engine *engine)
{
	const char *wrong;

	self = engine;
	if (!parse(argc, argv)) {
		print_usage(stderr);
		exit(2);
	}
	wrong = objection(argc, argv);
	if (wrong) {
		complain("%s", wrong);
		exit(2);
	}
}
