/* SPDX-License-Identifier: Apache-2.0 */
/* cli.h - what the commands of moe-tkg share: options, exit codes, messages, output, progress. */
#ifndef MOE_CLI_H
#define MOE_CLI_H

#include <getopt.h>
#include <jansson.h>
#include <moe_tkg.h>
#include <stdbool.h>

/* Exit codes of every command. */
enum {
    CLI_OK = 0,
    CLI_FAILED = 1,  /* a result outside its gate, or output that could not be written */
    CLI_USAGE = 2,   /* bad options, or a file that is no sound container, or no case */
    CLI_REFUSED = 3, /* a sound file that is no usable model, or the library refused the call */
};

/* The paragraph on exit codes in a command's --help. */
#define CLI_EXIT_CODES                                                                             \
    "Exit codes:\n"                                                                                \
    "  0  all done, all within the gate\n"                                                         \
    "  1  a result outside its gate, no memory, or output that could not be written\n"             \
    "  2  a file that is no sound container, or no case, or a bad command line\n"                  \
    "  3  a sound file that is no usable model, or a refused call\n"

/* Values of options without a letter; a command's own start at CLI_OPT_OWN. */
enum { CLI_OPT_JSON = 256, CLI_OPT_ISA, CLI_OPT_THREADS, CLI_OPT_ACT, CLI_OPT_OWN };

/* What cli_next returns when no option is left, and when the command must return cli->exit_code. */
enum { CLI_END = -1, CLI_STOP = -2 };

/* clang-format off */
#define CLI_OPTIONS_PLAIN                                  \
    {"help", no_argument, NULL, 'h'},                      \
    {"json", no_argument, NULL, CLI_OPT_JSON}

#define CLI_OPTIONS_COMPUTE                                \
    {"isa", required_argument, NULL, CLI_OPT_ISA},         \
    {"threads", required_argument, NULL, CLI_OPT_THREADS}, \
    {"act", required_argument, NULL, CLI_OPT_ACT}
/* clang-format on */

/* The lines on them in a command's --help. */
#define CLI_HELP_PLAIN                                                                             \
    "      --json           results as one JSON object, failures too\n"                            \
    "  -h, --help           this text\n"
#define CLI_HELP_COMPUTE                                                                           \
    "      --isa NAME       highest ISA level to use (moe-tkg info lists them)\n"                  \
    "      --threads N      threads per call; 0, the default: as many as the process may use\n"    \
    "      --act MODE       default, exact, mxfp8 or int8: what activations are rounded to\n"

/* One command's command line.  Set the first six, then call cli_next until CLI_END or CLI_STOP. */
typedef struct cli {
    const char *command; /* "verify" */
    const char *help;
    const struct option *options;
    const char *operand; /* "FILE": what it takes beside options; NULL: nothing */
    int argc;
    char **argv;
    bool json;
    const char *isa;
    int32_t threads;
    moe_act_mode act;
    int exit_code;
} cli;

/* The next option of the command's own (its argument in optarg), CLI_END or CLI_STOP. */
int cli_next(cli *c);

/* "moe-tkg verify: <message> (see 'moe-tkg verify --help')" on stderr.  Sets c->exit_code and
 * returns CLI_STOP. */
__attribute__((format(printf, 2, 3))) int cli_usage_error(cli *c, const char *format, ...);

/* "moe-tkg verify: <message>" on stderr, for a failure that is also said otherwise. */
void cli_say(const cli *c, const char *message);

/* cli_report of a message and CLI_FAILED, which it returns. */
__attribute__((format(printf, 2, 3))) int cli_failure(const cli *c, const char *format, ...);

/* What went wrong, before it is known how it will be said. */
typedef struct cli_error {
    int code;
    char text[1024];
} cli_error;

/* Stores both in *e and returns code. */
__attribute__((format(printf, 3, 4))) int cli_fail(cli_error *e, int code, const char *format, ...);

/* What ends the command before it has any result: "moe-tkg verify: <message>" on stderr, and with
 * --json cli_json_verdict on stdout; returns the code. */
int cli_report(const cli *c, const cli_error *e);

/* A whole decimal number in [low, high]. */
bool cli_number(const char *text, long long low, long long high, long long *value);

/* Whole decimal numbers in [low, high] with commas between, at least one and at most `most`. */
bool cli_numbers(const char *list, long long low, long long high, size_t *number, size_t most,
                 size_t *n);

/* "bf16", "f16" or "fp16", "f32"; false if text is none of them. */
bool cli_dtype(const char *text, moe_dtype *dtype);

/* The exit code of a failed call of the library. */
int cli_exit_code(moe_status status);

/* Makes the context that --isa and --threads ask for.  CLI_OK, or a message and its exit code. */
int cli_context(cli *c, moe_context **context);

/* Prints text of any origin: control characters, those that turn the direction of text, and bytes
 * that are not UTF-8 as '?', so that no file can drive the terminal. */
void cli_print_text(const char *text);

/* How many characters cli_print_text prints of it. */
size_t cli_text_width(const char *text);

/* Foreign text as a JSON string: bytes that are not UTF-8 as '?'. */
json_t *cli_json_text(const char *text);

/* A JSON number; null if it is not finite. */
json_t *cli_json_real(double value);

/* {"pass": true, "refused": false, "unreadable": false, "message": ""} of an exit code. */
json_t *cli_json_verdict(int code, const char *message);

/* Prints the object, in ASCII, and a newline, and releases it; NULL (memory ran out on the way) is
 * an error. */
int cli_print_json(const cli *c, json_t *object);

/* Flushes stdout.  False once anything could not be written: there is no reader, or no room, for
 * the rest. */
bool cli_flush(void);

/* Flushes stdout for the last time: code, or CLI_FAILED if anything could not be written. */
int cli_finish(int code);

/* A progress bar on stderr: only if that is a terminal; in colour unless NO_COLOR is set.  done
 * in [0, 1]. */
void cli_progress(double done, const char *what);
void cli_progress_end(void);

int cmd_bench(int argc, char **argv);
int cmd_demo(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_pack(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_verify(int argc, char **argv);

#endif
