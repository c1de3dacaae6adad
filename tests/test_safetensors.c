/* SPDX-License-Identifier: Apache-2.0 */
/* test_safetensors.c - the reader: one file for each rule, valid edge cases, mutations, and the
 * shared files.
 *
 * The files in $MOE_SHARED_DIR (default: shared next to the source tree) are read if they are
 * there. */
#define _XOPEN_SOURCE 700

#include <fcntl.h>
#include <ftw.h>
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

#include "io/json_scan.h"
#include "io/safetensors.h"
#include "safetensors_bytes.h"

#define ENTRY(name, dtype, shape, offsets)                                                         \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) "{" ENTRY("a", dtype, shape, offsets) "}"
#define META(text)                 "{\"__metadata__\":" text "}"
#define TEN                        "0123456789"
#define CHARACTERS_98              TEN TEN TEN TEN TEN TEN TEN TEN TEN "01234567"

typedef struct rule_case {
    const char *header;
    size_t data_size;
    const char *message; /* a part of it; NULL: accepted */
} rule_case;

/* clang-format off */
static const rule_case rule_cases[] = {
    /* sound */
    {"{}", 0, NULL},
    {"{}   \t\r\n", 0, NULL},
    {"{ }", 0, NULL},
    {META("{}"), 0, NULL},
    {META("{\"k\":\"v\",\"l\":\"\"}"), 0, NULL},
    {"{ \"a\" : { \"shape\" : [ 2 , 3 ] , \"data_offsets\" : [ 0 , 12 ] , \"dtype\" : \"F16\" } }", 12, NULL},
    {ONE("F32", "[]", "[0,4]"), 4, NULL},
    {ONE("F32", "[7,0]", "[0,0]"), 0, NULL},
    {ONE("U8", "[1,1,1,1,1,1,1,3]", "[0,3]"), 3, NULL},
    {ONE("F4", "[2,3]", "[0,3]"), 3, NULL},
    {ONE("F6_E2M3", "[4]", "[0,3]"), 3, NULL},
    {ONE("U8", "[0,1152921504606846975]", "[0,0]"), 0, NULL},
    {"{" ENTRY("b", "F32", "[1]", "[1,5]") "," ENTRY("a", "U8", "[1]", "[0,1]") "}", 5, NULL},
    {"{" ENTRY("b", "U8", "[0]", "[1,1]") "," ENTRY("a", "U8", "[1]", "[0,1]") ","
         ENTRY("c", "U8", "[2]", "[1,3]") "," ENTRY("d", "U8", "[0]", "[3,3]") "}", 3, NULL},
    {"{" ENTRY("b", "U8", "[0]", "[0,0]") "," ENTRY("a", "U8", "[0]", "[0,0]") "}", 0, NULL},
    {"{" ENTRY("a", "U8", "[1]", "[0,1]") "," ENTRY("b", "U8", "[0]", "[0,0]") "}", 1, NULL},
    {"{" ENTRY("b", "U8", "[0]", "[0,0]") "," ENTRY("a", "U8", "[1]", "[0,1]") "}", 1, NULL},
    {"{" ENTRY("", "U8", "[1]", "[0,1]") "}", 1, NULL},
    {"{" ENTRY("\\ud83d\\ude00\\u00E9\\u20ac\\u007f\\/\\b\\f\\n\\r\\t\\\"\\\\", "U8", "[1]", "[0,1]") "}", 1, NULL},
    {"{" ENTRY("\xC3\xA9\xE0\xA0\x80\xED\x9F\xBF\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF", "U8", "[1]", "[0,1]") "}", 1, NULL},

    /* the header as a whole */
    {"", 0, "the header does not start with { at byte 8"},
    {"[]", 0, "the header does not start with {"},
    {" {}", 0, "the header does not start with {"},
    {"{", 0, "a string is expected at byte 9"},
    {"{}x", 0, "text follows the JSON object at byte 10"},
    {"{}{}", 0, "text follows the JSON object"},
    {"{},", 0, "text follows the JSON object"},
    {"{}\v", 0, "text follows the JSON object"},
    {"{,}", 0, "a string is expected"},
    {META("{}") "}", 0, "text follows the JSON object"},
    {"{\"__metadata__\":{},}", 0, "a string is expected"},
    {"{\"__metadata__\":{} \"a\"", 0, "a comma or closing bracket is expected"},
    {"{\"__metadata__\" {}}", 0, "a colon is expected"},
    {"{1:{}}", 0, "a string is expected at byte 9"},
    {"{[[[[[[[[[[[[[[[[", 0, "a string is expected at byte 9"},
    {"{\"a\":[[[[[[[[[[[[", 0, "tensor \"a\": an object is expected at byte 13"},

    /* entries */
    {"{\"a\":null}", 0, "an object is expected"},
    {"{\"a\":[\"U8\",[0],[0,0]]}", 0, "an object is expected"},
    {"{\"a\":{}}", 0, "tensor \"a\": the entry lacks dtype, shape or data_offsets at byte 13"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, "the entry lacks"},
    {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0, "the entry lacks"},
    {"{\"a\":{\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "the entry lacks"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":1}}", 0, "a key of the entry is unknown at byte 60"},
    {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 0, "a key of the entry occurs twice"},
    {"{\"a\":{\"shape\":[],\"sh\\u0061pe\":[]}}", 0, "a key of the entry occurs twice"},
    {"{\"a\":{\"data_offsets\":[0,0],\"data_offsets\":[0,0]}}", 0, "a key of the entry occurs twice"},
    {"{\"a\":{\"dtype\"}}", 0, "a colon is expected"},
    {"{\"a\":{\"dtype\":\"U8\" \"shape\":[]}}", 0, "a comma or closing bracket is expected"},
    {ONE("F33", "[1]", "[0,4]"), 4, "tensor \"a\": the dtype is unknown at byte 22"},
    {ONE("f32", "[1]", "[0,4]"), 4, "the dtype is unknown"},
    {ONE("", "[1]", "[0,4]"), 4, "the dtype is unknown"},
    {"{\"a\":{\"dtype\":3,\"shape\":[]}}", 0, "a string is expected"},
    {ONE("U8", "{}", "[0,0]"), 0, "an array is expected"},
    {ONE("U8", "3", "[0,3]"), 3, "an array is expected"},
    {ONE("U8", "[[3]]", "[0,3]"), 3, "a number is expected"},
    {ONE("U8", "[3,]", "[0,3]"), 3, "a number is expected"},
    {ONE("U8", "[3 1]", "[0,3]"), 3, "a comma or closing bracket is expected"},
    {ONE("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "the shape has more than 8 dimensions"},
    {ONE("U8", "[-1]", "[0,0]"), 0, "a number is negative at byte 36"},
    {ONE("U8", "[-0]", "[0,0]"), 0, "a number is negative"},
    {ONE("U8", "[3.0]", "[0,3]"), 3, "a number is not whole"},
    {ONE("U8", "[3e0]", "[0,3]"), 3, "a number is not whole"},
    {ONE("U8", "[3E0]", "[0,3]"), 3, "a number is not whole"},
    {ONE("U8", "[03]", "[0,3]"), 3, "a number starts with 0"},
    {ONE("U8", "[+3]", "[0,3]"), 3, "a number is expected"},
    {ONE("U8", "[\"3\"]", "[0,3]"), 3, "a number is expected"},
    {ONE("U8", "[true]", "[0,1]"), 1, "a number is expected"},
    {ONE("U8", "[9223372036854775808]", "[0,0]"), 0, "a number exceeds 2^63-1"},
    {ONE("U8", "[18446744073709551615]", "[0,0]"), 0, "a number exceeds 2^63-1"},
    {ONE("U8", "[18446744073709551616]", "[0,0]"), 0, "a number exceeds 2^63-1"},
    {ONE("U8", "[92233720368547758070]", "[0,0]"), 0, "a number exceeds 2^63-1"},
    {ONE("U8", "[99999999999999999999999999]", "[0,0]"), 0, "a number exceeds 2^63-1"},
    {ONE("U8", "[4294967296,4294967296]", "[0,0]"), 0, "the shape overflows"},
    {ONE("U8", "[0,4294967296,4294967296]", "[0,0]"), 0, "the shape overflows"},
    {ONE("U8", "[0,1152921504606846976]", "[0,0]"), 0, "the shape overflows"},
    {ONE("F64", "[144115188075855872]", "[0,0]"), 0, "the shape overflows"},
    {ONE("F4", "[3]", "[0,2]"), 2, "fills no whole bytes"},
    {ONE("F6_E3M2", "[2]", "[0,2]"), 2, "fills no whole bytes"},
    {ONE("U8", "[1]", "[0]"), 1, "data_offsets is not a pair"},
    {ONE("U8", "[1]", "[]"), 1, "data_offsets is not a pair"},
    {ONE("U8", "[1]", "[0,1,1]"), 1, "data_offsets is not a pair"},
    {ONE("U8", "[1]", "[-1,0]"), 1, "a number is negative"},
    {ONE("U8", "[1]", "[0.0,1]"), 1, "a number is not whole"},
    {ONE("U8", "[1]", "[0,18446744073709551617]"), 1, "a number exceeds 2^63-1"},
    {ONE("U8", "[1]", "[1,0]"), 1, "data_offsets end before they begin"},
    {ONE("U8", "[1]", "[0,2]"), 1, "data_offsets end beyond the file"},
    {ONE("U8", "[1]", "[9223372036854775807,9223372036854775807]"), 1, "data_offsets end beyond the file"},
    {ONE("F32", "[4,5]", "[0,64]"), 64, "data_offsets disagree with dtype and shape at byte 13"},
    {ONE("F32", "[1]", "[0,8]"), 8, "data_offsets disagree with dtype and shape"},
    {ONE("U8", "[1]", "[0,0]"), 0, "data_offsets disagree with dtype and shape"},

    /* names and coverage */
    {"{" ENTRY("a", "U8", "[1]", "[0,1]") "," ENTRY("a", "U8", "[1]", "[1,2]") "}", 2, "tensor \"a\": the name occurs twice"},
    {"{" ENTRY("a", "U8", "[1]", "[0,1]") "," ENTRY("b", "U8", "[1]", "[1,2]") "," ENTRY("\\u0061", "U8", "[1]", "[2,3]") "}", 3, "tensor \"a\": the name occurs twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ occurs twice"},
    {"{\"__metadata__\":{},\"__metad\\u0061ta__\":{}}", 0, "__metadata__ occurs twice"},
    {META("{\"k\":\"1\",\"j\":\"2\",\"k\":\"3\"}"), 0, "a key of __metadata__ occurs twice"},
    {"{" ENTRY("a", "U8", "[2]", "[0,2]") "," ENTRY("b", "U8", "[2]", "[1,3]") "}", 3, "tensor \"b\": the data overlaps another tensor at byte 114"},
    {"{" ENTRY("a", "U8", "[4]", "[0,4]") "," ENTRY("b", "U8", "[2]", "[1,3]") "}", 4, "the data overlaps another tensor"},
    {"{" ENTRY("a", "U8", "[4]", "[0,4]") "," ENTRY("b", "U8", "[4]", "[0,4]") "}", 4, "the data overlaps another tensor"},
    {"{" ENTRY("a", "U8", "[4]", "[0,4]") "," ENTRY("b", "U8", "[0]", "[2,2]") "}", 4, "the data overlaps another tensor"},
    {"{" ENTRY("a", "U8", "[1]", "[0,1]") "," ENTRY("b", "U8", "[1]", "[2,3]") "}", 3, "tensor \"b\": a hole lies before the data at byte 114"},
    {ONE("U8", "[1]", "[1,2]"), 2, "a hole lies before the data"},
    {ONE("U8", "[0]", "[1,1]"), 1, "a hole lies before the data"},
    {ONE("U8", "[1]", "[0,1]"), 2, "bytes follow the last tensor at byte 62"},
    {"{}", 1, "bytes follow the last tensor at byte 10"},

    /* __metadata__ */
    {META("null"), 0, "an object is expected at byte 24"},
    {META("[]"), 0, "an object is expected"},
    {META("{\"k\":1}"), 0, "a string is expected at byte 29"},
    {META("{\"k\":null}"), 0, "a string is expected"},
    {META("{\"k\":{}}"), 0, "a string is expected"},
    {META("{\"k\":[[[[[[[[[[[[[[[[[[[[[["), 0, "a string is expected"},
    {META("{\"k\"}"), 0, "a colon is expected"},

    /* strings */
    {"{\"", 0, "the text ends inside a string"},
    {"{\"a", 0, "the text ends inside a string at byte 11"},
    {"{\"a\\", 0, "the text ends inside a string"},
    {"{\"a\\u00", 0, "the text ends inside a string"},
    {"{\"a\\u000", 0, "the text ends inside a string"},
    {"{\"a\\u0041", 0, "the text ends inside a string at byte 17"},
    {"{\"a\\ud83d", 0, "a surrogate stands alone"},
    {"{\"a\\ud83d\\u", 0, "the text ends inside a string"},
    {"{\"a\\x\"", 0, "an escape is unknown at byte 11"},
    {"{\"a\\u00g0\"", 0, "\\u is not followed by four hexadecimal digits"},
    {"{\"a\\u0000\"", 0, "a string holds a NUL at byte 11"},
    {"{\"a\\ud83dx", 0, "a surrogate stands alone"},
    {"{\"a\\ud83d\\n\"", 0, "a surrogate stands alone"},
    {"{\"a\\ud83d\\u0041\"", 0, "a surrogate stands alone"},
    {"{\"a\\ud83d\\ue000\"", 0, "a surrogate stands alone"},
    {"{\"a\\ude00\"", 0, "a surrogate stands alone"},
    {"{\"a\nb\"", 0, "a string holds a control byte at byte 11"},
    {"{\"a\x1F\"", 0, "a string holds a control byte"},
    {"{\"\xFF\xFE\xC0\"", 0, "a string is not valid UTF-8 at byte 10"},
    {"{\"\x80\"", 0, "a string is not valid UTF-8"},
    {"{\"\xC0\x80\"", 0, "a string is not valid UTF-8"},
    {"{\"\xC1\xBF\"", 0, "a string is not valid UTF-8"},
    {"{\"\xC3\"", 0, "a string is not valid UTF-8"},
    {"{\"\xC3", 0, "a string is not valid UTF-8"},
    {"{\"\xE0\x9F\xBF\"", 0, "a string is not valid UTF-8"},
    {"{\"\xE2\x82\"", 0, "a string is not valid UTF-8"},
    {"{\"\xED\xA0\x80\"", 0, "a string is not valid UTF-8"},
    {"{\"\xF0\x8F\xBF\xBF\"", 0, "a string is not valid UTF-8"},
    {"{\"\xF0\x9F\x98\"", 0, "a string is not valid UTF-8"},
    {"{\"\xF4\x90\x80\x80\"", 0, "a string is not valid UTF-8"},
    {"{\"\xF5\x80\x80\x80\"", 0, "a string is not valid UTF-8"},
    {META("{\"k\":\"\xFF\"}"), 0, "a string is not valid UTF-8"},
    {"{\"a\":{\"dtype\":\"\xFF", 0, "tensor \"a\": a string is not valid UTF-8"},

    /* names in messages: no control bytes, no half characters, not too long */
    {"{\"\xC2\xA7\":{}}", 0, "tensor \"\xC2\xA7\": the entry lacks"},
    {"{\"x\\n\\u001b[1m\\u009b\\u007f\":{}}", 0, "tensor \"x??[1m???\": the entry lacks"},
    {"{\"" CHARACTERS_98 "\xC3\xA9\":{}}", 0, "01234567\xC3\xA9\": the entry lacks"},
    {"{\"" CHARACTERS_98 "8\xC3\xA9\":{}}", 0, "012345678\": the entry lacks"},
    {"{\"" CHARACTERS_98 "89\":{}}", 0, "0123456789\": the entry lacks"},
    {"{\"" CHARACTERS_98 "890\":{}}", 0, "0123456789\": the entry lacks"},
};
/* clang-format on */

static char folder[] = "/tmp/moe_safetensors_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* Reads everything that can be asked of an accepted file. */
static void use(const st_file *file)
{
    unsigned char small[512];
    size_t offset = 0;
    for (size_t i = 0; i < st_count(file); i++) {
        const st_tensor *t = st_at(file, i);
        assert_ptr_equal(st_find(file, t->name), t);
        assert_int_equal(t->offset, offset);
        offset += t->bytes;
        void *data = t->bytes <= sizeof small ? small : malloc(t->bytes);
        assert_int_equal(st_read(file, t, data, NULL), IO_OK);
        if (data != small) free(data);
    }
    for (size_t i = 0; i < st_metadata_count(file); i++)
        assert_non_null(st_metadata(file, st_metadata_key(file, i)));
    assert_null(st_find(file, "no such tensor"));
    assert_null(st_metadata(file, "no such key"));
}

/* The status of the file in memory and the same file on disk, which must agree, rule included. */
static io_status status_of(file_bytes file, io_error *error)
{
    st_file *in_memory, *on_disk;
    io_error disk_error = {0};
    memset(error, 0, sizeof *error);
    io_status status = st_open_memory(file.bytes, file.size, &in_memory, error);
    write_bytes(in_folder("rule"), file);
    assert_int_equal(st_open(in_folder("rule"), &on_disk, &disk_error), status);
    if (status == IO_OK) {
        use(in_memory);
        use(on_disk);
        st_close(in_memory);
        st_close(on_disk);
    } else {
        assert_null(in_memory);
        assert_null(on_disk);
        assert_int_equal(error->status, status);
        assert_int_equal(disk_error.status, status);
        assert_string_equal(strstr(error->text, ": "), strstr(disk_error.text, ": "));
        assert_null(strchr(error->text, '\n'));
    }
    return status;
}

static void expect(file_bytes file, const char *message)
{
    io_error error;
    io_status status = status_of(file, &error);
    if (status != (message ? IO_E_FORMAT : IO_OK) || (message && !strstr(error.text, message)))
        fail_msg("header %.*s\n  gives  %d %s\n  wanted %s", (int)file.size - 8, file.bytes + 8,
                 (int)status, error.text, message ? message : "acceptance");
    free(file.bytes);
}

static void rules(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rule_cases / sizeof *rule_cases; i++) {
        const rule_case *c = &rule_cases[i];
        expect(safetensors_bytes(c->header, strlen(c->header), c->data_size), c->message);
    }
    static const char raw_nul[] = "{\"a\0b\":{}}", nul_behind[] = "{}\0";
    expect(safetensors_bytes(raw_nul, sizeof raw_nul - 1, 0), "a string holds a control byte");
    expect(safetensors_bytes(nul_behind, sizeof nul_behind - 1, 0), "text follows");
}

static void name_lengths(void **state)
{
    (void)state;
    enum { LIMIT = 65536 };
    static const char tail[] = "\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}";
    for (int over = 0; over < 2; over++) {
        size_t name = LIMIT + (size_t)over;
        char *header = malloc(name + 2 + sizeof tail);
        assert_non_null(header);
        memcpy(header, "{\"", 2);
        memset(header + 2, 'n', name);
        memcpy(header + 2 + name, tail, sizeof tail);
        expect(safetensors_bytes(header, strlen(header), 1),
               over ? "the name is longer than 65536 bytes" : NULL);
        free(header);
    }
}

static void header_lengths(void **state)
{
    (void)state;
    static const struct {
        uint64_t length;
        const char *message;
    } cases[] = {
        {2, NULL},
        {3, "the header ends beyond the file"},
        {100000000, "the header ends beyond the file"},
        {100000001, "the header is longer than 100000000 bytes"},
        {INT64_MAX, "the header is longer than 100000000 bytes"},
        {UINT64_MAX - 7, "the header is longer than 100000000 bytes"},
        {UINT64_MAX, "the header is longer than 100000000 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        file_bytes file = safetensors_bytes("{}", 2, 0);
        for (int b = 0; b < 8; b++) file.bytes[b] = (unsigned char)(cases[i].length >> 8 * b);
        expect(file, cases[i].message);
    }
}

/* What the reference writer gives for these four tensors and one pair of metadata. */
static const char sample[] =
    "\x10\x01\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},"
    "\"\xc3\xa9\\n\\\"\\\\\\u001f/\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
    "\"s\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[8,10]},"
    "\"a\":{\"dtype\":\"U8\",\"shape\":[0,7],\"data_offsets\":[10,10]},"
    "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[10,13]}}       "
    "\0\0\xc0?\0\0\0\xc0\x80?\x01\x02\x03";
enum { SAMPLE_SIZE = sizeof sample - 1, SAMPLE_HEADER_END = SAMPLE_SIZE - 13 };

static void sample_is_understood(void **state)
{
    (void)state;
    st_file *file;
    assert_int_equal(st_open_memory(sample, SAMPLE_SIZE, &file, NULL), IO_OK);
    assert_int_equal(st_count(file), 4);
    assert_int_equal(st_metadata_count(file), 1);
    assert_string_equal(st_metadata_key(file, 0), "format");
    assert_string_equal(st_metadata(file, "format"), "pt");

    const st_tensor *t = st_find(file, "\xc3\xa9\n\"\\\x1f/");
    assert_non_null(t);
    assert_ptr_equal(t, st_at(file, 0));
    assert_int_equal(t->dtype, ST_F32);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[0], 1);
    assert_int_equal(t->shape[1], 2);
    char data[9] = "........";
    assert_int_equal(st_read(file, t, data, NULL), IO_OK);
    assert_memory_equal(data, "\0\0\xc0?\0\0\0\xc0", 9);

    t = st_find(file, "a");
    assert_non_null(t);
    assert_int_equal(t->bytes, 0);
    assert_int_equal(st_read(file, t, NULL, NULL), IO_OK);
    t = st_find(file, "b");
    assert_non_null(t);
    assert_int_equal(st_read(file, t, data, NULL), IO_OK);
    assert_memory_equal(data, "\1\2\3?", 4); /* and no byte more */
    st_close(file);
    st_close(NULL);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    for (size_t size = 0; size < SAMPLE_SIZE; size++) {
        char *exact = malloc(size + 1); /* of its own, so that a sanitizer sees a read beyond it */
        assert_non_null(exact);
        char *end = memcpy(exact + 1, sample, size);
        st_file *file;
        io_error error;
        assert_int_equal(st_open_memory(end, size, &file, &error), IO_E_FORMAT);
        if (size < 8) assert_non_null(strstr(error.text, "shorter than 8 bytes"));
        free(exact);
    }
    char longer[SAMPLE_SIZE + 1];
    memcpy(longer, sample, SAMPLE_SIZE);
    longer[SAMPLE_SIZE] = 0;
    io_error error;
    st_file *file;
    assert_int_equal(st_open_memory(longer, sizeof longer, &file, &error), IO_E_FORMAT);
    assert_non_null(strstr(error.text, "bytes follow the last tensor"));
}

static void every_mutation_is_survived(void **state)
{
    (void)state;
    char *copy = malloc(SAMPLE_SIZE);
    assert_non_null(copy);
    size_t refused = 0;
    for (size_t at = 0; at < SAMPLE_HEADER_END; at++) {
        for (int value = 0; value < 256; value++) {
            memcpy(copy, sample, SAMPLE_SIZE);
            copy[at] = (char)value;
            st_file *file;
            io_error error;
            io_status status = st_open_memory(copy, SAMPLE_SIZE, &file, &error);
            assert_true(status == IO_OK || status == IO_E_FORMAT);
            refused += status != IO_OK;
            if (status == IO_OK) use(file);
            st_close(file);
        }
    }
    assert_in_range(refused, (uintmax_t)SAMPLE_HEADER_END * 200,
                    (uintmax_t)SAMPLE_HEADER_END * 255);
    free(copy);
}

static void expect_open_failure(const char *path, const char *message)
{
    st_file *file;
    io_error error;
    assert_int_equal(st_open(path, &file, &error), IO_E_OPEN);
    assert_null(file);
    assert_non_null(strstr(error.text, message));
    assert_int_equal(st_open(path, &file, NULL), IO_E_OPEN);
}

static void only_regular_files_are_opened(void **state)
{
    (void)state;
    expect_open_failure(in_folder("absent"), "cannot be opened: No such file or directory");
    expect_open_failure(folder, "is no regular file");
    expect_open_failure("/dev/null", "is no regular file");
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    alarm(20); /* a reader that waits for a writer ends here */
    expect_open_failure(in_folder("fifo"), "is no regular file");
    alarm(0);
}

static void long_paths_leave_room_for_the_rule(void **state)
{
    (void)state;
    char path[2048];
    memset(path, 'd', sizeof path);
    path[sizeof path - 202] = '\xC3'; /* a character of two bytes lies across the cut */
    path[sizeof path - 201] = '\xA9';
    memcpy(path + sizeof path - 9, "/deepest", 9);
    expect_open_failure(path, "/deepest: cannot be opened: File name too long");
    io_error error;
    st_file *file;
    assert_int_equal(st_open(path, &file, &error), IO_E_OPEN);
    assert_memory_equal(error.text, "...dddd", 7);
}

static void a_file_truncated_after_open(void **state)
{
    (void)state;
    write_bytes(in_folder("cut"), (file_bytes){(unsigned char *)sample, SAMPLE_SIZE});
    st_file *file;
    io_error error;
    char data[16];
    assert_int_equal(st_open(in_folder("cut"), &file, &error), IO_OK);
    assert_int_equal(truncate(in_folder("cut"), SAMPLE_HEADER_END + 4), 0);
    assert_int_equal(st_read(file, st_at(file, 0), data, &error), IO_E_READ);
    assert_non_null(strstr(error.text, "cut: the file ends at byte 284"));
    st_close(file);
}

static void dtypes(void **state)
{
    (void)state;
    static const int64_t four[] = {4}, huge[] = {INT64_MAX, INT64_MAX}, negative[] = {-4};
    size_t bytes;
    for (int i = 0; i < ST_DTYPE_COUNT; i++) {
        assert_non_null(st_dtype_name((st_dtype)i));
        assert_true(st_shape_bytes((st_dtype)i, four, 1, &bytes));
        assert_int_equal(bytes * 8, 4 * st_dtype_bits((st_dtype)i));
    }
    assert_string_equal(st_dtype_name(ST_BF16), "BF16");
    assert_int_equal(st_dtype_bits(ST_F6_E3M2), 6);
    assert_null(st_dtype_name(ST_DTYPE_COUNT));
    assert_null(st_dtype_name((st_dtype)-1));
    assert_int_equal(st_dtype_bits(ST_DTYPE_COUNT), 0);
    assert_false(st_shape_bytes(ST_DTYPE_COUNT, four, 1, &bytes));
    assert_false(st_shape_bytes(ST_U8, huge, 2, &bytes));
    assert_false(st_shape_bytes(ST_U8, negative, 1, &bytes));
    assert_true(st_shape_bytes(ST_C64, NULL, 0, &bytes));
    assert_int_equal(bytes, 8);
}

/* ---- shared files
 * ------------------------------------------------------------------------------ */

static const char *shared(const char *name)
{
    static char path[1024];
    const char *root = getenv("MOE_SHARED_DIR");
    snprintf(path, sizeof path, "%s/%s", root ? root : MOE_SOURCE_DIR "/../shared", name);
    return path;
}

static size_t files_opened;

static int open_if_sound(const char *path, const struct stat *about, int type, struct FTW *where)
{
    (void)about, (void)where;
    size_t length = strlen(path);
    if (type != FTW_F || length < 12 || strcmp(path + length - 12, ".safetensors") != 0) return 0;
    st_file *file;
    io_error error;
    if (st_open(path, &file, &error) != IO_OK) fail_msg("%s", error.text);
    assert_true(st_count(file) > 0);
    use(file);
    st_close(file);
    files_opened++;
    return 0;
}

static void shared_files_are_accepted(void **state)
{
    (void)state;
    files_opened = 0;
    if (access(shared("golden"), R_OK) != 0) skip();
    nftw(shared("golden"), open_if_sound, 16, FTW_PHYS);
    nftw(shared("fixtures"), open_if_sound, 16, FTW_PHYS);
    assert_true(files_opened > 0);
}

static void malformed_files_are_refused(void **state)
{
    (void)state;
    file_bytes table = bytes_of_file(shared("fixtures/malformed/malformed.tsv"));
    if (!table.bytes) skip();
    size_t rejected = 0, accepted = 0;
    char *next = NULL;
    for (char *line = strtok_r((char *)table.bytes, "\n", &next); line;
         line = strtok_r(NULL, "\n", &next)) {
        char name[256], expected[16], stage[16], path[512];
        assert_int_equal(sscanf(line, "%255s %15s %15s", name, expected, stage), 3);
        bool accept = strcmp(expected, "accept") == 0;
        if (!strstr(name, "safetensors/") || (!accept && strcmp(stage, "container") != 0)) continue;
        snprintf(path, sizeof path, "fixtures/malformed/%s", name);
        st_file *file;
        io_error error = {.text = "accepted"};
        io_status status = st_open(shared(path), &file, &error);
        if (status != (accept ? IO_OK : IO_E_FORMAT)) fail_msg("%s: %s", line, error.text);
        if (accept) use(file);
        st_close(file);
        *(accept ? &accepted : &rejected) += 1;
    }
    assert_true(rejected > 0 && accepted > 0);
    free(table.bytes);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *about, int type, struct FTW *where)
{
    (void)about, (void)type, (void)where;
    return remove(path);
}

static int remove_folder(void **state)
{
    (void)state;
    return nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules),
        cmocka_unit_test(name_lengths),
        cmocka_unit_test(header_lengths),
        cmocka_unit_test(sample_is_understood),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(every_mutation_is_survived),
        cmocka_unit_test(only_regular_files_are_opened),
        cmocka_unit_test(long_paths_leave_room_for_the_rule),
        cmocka_unit_test(a_file_truncated_after_open),
        cmocka_unit_test(dtypes),
        cmocka_unit_test(shared_files_are_accepted),
        cmocka_unit_test(malformed_files_are_refused),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
