/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_info.c - moe-tkg info: this machine, as the library sees it, and this build.
 *
 * What the machine does not tell is left out, never guessed. */
#include "cli.h"
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const char HELP[] =
    "usage: moe-tkg info [options]\n"
    "\n"
    "Prints the library's version and how it was built, the CPU, the ISA levels that can be used\n"
    "(weakest first), the caches that the first CPU has or shares, and the threads of a call.\n"
    "\n"
    CLI_HELP_PLAIN
    "\n"
    "Exit codes: 0; 1 if it could not be written; 2 for a bad command line.\n"
    "\n"
    "Example: moe-tkg info --json\n";
/* clang-format on */

static const struct option OPTIONS[] = {CLI_OPTIONS_PLAIN, {NULL, 0, NULL, 0}};

#ifdef __OPTIMIZE__
enum { OPTIMISED = 1 };
#else
enum { OPTIMISED = 0 };
#endif

#ifdef NDEBUG
enum { ASSERTIONS = 0 };
#else
enum { ASSERTIONS = 1 };
#endif

/* [{"level": 1, "type": "Data", "size": "32K"}, ...] as far as the system says. */
static json_t *caches(void)
{
    char level[32], type[32], size[32];
    json_t *list = json_array();
    for (int i = 0; machine_cache(i, "level", level, sizeof level); i++)
        if (machine_cache(i, "type", type, sizeof type) &&
            machine_cache(i, "size", size, sizeof size))
            json_array_append_new(list, json_pack("{s:i, s:s, s:s}", "level", atoi(level), "type",
                                                  type, "size", size));
    return list;
}

static json_t *isa_levels(void)
{
    json_t *list = json_array();
    for (size_t i = 0; moe_isa_level(i); i++)
        json_array_append_new(list, json_string(moe_isa_level(i)));
    return list;
}

static json_t *collect(const moe_context *context)
{
    char model[256];
    machine_cpu(model, sizeof model);
    return json_pack("{s:s, s:o, s:o, s:o, s:i, s:i, s:{s:s, s:b, s:b}}", //
                     "version", moe_version(),                            //
                     "cpu", cli_json_text(model),                         //
                     "isa", isa_levels(),                                 //
                     "caches", caches(),                                  //
                     "threads", (int)moe_context_threads(context),        //
                     "cpus", (int)machine_cpus(NULL, 0),                  //
                     "build",                                             //
                     "compiler", MACHINE_COMPILER,                        //
                     "optimised", OPTIMISED,                              //
                     "assertions", ASSERTIONS);
}

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static void print_text(const json_t *o)
{
    size_t i;
    const json_t *item, *build = json_object_get(o, "build");
    printf("version   %s\n", text_of(o, "version"));
    printf("build     %s, %s, %s\n", text_of(build, "compiler"),
           OPTIMISED ? "optimised" : "not optimised", ASSERTIONS ? "assertions" : "no assertions");
    printf("cpu       %s\n", text_of(o, "cpu"));
    printf("isa      ");
    json_array_foreach(json_object_get(o, "isa"), i, item) printf(" %s", json_string_value(item));
    printf("\n");
    json_array_foreach(json_object_get(o, "caches"), i, item)
        printf("cache     L%d %s %s\n", (int)json_integer_value(json_object_get(item, "level")),
               text_of(item, "size"), text_of(item, "type"));
    printf("threads   %d (the process may run on %d CPUs)\n",
           (int)json_integer_value(json_object_get(o, "threads")),
           (int)json_integer_value(json_object_get(o, "cpus")));
}

int cmd_info(int argc, char **argv)
{
    cli c = {.command = "info", .help = HELP, .options = OPTIONS, .argc = argc, .argv = argv};
    if (cli_next(&c) == CLI_STOP) return c.exit_code;
    if (optind < argc) {
        cli_usage_error(&c, "takes no argument");
        return c.exit_code;
    }
    moe_context *context = NULL;
    int code = cli_context(&c, &context);
    if (code != CLI_OK) return code;
    json_t *object = collect(context);
    moe_context_destroy(context);
    if (c.json || !object) return cli_print_json(&c, object);
    print_text(object);
    json_decref(object);
    return CLI_OK;
}
