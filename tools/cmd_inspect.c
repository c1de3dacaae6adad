/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_inspect.c - moe-tkg inspect: what is in a model's files.
 *
 * Owns the command line, and what bandwidth makes of bytes.  Reads headers alone. */
#include "ceiling.h"
#include "crew.h"
#include "inspect.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg inspect [options] PATH\n"
    "\n"
    "Lists the layers with experts of a model: sizes, formats, activation, router, shared expert,\n"
    "bytes; and how many tokens per second this machine's memory allows at best for all of them,\n"
    "one token at a time.  PATH: a folder, an index (model.safetensors.index.json), a safetensors or\n"
    "GGUF file (the first of a split), or a folder that moe-tkg pack wrote.  Reads no weights.\n"
    "\n"
    CLI_MODEL_HELP
    "      --tensors        list the tensors of any sound file or folder, model or not: name, type,\n"
    "                       shape (of GGUF: fastest first), bytes, file\n"
    "      --no-measure     do not measure how fast memory is read\n"
    "      --bandwidth N    take N GB/s instead\n"
    "      --threads N      threads that read; 0, the default: as many as the process may use\n"
    CLI_HELP_PLAIN
    "\n"
    CLI_EXIT_CODES
    "\n"
    "Example: moe-tkg inspect path/to/model\n"
    "         moe-tkg inspect --tensors model.gguf\n";
/* clang-format on */

enum { OPT_CONFIG = CLI_OPT_OWN, OPT_TENSORS, OPT_NO_MEASURE, OPT_BANDWIDTH };

static const struct option OPTIONS[] = {
    CLI_OPTIONS_PLAIN,
    {"threads", required_argument, NULL, CLI_OPT_THREADS},
    {"config", required_argument, NULL, OPT_CONFIG},
    {"tensors", no_argument, NULL, OPT_TENSORS},
    {"no-measure", no_argument, NULL, OPT_NO_MEASURE},
    {"bandwidth", required_argument, NULL, OPT_BANDWIDTH},
    {NULL, 0, NULL, 0},
};

typedef struct command {
    cli cli;
    const char *path, *config;
    bool tensors, measure;
    double gbps; /* 0: not known */
} command;

static bool parse_gbps(const char *text, double *gbps)
{
    char *end;
    errno = 0;
    *gbps = strtod(text, &end);
    return *text >= '0' && *text <= '9' && !*end && !errno && isfinite(*gbps) && *gbps > 0;
}

static int parse(command *m)
{
    cli *c = &m->cli;
    for (int opt; (opt = cli_next(c)) != CLI_END;) {
        switch (opt) {
        case OPT_CONFIG: m->config = optarg; break;
        case OPT_TENSORS: m->tensors = true; break;
        case OPT_NO_MEASURE: m->measure = false; break;
        case OPT_BANDWIDTH:
            if (!parse_gbps(optarg, &m->gbps))
                return cli_usage_error(c, "--bandwidth %s: must be a number of GB/s above 0",
                                       optarg);
            break;
        default: return CLI_STOP;
        }
    }
    if (c->argc - optind != 1) return cli_usage_error(c, "needs one PATH");
    if (m->tensors && m->config) return cli_usage_error(c, "--tensors takes no --config");
    m->path = c->argv[optind];
    return CLI_END;
}

/* What bench's probe of the ceiling says, at its quickest: the best way of reading, once found. */
static int measure(cli *c, double *gbps)
{
    crew w;
    ceiling_reader reader = {0};
    int code = crew_open(&w, c);
    cli_progress(0, "reading memory");
    if (code == CLI_OK && !ceiling_reader_open(&reader, w.team, crew_cold_bytes(&w)))
        code = cli_failure(c, "out of memory");
    *gbps = reader.best;
    ceiling_reader_close(&reader);
    cli_progress_end();
    crew_close(&w);
    return code;
}

static int inspect_layers(command *m)
{
    cli_error error;
    inspection in = {.path = m->path, .gbps = m->gbps};
    int code = inspect_open(&in, m->config, &error);
    if (code != CLI_OK) return cli_report(&m->cli, &error);
    if (m->measure && in.gbps == 0 && in.info.moe_layers > 0) {
        in.measured = true;
        code = measure(&m->cli, &in.gbps);
    }
    if (code == CLI_OK)
        code = m->cli.json ? inspect_print_json(&in, &m->cli) : inspect_print(&in, &m->cli);
    inspect_close(&in);
    return code;
}

int cmd_inspect(int argc, char **argv)
{
    command m = {
        .cli = {.command = "inspect",
                .help = HELP,
                .options = OPTIONS,
                .operand = "PATH",
                .argc = argc,
                .argv = argv},
        .measure = true,
    };
    if (parse(&m) == CLI_STOP) return m.cli.exit_code;
    return m.tensors ? inspect_tensors(&m.cli, m.path) : inspect_layers(&m);
}
