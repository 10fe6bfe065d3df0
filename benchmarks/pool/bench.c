/* SPDX-License-Identifier: BSD-3-Clause */
/* Both programs' main: options, one case, one JSON object as the result. See bench.h. */
#include "bench.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const case_names[CASES] = {"direct", "ring", "slow", "remote_solo", "remote"};
const struct subject *subject;
struct options opt = {.bulk = 64, .frames = 8192, .threads = 1, .cpu = -1, .seconds = 0.3};

void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("bench: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(1);
}

/* Options ----------------------------------------------------------------------------------------------------------- */

static const struct option long_options[] = {
	{"subject", required_argument, NULL, 's'}, {"bulk", required_argument, NULL, 'b'},
	{"frames", required_argument, NULL, 'f'},  {"window", required_argument, NULL, 'w'},
	{"threads", required_argument, NULL, 't'}, {"seconds", required_argument, NULL, 'd'},
	{"cpu", required_argument, NULL, 'c'},     {"other-cpus", required_argument, NULL, 'o'},
	{"rounds", required_argument, NULL, 'r'},  {"callgrind", no_argument, NULL, 'g'},
	{"list", no_argument, NULL, 'l'},          {"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

static void usage(const char *program)
{
	printf("usage: %s [options] direct|ring|slow|remote_solo|remote\n"
	       "  --subject NAME    what to measure; --list names them, with their cases\n"
	       "  --bulk N          frames a call, 1 to %d; a divisor of 64 for ring, slow and remote_solo (default 64)\n"
	       "  --frames N        frames there are (default 8192)\n"
	       "  --window N        direct: frames that stay out, a multiple of --bulk (default 0: put at once)\n"
	       "  --threads N       remote: how many give back, up to %d (default 1)\n"
	       "  --seconds S       how long (default 0.3)\n"
	       "  --cpu N           where the owner runs (default: anywhere)\n"
	       "  --other-cpus N,.. where the others run, in turn; as many as threads, and they never yield\n"
	       "  --callgrind       a fixed number of rounds, --rounds N (default 100), times are meaningless\n",
	       program, BULK_MAX, RETURNERS_MAX);
}

static void list_subjects(void)
{
	for (int i = 0; subjects[i]; i++) {
		printf("%s:", subjects[i]->name);
		for (int c = 0; c < CASES; c++)
			if (subjects[i]->cases & 1u << c)
				printf(" %s", case_names[c]);
		printf("\n");
	}
	exit(0);
}

static void parse_cpus(char *list)
{
	for (char *one = strtok(list, ","); one && opt.other_cpus < RETURNERS_MAX; one = strtok(NULL, ","))
		opt.other_cpu[opt.other_cpus++] = atoi(one);
}

static void parse(int argc, char **argv)
{
	int c;

	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1)
		switch (c) {
		case 's': opt.subject = optarg; break;
		case 'b': opt.bulk = (uint32_t)strtoul(optarg, NULL, 0); break;
		case 'f': opt.frames = (uint32_t)strtoul(optarg, NULL, 0); break;
		case 'w': opt.window = (uint32_t)strtoul(optarg, NULL, 0); break;
		case 't': opt.threads = (uint32_t)strtoul(optarg, NULL, 0); break;
		case 'd': opt.seconds = strtod(optarg, NULL); break;
		case 'c': opt.cpu = atoi(optarg); break;
		case 'o': parse_cpus(optarg); break;
		case 'r': opt.rounds = (uint32_t)strtoul(optarg, NULL, 0); break;
		case 'g': opt.rounds = opt.rounds ? opt.rounds : 100; break;
		case 'l': list_subjects(); break;
		default: usage(argv[0]); exit(c == 'h' ? 0 : 2);
		}
	if (optind + 1 != argc) {
		usage(argv[0]);
		exit(2);
	}
	while (opt.kind < CASES && strcmp(argv[optind], case_names[opt.kind]))
		opt.kind++;
	if (opt.kind == CASES)
		die("no case '%s'", argv[optind]);
	for (int i = 0; subjects[i] && !subject; i++)
		if (opt.subject ? !strcmp(subjects[i]->name, opt.subject) : subjects[i]->cases & 1u << opt.kind)
			subject = subjects[i];
	if (!subject || !(subject->cases & 1u << opt.kind))
		die("nothing to measure: no such subject, or it has no such case; see --list");
	if (!opt.bulk || opt.bulk > BULK_MAX || (opt.kind >= CASE_RING && opt.kind <= CASE_SOLO && 64 % opt.bulk))
		die("bulk %u does not suit the case", opt.bulk);
	if (!opt.threads || opt.threads > RETURNERS_MAX)
		die("1 to %d threads", RETURNERS_MAX);
	if (opt.window && (opt.window % opt.bulk || opt.window + 512 > opt.frames))
		die("the window must be a multiple of bulk, and 512 frames less than there are");
	if (opt.frames < 2 * BULK_MAX || (opt.kind == CASE_RING && opt.frames < 2 * RING_BURST) ||
	    (opt.kind == CASE_SOLO && opt.frames < 2 * SOLO_BURST))
		die("too few frames for the case");
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	if (bench_start(&opt))
		die("cannot start");
	pin(opt.cpu);
	if (!subject->open(&opt))
		die("%s: cannot be opened", subject->name);
	printf("{\"subject\": \"%s\", \"case\": \"%s\", \"bulk\": %u, \"frames\": %u, \"window\": %u, \"threads\": %u", subject->name,
	       case_names[opt.kind], opt.bulk, opt.frames, opt.window, opt.kind == CASE_REMOTE ? opt.threads : 0);
	run_case();
	subject->counters();
	uint64_t home = subject->home();
	printf(", \"home\": %lu}\n", (unsigned long)home);
	if (home != opt.frames)
		die("%s: %lu frames of %u came home", subject->name, (unsigned long)home, opt.frames);
	return 0;
}
