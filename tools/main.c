/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - the command moe-tkg: picks the subcommand.
 *
 * Owns the process: its signals, its standard files and its exit code.  Knows nothing of what a
 * command does. */
#define _GNU_SOURCE 1

#include "cli.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char HELP[] =
    "usage: moe-tkg COMMAND [options]\n"
    "\n"
    "The Mixture-of-Experts block of a decoder layer, for token generation.\n"
    "\n"
    "  bench    a layer's time, beside what the machine can do at best\n"
    "  demo     one layer of gpt-oss-20b with random weights: time, bandwidth, error\n"
    "  verify   compute cases, or judge a candidate's result, against what is expected\n"
    "  run      compute a case, or a layer of a model, and write its output\n"
    "  inspect  what is in a model: its layers with experts, or all tensors\n"
    "  pack     write a model's layers as they are packed, to be read back quickly\n"
    "  info     this machine, as the library sees it\n"
    "\n"
    "  -h, --help     this text; 'moe-tkg COMMAND --help' for a command's own\n"
    "      --version  the version\n"
    "\n" CLI_EXIT_CODES "\n"
    "Example: moe-tkg verify --gate bound tests/golden/moe_tkg/*.safetensors\n";

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv);
} command;

static const command COMMANDS[] = {
    {"bench", cmd_bench},     {"demo", cmd_demo}, {"verify", cmd_verify}, {"run", cmd_run},
    {"inspect", cmd_inspect}, {"pack", cmd_pack}, {"info", cmd_info},
};

/* A standard file that is closed would be handed to the next open(), and results would be
 * written into it.  What is opened in its place fails on use, as the closed one would. */
static void hold_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) == -1) (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

static int dispatch(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    for (size_t i = 0; i < sizeof COMMANDS / sizeof COMMANDS[0]; i++)
        if (strcmp(name, COMMANDS[i].name) == 0) return COMMANDS[i].run(argc - 1, argv + 1);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        fputs(HELP, stdout);
        return CLI_OK;
    }
    if (strcmp(name, "--version") == 0) {
        printf("moe-tkg %s\n", moe_version());
        return CLI_OK;
    }
    fprintf(stderr, argc > 1 ? "moe-tkg: no such command" : "moe-tkg: no command given");
    fprintf(stderr, " (bench, demo, verify, run, inspect, pack or info; see 'moe-tkg --help')\n");
    return CLI_USAGE;
}

int main(int argc, char **argv)
{
    hold_standard_files();
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write, seen by cli_finish */
    signal(SIGXFSZ,
           SIG_IGN); /* so is a file past its limit, and a dead process tidies up nothing */
    return cli_finish(dispatch(argc, argv));
}
