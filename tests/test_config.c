/* SPDX-License-Identifier: Apache-2.0 */
/* test_config.c - the reader of configurations: rules, values, paths, numbers.
 *
 * The configurations in $MOE_SHARED_DIR (default: shared next to the source tree) are read if they
 * are there. */
#define _XOPEN_SOURCE 700

#include <dirent.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/config.h"
#include "io/json_scan.h"

#define FOUR(x) x x x x
#define DEEP_32                                                                                    \
    FOUR("{\"a\":")                                                                                \
    FOUR("{\"a\":")                                                                                \
    FOUR("{\"a\":") FOUR("{\"a\":") FOUR("{\"a\":") FOUR("{\"a\":") FOUR("{\"a\":") FOUR("{\"a\":")
#define CLOSE_32 FOUR("}") FOUR("}") FOUR("}") FOUR("}") FOUR("}") FOUR("}") FOUR("}") FOUR("}")

typedef struct rule_case {
    const char *text;
    const char *message; /* a part of it; NULL: accepted */
} rule_case;

/* clang-format off */
static const rule_case rule_cases[] = {
    {"{}", NULL},
    {" { } \n", NULL},
    {"{\"a\":1}", NULL},
    {"{\"a\":[1,[2,[]],{\"b\":{}}],\"c\":[{},{\"a\":1},{\"a\":1}]}", NULL},
    {"{\"\":{\"\":0}}", NULL},
    {"{\"a\":0,\"A\":0,\"ab\":0,\"b\":{\"a\":0}}", NULL},
    {"{\"time_step_limit\":[0.0,Infinity],\"x\":-Infinity,\"y\":NaN}", NULL},
    {DEEP_32 "0" CLOSE_32, NULL},

    {"", "an object is expected at byte 0"},
    {"   ", "an object is expected at byte 3"},
    {"[]", "an object is expected at byte 0"},
    {"1", "an object is expected"},
    {"null", "an object is expected"},
    {"\xEF\xBB\xBF{}", "an object is expected"},
    {"{", "a string is expected at byte 1"},
    {"{}x", "text follows the JSON object at byte 2"},
    {"{}{}", "text follows the JSON object at byte 2"},
    {"{}]", "text follows the JSON object"},
    {"{\"a\"}", "a colon is expected"},
    {"{\"a\" 1}", "a colon is expected"},
    {"{\"a\":}", "a value is expected at byte 5"},
    {"{\"a\":", "a value is expected at byte 5"},
    {"{\"a\":1", "a comma or closing bracket is expected at byte 6"},
    {"{\"a\":1]", "a comma or closing bracket is expected"},
    {"{\"a\":[1}", "a comma or closing bracket is expected"},
    {"{\"a\":1 2}", "a comma or closing bracket is expected"},
    {"{\"a\":1,}", "a string is expected at byte 7"},
    {"{\"a\":[1,]}", "a value is expected at byte 8"},
    {"{\"a\":[,1]}", "a value is expected"},
    {"{,}", "a string is expected"},
    {"{1:2}", "a string is expected"},
    {"{\"a\":tru}", "a value is expected at byte 5"},
    {"{\"a\":truey}", "a comma or closing bracket is expected"},
    {"{\"a\":True}", "a value is expected"},
    {"{\"a\":nul", "a value is expected"},
    {"{\"a\":nan}", "a value is expected"},
    {"{\"a\":-NaN}", "a number lacks digits"},
    {"{\"a\":'b'}", "a value is expected"},
    {"{\"a\":/**/1}", "a value is expected"},
    {"{\"a\":-}", "a number lacks digits at byte 5"},
    {"{\"a\":-", "a number lacks digits"},
    {"{\"a\":-a}", "a number lacks digits"},
    {"{\"a\":01}", "a number starts with 0 at byte 5"},
    {"{\"a\":-01}", "a number starts with 0"},
    {"{\"a\":00.5}", "a number starts with 0"},
    {"{\"a\":1.}", "a number lacks digits"},
    {"{\"a\":.5}", "a value is expected"},
    {"{\"a\":+5}", "a value is expected"},
    {"{\"a\":1e}", "a number lacks digits"},
    {"{\"a\":1e+}", "a number lacks digits"},
    {"{\"a\":1.e5}", "a number lacks digits"},
    {"{\"a\":1e5.5}", "a comma or closing bracket is expected"},
    {"{\"a\":0x10}", "a comma or closing bracket is expected"},
    {"{\"a\":\"b}", "the text ends inside a string at byte 8"},
    {"{\"a\":\"\n\"}", "a string holds a control byte at byte 6"},
    {"{\"a\":\"\\x\"}", "an escape is unknown"},
    {"{\"a\":\"\\u12g4\"}", "four hexadecimal digits"},
    {"{\"a\":\"\\u0000\"}", "a string holds a NUL"},
    {"{\"a\":\"\\ud800\"}", "a surrogate stands alone"},
    {"{\"a\":\"\xFF\"}", "a string is not valid UTF-8"},
    {"{\"a\xFF\":1}", "a string is not valid UTF-8"},
    {"{\"a\":1,\"a\":1}", "\"a\": the key occurs twice at byte 8"},
    {"{\"a\":1,\"b\":2,\"\\u0061\":{}}", "\"a\": the key occurs twice at byte 14"},
    {"{\"\":{\"\":{\"\":{\"", "the text ends inside a string at byte 14"},
    {"{\"b\":{\"a\":1,\"a\":1}}", "\"a\": the key occurs twice"},
    {"{\"b\":[{\"a\":1,\"a\":1}]}", "\"a\": the key occurs twice"},
    {"{\"\":1,\"\":2}", "\"\": the key occurs twice"},
    {"{\"\\u001b[2J\":1,\"\\u001b[2J\":2}", "\"?[2J\": the key occurs twice"},
    {DEEP_32 "{}" CLOSE_32, "lists are nested more than 32 deep at byte 160"},
    {DEEP_32 "[]" CLOSE_32, "lists are nested more than 32 deep"},
};
/* clang-format on */

/* From an allocation of exactly its size, so that a sanitizer sees a read beyond it. */
static io_status open_text(const char *text, size_t size, cfg_file **config, io_error *error)
{
    char *exact = malloc(size + 1);
    assert_non_null(exact);
    memcpy(exact + 1, text, size);
    io_status status = cfg_open_memory(exact + 1, size, config, error);
    free(exact);
    return status;
}

static cfg_file *opened(const char *text)
{
    cfg_file *config;
    io_error error;
    if (open_text(text, strlen(text), &config, &error) != IO_OK) fail_msg("%s", error.text);
    return config;
}

static void every_rule(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rule_cases / sizeof *rule_cases; i++) {
        const char *text = rule_cases[i].text, *message = rule_cases[i].message;
        cfg_file *config;
        io_error error = {0};
        io_status status = open_text(text, strlen(text), &config, &error);
        if (status != (message ? IO_E_FORMAT : IO_OK)) fail_msg("%s: %s", text, error.text);
        assert_int_equal(config == NULL, status != IO_OK);
        if (message && (!strstr(error.text, message) || strncmp(error.text, "(memory): ", 10)))
            fail_msg("%s: %s", text, error.text);
        cfg_close(config);
    }
    cfg_close(NULL);
}

static void a_text_may_have_4_mib(void **state)
{
    (void)state;
    size_t most = 4 << 20;
    char *text = malloc(most + 1);
    cfg_file *config;
    io_error error;
    assert_non_null(text);
    memset(text, ' ', most + 1);
    memcpy(text, "{}", 2);
    assert_int_equal(cfg_open_memory(text, most, &config, &error), IO_OK);
    cfg_close(config);
    assert_int_equal(cfg_open_memory(text, most + 1, &config, &error), IO_E_FORMAT);
    assert_non_null(strstr(error.text, "the text is longer than 4194304 bytes"));
    free(text);
}

/* ---- values ---------------------------------------------------------------------------------- */

static const char sample[] =
    "{\"hidden_size\": 64, \"pad\": -1, \"eps\": 1e-06, \"tie\": false, \"on\": true,\n"
    " \"none\": null, \"type\": \"qwen\\u00333_moe\", \"scale\": 2.5, \"big\": 9223372036854775808,\n"
    " \"architectures\": [\"A\", \"B\"], \"sizes\": [128, -128, 1.5, true, \"x\"], \"empty\": [],\n"
    " \"mixed\": [1, [2], 3], \"a.b\": 5, \"\": 6,\n"
    " \"text_config\": {\"hidden_size\": 32, \"inner\": {\"deep\": 7, \"\": 8}},\n"
    " \"quantization_config\": {\"config_groups\": {\"group_1\": {\"n\": 2},\n"
    "  \"group_0\": {\"weights\": {\"num_bits\": 4}}}, \"ignore\": []}}";

static void values(void **state)
{
    (void)state;
    cfg_file *c = opened(sample);
    int64_t integer = -77;
    double real = -77;
    bool truth = false;
    const char *text = NULL;
    assert_true(cfg_integer(c, "hidden_size", &integer) && integer == 64);
    assert_true(cfg_integer(c, "pad", &integer) && integer == -1);
    assert_true(cfg_integer(c, "text_config.hidden_size", &integer) && integer == 32);
    assert_true(cfg_integer(c, "text_config.inner.deep", &integer) && integer == 7);
    assert_true(
        cfg_integer(c, "quantization_config.config_groups.group_0.weights.num_bits", &integer));
    assert_int_equal(integer, 4);
    assert_true(cfg_real(c, "eps", &real) && real == 1e-6);
    assert_true(cfg_real(c, "scale", &real) && real == 2.5);
    assert_true(cfg_real(c, "hidden_size", &real) && real == 64);
    assert_true(cfg_real(c, "big", &real) && real == 9223372036854775808.0);
    assert_true(cfg_bool(c, "on", &truth) && truth);
    assert_true(cfg_bool(c, "tie", &truth) && !truth);
    assert_true(cfg_string(c, "type", &text));
    assert_string_equal(text, "qwen33_moe");

    integer = -77, real = -77, truth = true, text = NULL;
    const char *const others[] = {"scale", "big",           "tie",         "none",
                                  "type",  "architectures", "text_config", "absent"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        assert_false(cfg_integer(c, others[i], &integer));
        if (i > 1) assert_false(cfg_real(c, others[i], &real));
        if (i != 2) assert_false(cfg_bool(c, others[i], &truth));
        if (i != 4) assert_false(cfg_string(c, others[i], &text));
    }
    assert_true(integer == -77 && real == -77 && truth && !text);
    cfg_close(c);
}

static void kinds_and_paths(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        cfg_kind kind;
    } cases[] = {
        {"", CFG_OBJECT},
        {"hidden_size", CFG_INTEGER},
        {"big", CFG_INTEGER},
        {"eps", CFG_REAL},
        {"tie", CFG_BOOL},
        {"on", CFG_BOOL},
        {"none", CFG_NULL},
        {"type", CFG_STRING},
        {"architectures", CFG_ARRAY},
        {"text_config", CFG_OBJECT},
        {"text_config.inner", CFG_OBJECT},
        {"hidden_siz", CFG_ABSENT},
        {"hidden_size_", CFG_ABSENT},
        {"hidden_size.", CFG_ABSENT},
        {"hidden_size.x", CFG_ABSENT},
        {"text_config.", CFG_ABSENT},
        {"text_config.deep", CFG_ABSENT},
        {"text_config.inner.deep.deeper", CFG_ABSENT},
        {"architectures.0", CFG_ABSENT},
        {"a.b", CFG_ABSENT},
        {".", CFG_ABSENT},
        {".hidden_size", CFG_ABSENT},
        {"text_config..", CFG_ABSENT},
        {"group_0", CFG_ABSENT},
    };
    cfg_file *c = opened(sample);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cfg_what(c, cases[i].path) != cases[i].kind) fail_msg("%s", cases[i].path);
        bool there = cases[i].kind != CFG_ABSENT && cases[i].kind != CFG_NULL;
        assert_int_equal(cfg_has(c, cases[i].path), there);
    }
    cfg_close(c);
}

static void arrays_and_members(void **state)
{
    (void)state;
    cfg_file *c = opened(sample);
    size_t count = 77;
    int64_t integer = -77;
    double real = -77;
    bool truth = false;
    const char *text = NULL;
    assert_true(cfg_array(c, "architectures", &count) && count == 2);
    assert_true(cfg_array_string(c, "architectures", 1, &text));
    assert_string_equal(text, "B");
    assert_false(cfg_array_string(c, "architectures", 2, &text));
    assert_false(cfg_array_integer(c, "architectures", 0, &integer));
    assert_true(cfg_array_integer(c, "sizes", 0, &integer) && integer == 128);
    assert_true(cfg_array_integer(c, "sizes", 1, &integer) && integer == -128);
    assert_false(cfg_array_integer(c, "sizes", 2, &integer));
    assert_true(cfg_array_real(c, "sizes", 2, &real) && real == 1.5);
    assert_true(cfg_array_real(c, "sizes", 0, &real) && real == 128);
    assert_true(cfg_array_bool(c, "sizes", 3, &truth) && truth);
    assert_false(cfg_array_bool(c, "sizes", 4, &truth));
    assert_true(cfg_array(c, "empty", &count) && count == 0);
    assert_false(cfg_array_integer(c, "empty", 0, &integer));
    assert_true(cfg_array(c, "mixed", &count) && count == 3);
    assert_false(cfg_array_integer(c, "mixed", 0, &integer)); /* it holds a list */
    assert_false(cfg_array(c, "text_config", &count));
    assert_false(cfg_array(c, "absent", &count));

    assert_true(cfg_object(c, "quantization_config.config_groups", &count) && count == 2);
    assert_true(cfg_member(c, "quantization_config.config_groups", 0, &text));
    assert_string_equal(text, "group_0");
    assert_true(cfg_member(c, "quantization_config.config_groups", 1, &text));
    assert_string_equal(text, "group_1");
    assert_false(cfg_member(c, "quantization_config.config_groups", 2, &text));
    assert_true(cfg_object(c, "", &count) && count == 17);
    assert_true(cfg_member(c, "", 0, &text));
    assert_string_equal(text, "");
    assert_true(cfg_member(c, "", 1, &text));
    assert_string_equal(text, "a.b");
    assert_false(cfg_object(c, "sizes", &count));
    assert_false(cfg_member(c, "sizes", 0, &text));
    cfg_close(c);
}

/* ---- numbers --------------------------------------------------------------------------------- */

static bool parse(const char *text, io_json_value *value)
{
    static char copy[2048];
    io_json s = {.text = copy, .size = strlen(text)};
    memcpy(copy, text, s.size);
    return io_json_read(&s, value) && io_json_end(&s);
}

static void integers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool fits;
        int64_t value;
    } cases[] = {
        {"0", true, 0},
        {"-0", true, 0},
        {"7", true, 7},
        {"-7", true, -7},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0},
        {"18446744073709551616", false, 0},
        {"18446744073709551617", false, 0},
        {"99999999999999999999999999", false, 0},
        {"1.0", false, 0},
        {"1e3", false, 0},
        {"true", false, 0},
        {"NaN", false, 0},
        {"\"1\"", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        io_json_value value;
        int64_t integer = -77;
        assert_true(parse(cases[i].text, &value));
        assert_int_equal(io_json_to_integer(&value, &integer), cases[i].fits);
        assert_true(integer == (cases[i].fits ? cases[i].value : -77));
    }
}

static void expect_real(const char *text, double wanted)
{
    io_json_value value;
    double real = -77;
    assert_true(parse(text, &value));
    assert_int_equal(io_json_to_real(&value, &real), isfinite(wanted) != 0);
    if (!isfinite(wanted)) wanted = -77;
    if (memcmp(&real, &wanted, sizeof real) != 0)
        fail_msg("%s: %.17g, not %.17g", text, real, wanted);
}

static void reals(void **state)
{
    (void)state;
    static const char *const texts[] = {"0",
                                        "-0",
                                        "0.0",
                                        "-0.0e5",
                                        "1",
                                        "-1",
                                        "1e0",
                                        "1E5",
                                        "1e+5",
                                        "1e-5",
                                        "1.5e-5",
                                        "1e-06",
                                        "123456789012345678901234567890",
                                        "0.1",
                                        "0.30000000000000004",
                                        "1.7976931348623157e308",
                                        "1.7976931348623159e308",
                                        "1e309",
                                        "-1e309",
                                        "5e-324",
                                        "2e-324",
                                        "3e-324",
                                        "1e-400",
                                        "2.2250738585072011e-308",
                                        "2.2250738585072012e-308",
                                        "9007199254740993",
                                        "9007199254740992.99999999999999999999",
                                        "0.000000000000000000000000000001e30",
                                        "1000000000000000000000000000000e-30",
                                        "1e00000000000000000005",
                                        "1e-99999999999999999999",
                                        "1e99999999999999999999",
                                        "0e99999999999999999999",
                                        "3.4028234663852886e+38",
                                        "0.08838834764831845",
                                        "2.827",
                                        "1.702",
                                        "6.1035e-5"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        expect_real(texts[i], strtod(texts[i], NULL));
    expect_real("Infinity", INFINITY);
    expect_real("-Infinity", INFINITY);
    expect_real("NaN", INFINITY);
    expect_real("true", INFINITY);
    expect_real("\"1\"", INFINITY);
}

/* 1000 characters are converted, more are not. */
static void long_numbers(void **state)
{
    (void)state;
    char text[1100];
    memset(text, '0', sizeof text);
    memcpy(text, "0.", 2);
    memcpy(text + 995, "5e994", 6); /* 5 times 10^-994 times 10^994 */
    assert_int_equal(strlen(text), 1000);
    expect_real(text, 5);
    memset(text, '1', sizeof text);
    text[1000] = '\0';
    expect_real(text, INFINITY);
    memcpy(text, "0.", 2);
    expect_real(text, strtod(text, NULL));
    text[1000] = '1';
    text[1001] = '\0';
    io_json_value value;
    double real;
    assert_true(parse(text, &value));
    assert_false(io_json_to_real(&value, &real));
}

/* Random doubles, written in 17 digits, come back. */
static void random_reals(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (int i = 0; i < 100000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t bits = seed ^ seed >> 29;
        double wanted;
        char text[40];
        memcpy(&wanted, &bits, sizeof wanted);
        if (!isfinite(wanted)) continue;
        snprintf(text, sizeof text, i % 2 ? "%.17g" : "%.16e", wanted);
        expect_real(text, wanted);
    }
}

/* Where the decimal point is a comma. */
static void any_locale(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "fr_FR"};
    const char *set = NULL;
    for (size_t i = 0; i < 4 && !set; i++) set = setlocale(LC_NUMERIC, names[i]);
    cfg_file *c = opened("{\"a\":2.5}");
    double real;
    assert_true(cfg_real(c, "a", &real) && real == 2.5);
    cfg_close(c);
    setlocale(LC_NUMERIC, "C");
    if (!set) skip();
}

/* ---- skipping -------------------------------------------------------------------------------- */

static void skipping(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int depth;
        const char *rule; /* NULL: skipped up to the last character, a semicolon */
    } cases[] = {
        {"1;", 0, NULL},
        {"\"a\";", 0, NULL},
        {"[];", 1, NULL},
        {"{};", 1, NULL},
        {"[1,{\"a\":[],\"b\":{\"c\":null}},[[]],true];", 3, NULL},
        {"{\"a\":{\"a\":1,\"a\":1}};", 2, NULL},
        {"[];", 0, "lists are nested too deeply"},
        {"[[],[[]]];", 2, "lists are nested too deeply"},
        {"[1;", 1, "a comma or closing bracket is expected"},
        {"{\"a\":[}];", 2, "a value is expected"},
        {"[{\"a\":1]};", 2, "a comma or closing bracket is expected"},
        {"{\"a\":1,2};", 1, "a string is expected"},
        {"[1,];", 1, "a value is expected"},
        {";", 1, "a value is expected"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[64];
        io_json s = {.text = text, .size = strlen(cases[i].text)};
        memcpy(text, cases[i].text, s.size);
        assert_int_equal(io_json_skip(&s, cases[i].depth), !cases[i].rule);
        if (cases[i].rule)
            assert_string_equal(s.rule, cases[i].rule);
        else
            assert_int_equal(s.at, s.size - 1);
    }
    char nested[300];
    for (int depth = 64; depth <= 65; depth++) {
        io_json s = {.text = nested, .size = (size_t)(2 * depth)};
        for (int i = 0; i < depth; i++) nested[i] = '[', nested[depth + i] = ']';
        assert_int_equal(io_json_skip(&s, 64), depth == 64);
    }
}

/* ---- damage and files ------------------------------------------------------------------------ */

static void every_truncation_and_mutation(void **state)
{
    (void)state;
    cfg_file *config;
    char copy[sizeof sample];
    size_t size = sizeof sample - 1, refused = 0;
    for (size_t n = 0; n < size; n++)
        assert_int_equal(open_text(sample, n, &config, NULL), IO_E_FORMAT);
    for (size_t at = 0; at < size; at++) {
        for (int value = 0; value < 256; value++) {
            memcpy(copy, sample, size);
            copy[at] = (char)value;
            io_status status = open_text(copy, size, &config, NULL);
            assert_true(status == IO_OK || status == IO_E_FORMAT);
            refused += status != IO_OK;
            cfg_close(config);
        }
    }
    assert_in_range(refused, size * 128, size * 250);
}

static void files(void **state)
{
    (void)state;
    cfg_file *config;
    io_error error;
    assert_int_equal(cfg_open("/dev/null", &config, &error), IO_E_OPEN);
    assert_non_null(strstr(error.text, "/dev/null: is no regular file"));
    assert_null(config);
    assert_int_equal(cfg_open("/", &config, NULL), IO_E_OPEN);
    assert_int_equal(cfg_open("/absent/config.json", &config, &error), IO_E_OPEN);

    const char *root = getenv("MOE_SHARED_DIR");
    char fixtures[512], path[1024];
    snprintf(fixtures, sizeof fixtures, "%s/fixtures", root ? root : MOE_SOURCE_DIR "/../shared");
    DIR *dir = opendir(fixtures);
    if (!dir) skip();
    struct dirent *one;
    while ((one = readdir(dir))) {
        snprintf(path, sizeof path, "%s/%s/config.json", fixtures, one->d_name);
        if (access(path, R_OK) != 0) continue;
        if (cfg_open(path, &config, &error) != IO_OK) fail_msg("%s", error.text);
        assert_true(cfg_has(config, "model_type"));
        cfg_close(config);
    }
    closedir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rule),
        cmocka_unit_test(a_text_may_have_4_mib),
        cmocka_unit_test(values),
        cmocka_unit_test(kinds_and_paths),
        cmocka_unit_test(arrays_and_members),
        cmocka_unit_test(integers),
        cmocka_unit_test(reals),
        cmocka_unit_test(long_numbers),
        cmocka_unit_test(random_reals),
        cmocka_unit_test(any_locale),
        cmocka_unit_test(skipping),
        cmocka_unit_test(every_truncation_and_mutation),
        cmocka_unit_test(files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
