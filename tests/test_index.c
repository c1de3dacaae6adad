/* SPDX-License-Identifier: Apache-2.0 */
/* test_index.c - the reader of indices: rules, look-ups, and one as large as they get. */
#define _XOPEN_SOURCE 700

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/index.h"

#define MAP(text)  "{\"weight_map\":{" text "}}"
#define FIFTY      "01234567890123456789012345678901234567890123456789"
#define NAME_255   FIFTY FIFTY FIFTY FIFTY FIFTY "01234"
#define PLAIN_NAME "a file is no plain name in the folder of the index"

typedef struct rule_case {
    const char *text;
    const char *message; /* a part of it; NULL: accepted */
} rule_case;

/* clang-format off */
static const rule_case rule_cases[] = {
    {MAP(""), NULL},
    {MAP("\"a\":\"f\""), NULL},
    {MAP("\"a\":\"" NAME_255 "\""), NULL},
    {MAP("\"a\":\"..f\",\"b\":\"f..\",\"c\":\"...\",\"\":\".f\""), NULL},
    {MAP("\"a\":\"f \\\\ \xC3\xA9\""), NULL},
    {"{\"metadata\":{\"total_size\":12.5e3,\"x\":[[[]],null]},\"weight_map\":{},\"more\":true}", NULL},
    {" { \"weight_map\" : { \"a\" : \"f\" , \"b\" : \"f\" } } \n", NULL},

    {"", "an object is expected at byte 0"},
    {"[]", "an object is expected"},
    {"{}", "the object has no weight_map"},
    {"{\"metadata\":{\"weight_map\":{}}}", "the object has no weight_map"},
    {MAP("") "x", "text follows the JSON object at byte 17"},
    {"{\"weight_map\":{},\"weight_map\":{}}", "weight_map occurs twice at byte 17"},
    {"{\"weight_map\":{},\"weight\\u005fmap\":{}}", "weight_map occurs twice"},
    {"{\"weight_map\":[]}", "an object is expected at byte 14"},
    {"{\"weight_map\":null}", "an object is expected"},
    {"{\"weight_map\":{}", "a comma or closing bracket is expected"},
    {"{\"weight_map\"", "a colon is expected"},
    {"{\"weight_map\":{},}", "a string is expected"},
    {"{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "lists are nested too deeply at byte 37"},
    {"{\"a\":[1,", "a value is expected"},
    {MAP("\"a\":1"), "a string is expected at byte 19"},
    {MAP("\"a\":null"), "a string is expected"},
    {MAP("\"a\":[\"f\"]"), "a string is expected"},
    {MAP("\"a\":{}"), "a string is expected"},
    {MAP("\"a\""), "a colon is expected"},
    {MAP("\"a\":\"f\","), "a string is expected"},
    {MAP("\"a\":\"f\" \"b\":\"f\""), "a comma or closing bracket is expected"},
    {MAP("\"a\":\"f"), "the text ends inside a string"},
    {MAP("\"a\":\"\xFF\""), "a string is not valid UTF-8"},
    {MAP("\"a\":\"f\\u0000/../x\""), "a string holds a NUL"},
    {MAP("\"a\":\"\""), PLAIN_NAME " at byte 19"},
    {MAP("\"a\":\".\""), PLAIN_NAME},
    {MAP("\"a\":\"..\""), PLAIN_NAME},
    {MAP("\"a\":\"/etc/passwd\""), PLAIN_NAME},
    {MAP("\"a\":\"../f\""), PLAIN_NAME},
    {MAP("\"a\":\"f/\""), PLAIN_NAME},
    {MAP("\"a\":\"d/f\""), PLAIN_NAME},
    {MAP("\"a\":\"d\\u002ff\""), PLAIN_NAME},
    {MAP("\"a\":\"d\\/f\""), PLAIN_NAME},
    {MAP("\"a\":\"" NAME_255 "x\""), "the name of a file is longer than 255 bytes"},
    {MAP("\"a\":\"f\",\"a\":\"f\""), "tensor \"a\": the name occurs twice at byte 24"},
    {MAP("\"a\":\"f\",\"b\":\"f\",\"a\":\"g\""), "tensor \"a\": the name occurs twice at byte"},
};
/* clang-format on */

/* From an allocation of exactly its size, so that a sanitizer sees a read beyond it. */
static io_status open_text(const char *text, size_t size, ix_index **index, io_error *error)
{
    char *exact = malloc(size + 1);
    assert_non_null(exact);
    memcpy(exact + 1, text, size);
    io_status status = ix_open_memory(exact + 1, size, index, error);
    free(exact);
    return status;
}

static void use(const ix_index *index)
{
    for (size_t i = 0; i < ix_count(index); i++) {
        size_t file, found;
        const char *tensor = ix_tensor(index, i, &file);
        assert_true(file < ix_files(index));
        assert_true(ix_find(index, tensor, &found) && found == file);
    }
    for (size_t i = 1; i < ix_files(index); i++)
        assert_true(strcmp(ix_file(index, i - 1), ix_file(index, i)) < 0);
}

static void every_rule(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rule_cases / sizeof *rule_cases; i++) {
        const char *text = rule_cases[i].text, *message = rule_cases[i].message;
        ix_index *index;
        io_error error = {0};
        io_status status = open_text(text, strlen(text), &index, &error);
        if (status != (message ? IO_E_FORMAT : IO_OK)) fail_msg("%s: %s", text, error.text);
        assert_int_equal(index == NULL, status != IO_OK);
        if (message && (!strstr(error.text, message) || strncmp(error.text, "(memory): ", 10)))
            fail_msg("%s: %s", text, error.text);
        if (index) use(index);
        ix_close(index);
    }
}

static void look_ups(void **state)
{
    (void)state;
    static const char text[] = "{\"metadata\":{\"total_size\":7},\"weight_map\":{\"b\":\"m-2\","
                               "\"a\":\"m-1\",\"d\":\"m-2\",\"c\":\"m-3\",\"ab\":\"m-1\"}}";
    static const char *const tensors[] = {"a", "ab", "b", "c", "d"};
    static const size_t files[] = {0, 0, 1, 2, 1};
    ix_index *index;
    size_t file = 77;
    assert_int_equal(open_text(text, sizeof text - 1, &index, NULL), IO_OK);
    assert_int_equal(ix_files(index), 3);
    assert_string_equal(ix_file(index, 0), "m-1");
    assert_string_equal(ix_file(index, 2), "m-3");
    assert_int_equal(ix_count(index), 5);
    assert_false(ix_find(index, "", &file));
    assert_false(ix_find(index, "e", &file));
    assert_int_equal(file, 77);
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(ix_tensor(index, i, &file), tensors[i]);
        assert_int_equal(file, files[i]);
        assert_true(ix_find(index, tensors[i], &file) && file == files[i]);
    }
    ix_close(index);
    ix_close(NULL);

    assert_int_equal(open_text(MAP(""), strlen(MAP("")), &index, NULL), IO_OK);
    assert_int_equal(ix_count(index), 0);
    assert_int_equal(ix_files(index), 0);
    assert_false(ix_find(index, "a", &file));
    ix_close(index);
}

/* As many tensors as the largest models have. */
static void a_large_index(void **state)
{
    (void)state;
    enum { TENSORS = 150000, ROOM = 160 };
    char *text = malloc((size_t)TENSORS * ROOM), *at = text;
    assert_non_null(text);
    at += sprintf(at, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (int i = 0; i < TENSORS; i++)
        at += snprintf(at, ROOM,
                       "%s\"model.layers.%d.mlp.experts.%d.gate_proj.weight_scale_inv\":"
                       "\"model-%05d-of-00163.safetensors\"",
                       i ? ",\n" : "", i / 2500, i % 2500, i / 921 + 1);
    at += sprintf(at, "}}");
    ix_index *index;
    io_error error;
    assert_int_equal(ix_open_memory(text, (size_t)(at - text), &index, &error), IO_OK);
    assert_int_equal(ix_count(index), TENSORS);
    assert_int_equal(ix_files(index), 163);
    size_t file;
    assert_true(
        ix_find(index, "model.layers.59.mlp.experts.2499.gate_proj.weight_scale_inv", &file));
    assert_string_equal(ix_file(index, file), "model-00163-of-00163.safetensors");
    use(index);
    ix_close(index);
    free(text);
}

static void every_truncation_and_mutation(void **state)
{
    (void)state;
    static const char sample[] =
        "{\"m\":[1,{\"x\":2}],\"weight_map\":{\"a\":\"f-1\",\"b\":\"f-2\"}}";
    char copy[sizeof sample];
    size_t size = sizeof sample - 1, refused = 0;
    ix_index *index;
    for (size_t n = 0; n < size; n++)
        assert_int_equal(open_text(sample, n, &index, NULL), IO_E_FORMAT);
    for (size_t at = 0; at < size; at++) {
        for (int value = 0; value < 256; value++) {
            memcpy(copy, sample, size);
            copy[at] = (char)value;
            io_status status = open_text(copy, size, &index, NULL);
            assert_true(status == IO_OK || status == IO_E_FORMAT);
            refused += status != IO_OK;
            if (index) use(index);
            ix_close(index);
        }
    }
    assert_in_range(refused, size * 128, size * 250);
}

static void files(void **state)
{
    (void)state;
    char path[] = "/tmp/moe_index_XXXXXX";
    static const char text[] = MAP("\"a\":\"f\"");
    ix_index *index;
    io_error error;
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, sizeof text - 1) == sizeof text - 1);
    close(fd);
    assert_int_equal(ix_open(path, &index, &error), IO_OK);
    use(index);
    ix_close(index);
    assert_int_equal(truncate(path, 100000001), 0); /* sparse, and not read */
    assert_int_equal(ix_open(path, &index, &error), IO_E_FORMAT);
    assert_non_null(strstr(error.text, "the text is longer than 100000000 bytes"));
    unlink(path);
    assert_int_equal(ix_open(path, &index, &error), IO_E_OPEN);
    assert_int_equal(ix_open("/dev/null", &index, &error), IO_E_OPEN);
    assert_null(index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rule),    cmocka_unit_test(look_ups),
        cmocka_unit_test(a_large_index), cmocka_unit_test(every_truncation_and_mutation),
        cmocka_unit_test(files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
