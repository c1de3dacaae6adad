/* SPDX-License-Identifier: Apache-2.0 */
/* cli.c - what the commands share.
 *
 * Owns stdout and stderr: results go to the one, messages to the other, and a result that could
 * not be written is a failure.  Refuses unknown options and numbers with anything after them. */
#define _GNU_SOURCE 1

#include "cli.h"
#include "case.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- messages ------------------------------------------------------------------------------ */

/* Decodes the UTF-8 character at p (its bytes end with a NUL at the latest) into *code.  Returns
 * its bytes; 0 if there is none: a stray byte, an overlong form, a surrogate, past U+10FFFF. */
static size_t utf8(const char *p, uint32_t *code)
{
    static const uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *u = (const unsigned char *)p;
    size_t n = u[0] < 0x80 ? 1 : u[0] < 0xc0 ? 0 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    if (n == 0 || u[0] >= 0xf8) return 0;
    *code = n == 1 ? u[0] : u[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((u[i] & 0xc0) != 0x80) return 0;
        *code = *code << 6 | (u[i] & 0x3f);
    }
    if (*code < LEAST[n] || *code > 0x10ffff || (*code >= 0xd800 && *code < 0xe000)) return 0;
    return n;
}

/* C0, DEL, C1, which a terminal may take for commands; and what turns the direction of text, so
 * that a line reads as another. */
static bool is_control(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x202a && code <= 0x202e) ||
           (code >= 0x2066 && code <= 0x2069);
}

static void put_text(FILE *file, const char *text)
{
    while (*text) {
        uint32_t code = 0;
        size_t n = utf8(text, &code);
        if (n == 0 || is_control(code))
            putc('?', file);
        else
            fwrite(text, 1, n, file);
        text += n ? n : 1;
    }
}

int cli_usage_error(cli *c, const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fprintf(stderr, "moe-tkg %s: ", c->command);
    put_text(stderr, text);
    fprintf(stderr, " (see 'moe-tkg %s --help')\n", c->command);
    c->exit_code = CLI_USAGE;
    return CLI_STOP;
}

void cli_say(const cli *c, const char *message)
{
    fprintf(stderr, "moe-tkg %s: ", c->command);
    put_text(stderr, message);
    fputc('\n', stderr);
}

int cli_failure(const cli *c, const char *format, ...)
{
    cli_error e = {.code = CLI_FAILED};
    va_list list;
    va_start(list, format);
    vsnprintf(e.text, sizeof e.text, format, list);
    va_end(list);
    return cli_report(c, &e);
}

int cli_fail(cli_error *e, int code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(e->text, sizeof e->text, format, list);
    va_end(list);
    return e->code = code;
}

int cli_report(const cli *c, const cli_error *e)
{
    cli_say(c, e->text);
    if (c->json) cli_print_json(c, cli_json_verdict(e->code, e->text));
    return e->code;
}

/* ---- options ------------------------------------------------------------------------------- */

bool cli_number(const char *text, long long low, long long high, long long *value)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (*text < '-' || *text > '9' || *end || errno || number < low || number > high) return false;
    *value = number;
    return true;
}

bool cli_numbers(const char *list, long long low, long long high, size_t *number, size_t most,
                 size_t *n)
{
    char copy[512], *rest = copy;
    long long value;
    *n = 0;
    if (snprintf(copy, sizeof copy, "%s", list) >= (int)sizeof copy) return false;
    for (char *item; (item = strsep(&rest, ",")) != NULL;) {
        if (*n == most || !cli_number(item, low, high, &value)) return false;
        number[(*n)++] = (size_t)value;
    }
    return *n > 0;
}

static int bad_option(cli *c, int opt)
{
    char letter[3] = {'-', (char)optopt, '\0'};
    /* optopt names a letter only if a letter was given; long options have values past any char. */
    const char *name = optopt > 0 && optopt < CLI_OPT_JSON ? letter : c->argv[optind - 1];
    if (opt == ':') return cli_usage_error(c, "option '%s' needs a value", name);
    return cli_usage_error(c, "bad option '%s'", name);
}

static int show_help(cli *c)
{
    fputs(c->help, stdout);
    c->exit_code = CLI_OK;
    return CLI_STOP;
}

/* No value of an option is empty: it is a variable of a script that was not set. */
static int empty_value(cli *c, int opt)
{
    const struct option *o = c->options;
    while (o->val != opt) o++;
    return cli_usage_error(c, "option '--%s' needs a value", o->name);
}

static int check_operands(cli *c)
{
    for (int i = optind; c->operand && i < c->argc; i++)
        if (!*c->argv[i]) return cli_usage_error(c, "%s is empty", c->operand);
    return CLI_END;
}

int cli_next(cli *c)
{
    long long number;
    for (;;) {
        int opt = getopt_long(c->argc, c->argv, ":h", c->options, NULL);
        if (opt >= CLI_OPT_JSON && optarg && !*optarg) return empty_value(c, opt);
        switch (opt) {
        case -1: return check_operands(c);
        case ':':
        case '?': return bad_option(c, opt);
        case 'h': return show_help(c);
        case CLI_OPT_JSON: c->json = true; break;
        case CLI_OPT_ISA: c->isa = optarg; break;
        case CLI_OPT_THREADS:
            if (!cli_number(optarg, 0, 1024, &number))
                return cli_usage_error(c, "--threads %s: must be 0 to 1024", optarg);
            c->threads = (int32_t)number;
            break;
        case CLI_OPT_ACT:
            if (!case_act_from_name(optarg, &c->act))
                return cli_usage_error(c, "--act %s: must be default, exact, mxfp8 or int8",
                                       optarg);
            break;
        default: return opt;
        }
    }
}

bool cli_dtype(const char *text, moe_dtype *dtype)
{
    *dtype = strcmp(text, "bf16") == 0                               ? MOE_BF16
             : strcmp(text, "f16") == 0 || strcmp(text, "fp16") == 0 ? MOE_F16
             : strcmp(text, "f32") == 0                              ? MOE_F32
                                                                     : MOE_DTYPE_NONE;
    return *dtype != MOE_DTYPE_NONE;
}

int cli_exit_code(moe_status status)
{
    switch (status) {
    case MOE_OK: return CLI_OK;
    case MOE_E_NOMEM:
    case MOE_E_WRITE: return CLI_FAILED;
    case MOE_E_OPEN:
    case MOE_E_READ:
    case MOE_E_FORMAT: return CLI_USAGE;
    default: return CLI_REFUSED;
    }
}

int cli_context(cli *c, moe_context **context)
{
    moe_context_options options = moe_context_options_init();
    options.threads = c->threads;
    options.isa = c->isa;
    moe_status status = moe_context_create(&options, context);
    if (status == MOE_OK) return CLI_OK;
    if (status == MOE_E_NOMEM) return cli_failure(c, "%s", moe_last_error());
    cli_usage_error(c, "%s", moe_last_error());
    return c->exit_code;
}

/* ---- output -------------------------------------------------------------------------------- */

void cli_print_text(const char *text)
{
    put_text(stdout, text);
}

size_t cli_text_width(const char *text)
{
    size_t width = 0;
    for (; *text; width++) {
        uint32_t code;
        size_t n = utf8(text, &code);
        text += n ? n : 1;
    }
    return width;
}

json_t *cli_json_text(const char *text)
{
    json_t *string = json_string(text);
    if (string) return string;
    char *ascii = strdup(text);
    if (!ascii) return NULL;
    for (char *p = ascii; *p; p++)
        if ((unsigned char)*p >= 0x80) *p = '?';
    string = json_string(ascii);
    free(ascii);
    return string;
}

json_t *cli_json_real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *cli_json_verdict(int code, const char *message)
{
    return json_pack("{s:b, s:b, s:b, s:o}",          //
                     "pass", code == CLI_OK,          //
                     "refused", code == CLI_REFUSED,  //
                     "unreadable", code == CLI_USAGE, //
                     "message", cli_json_text(message));
}

static int no_memory(const cli *c)
{
    cli_say(c, "out of memory"); /* which is no time to make another object */
    return CLI_FAILED;
}

static int output_errno; /* of the first write to stdout that failed */

bool cli_flush(void)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return true;
    if (!output_errno) output_errno = errno ? errno : EIO;
    return false;
}

int cli_print_json(const cli *c, json_t *object)
{
    if (!object) return no_memory(c);
    errno = 0;
    int failed = json_dumpf(object, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII);
    json_decref(object);
    if (failed && !ferror(stdout)) return no_memory(c);
    if (failed && !output_errno) output_errno = errno ? errno : EIO;
    putchar('\n');
    return CLI_OK;
}

int cli_finish(int code)
{
    if (cli_flush()) return code;
    /* A reader that has seen enough is no error worth a message. */
    if (output_errno != EPIPE)
        fprintf(stderr, "moe-tkg: could not write to standard output: %s\n",
                strerror(output_errno));
    return CLI_FAILED;
}

/* ---- progress ------------------------------------------------------------------------------ */

static bool progress_shown;

void cli_progress(double done, const char *what)
{
    enum { WIDTH = 30 };
    static const char FULL[] = "##############################";
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    if (!isatty(STDERR_FILENO) || (term && strcmp(term, "dumb") == 0)) return;
    bool color = !(no_color && *no_color);
    int full = (int)(done * WIDTH);
    fprintf(stderr, "\r%s[%.*s%*s]%s %3d %%  %-30.30s", color ? "\033[36m" : "", full, FULL,
            WIDTH - full, "", color ? "\033[0m" : "", (int)(done * 100), what);
    fflush(stderr);
    progress_shown = true;
}

void cli_progress_end(void)
{
    if (progress_shown) fprintf(stderr, "\r%70s\r", "");
    progress_shown = false;
}
