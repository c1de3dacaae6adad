/* SPDX-License-Identifier: Apache-2.0 */
/* test_gguf.c - the reader: one file for each rule and for each known weakness of other readers,
 * values, truncations and mutations. */
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

#include "gguf_bytes.h"
#include "io/gguf.h"

typedef struct rule_case {
    const char *what; /* the rule, or the weakness by its name */
    const char *script;
    const char *message; /* a part of it; NULL: accepted */
} rule_case;

/* clang-format off */
static const rule_case rule_cases[] = {
    /* sound */
    {"nothing inside", "M0,0", NULL},
    {"version 2", "TGGUF W2 Q0 Q0", NULL},
    {"one tensor", "M1,0 Va,0,0,4 P32 D16", NULL},
    {"four dimensions", "M1,0 Va,0,0,2,1,1,3 P32 D24", NULL},
    {"no dimensions", "M1,0 Va,0,0 P32 D4", NULL},
    {"a zero dimension", "M1,0 Va,0,0,4,0", NULL},
    {"a zero dimension, no padding", "M1,0 Va,0,0,0", NULL},
    {"a hole between", "M2,0 Va,0,0,4 Vb,0,64,4 P32 D80", NULL},
    {"another order", "M2,0 Va,0,32,4 Vb,0,0,4 P32 D48", NULL},
    {"data after the last", "M1,0 Va,0,0,4 P32 D100", NULL},
    {"no padding at the end", "M2,0 Va,0,0,1 Vb,0,32,1 P32 D36", NULL},
    {"empty beside full", "M3,0 Va,0,0,4 Vb,0,0,0 Vc,0,32,0 P32 D32", NULL},
    {"alignment 1", "M1,1 Kgeneral.alignment=4 W1 Va,24,0,3 D3", NULL},
    {"alignment 2^20", "M1,1 Kgeneral.alignment=4 W1048576 Va,24,0,3 P1048576 D3", NULL},
    {"alignment of 64 bits", "M1,1 Kgeneral.alignment=10 Q64 Va,24,64,3 P64 D67", NULL},
    {"an empty key", "M0,1 K=0 B0", NULL},
    {"a string of 64 KiB", "M0,1 Ka=8 X65536", NULL},
    {"a key of 64 KiB", "M0,1 X65536 W0 B0", NULL},
    {"a value that is no UTF-8", "M0,1 Ka=8 S\\ff\\00\\fe", NULL},
    {"the text of a tokenizer", "M0,2 Ktokenizer.huggingface.json=8 X100000 Kb=0 B1", NULL},
    {"a tokenizer's strings", "M1,1 Kt=9 W8 Q200001 Stok Q0*100000 X3*100000 Va,24,0,1 P32 D1", NULL},
    {"an empty array", "M0,2 Ka=9 W8 Q0 Kb=9 W4 Q0", NULL},
    {"a split of one", "M0,3 Ksplit.no=2 H0 Ksplit.count=2 H1 Ksplit.tensors.count=5 W7", NULL},
    {"a merged split", "M0,2 Ksplit.count=2 H0 Ksplit.tensors.count=5 W7", NULL},

    /* the head */
    {"no bytes", "", "the file ends inside the header, after 0 bytes, at byte 0"},
    {"half a magic", "TGG", "the file ends inside the header, after 2 bytes, at byte 0"},
    {"another magic", "TGGML W3 Q0 Q0", "the magic is not GGUF at byte 0"},
    {"big-endian magic", "TFUGG W0x03000000 Q0 Q0", "the file is big-endian at byte 0"},
    {"big-endian version 3", "TGGUF W0x03000000 Q0 Q0", "the file is big-endian at byte 4"},
    {"big-endian version 2", "TGGUF W0x02000000 Q0 Q0", "the file is big-endian"},
    {"version 0", "TGGUF W0 Q0 Q0", "version 0 is neither 2 nor 3"},
    {"version 1", "TGGUF W1 W0 W0", "version 1 is neither 2 nor 3 at byte 4"},
    {"version 4", "TGGUF W4 Q0 Q0", "version 4 is neither 2 nor 3"},
    {"version -1", "TGGUF W-1 Q0 Q0", "version 4294967295 is neither"},
    {"no counts", "TGGUF W3", "the file ends inside the header"},
    {"one count", "TGGUF W3 Q0 W0", "the file ends inside the header, after 20 bytes, at byte 16"},
    {"tensor count 2^63+1", "M0x8000000000000001,0", "9223372036854775809 tensors are more than 65536 at byte 8"},
    {"CVE-2024-21802: count times size wraps", "M0x0555555555555556,0 Y4096", "tensors are more than 65536"},
    {"CVE-2024-21825: key count times size wraps", "M0,0x0aaaaaaaaaaaaaab Y4096", "keys are more than 65536 at byte 16"},
    {"ggml #1516: a small file, 2^32 tensors", "M0x100000000,0 Y136", "tensors are more than 65536"},
    {"a small file, 65536 tensors", "M65536,0 Y136", "65536 tensors are more than the rest of the file holds at byte 8"},
    {"a small file, 65536 keys", "M0,65536 Y136", "65536 keys are more than the rest of the file holds at byte 16"},
    {"key count 2^62", "M0,0x4000000000000000", "4611686018427387904 keys are more than 65536"},
    {"key count 65537", "M0,65537 Y1000000", "65537 keys are more than 65536"},
    {"tensor count 65537", "M65537,0 Y2000000", "65537 tensors are more than 65536"},
    {"gguf-py #27188: 43 bytes, many keys", "M0,0x7fffffffffffffff Y19", "keys are more than 65536"},
    {"a key is missing", "M0,2 Ka=0 B1 Y13", "a string of 8680820740569200760 bytes"},
    {"a tensor is missing", "M2,0 Va,0,0,4 P32 D16", "tensor \"\": 67305985 dimensions are more than 4"},

    /* strings */
    {"CVE-2024-23496: length + 1 wraps", "M0,1 Q-1 W0 B0", "a string of 18446744073709551615 bytes is longer than 65536 at byte 24"},
    {"a key of 2^63 bytes", "M0,1 Q0x8000000000000000 W0 B0", "is longer than 65536"},
    {"a key of 65537 bytes", "M0,1 X65537 W0 B0", "a string of 65537 bytes is longer than 65536"},
    {"a key past the end", "M0,1 Q6 W8 B0", "a string of 6 bytes is longer than the rest of the header at byte 24"},
    {"a key with a NUL", "M0,1 Ka\\00b=0 B0", "a name is not UTF-8 without a NUL at byte 24"},
    {"a key that is no UTF-8", "M0,1 Ka\\ff=0 B0", "a name is not UTF-8"},
    {"a key with an overlong slash", "M0,1 K\\c0\\af=0 B0", "a name is not UTF-8"},
    {"a key with a surrogate", "M0,1 K\\ed\\a0\\80=0 B0", "a name is not UTF-8"},
    {"a key cut in a character", "M0,1 K\\e2\\82=0 B0", "a name is not UTF-8"},
    {"a value of 2^40 bytes", "M0,1 Ka=8 Q0x10000000000 Ttext", "key \"a\": a string of 1099511627776 bytes is longer than 65536"},
    {"a value of 65537 bytes", "M0,1 Ka=8 X65537", "key \"a\": a string of 65537 bytes is longer than 65536"},
    {"a value past the end", "M0,1 Ka=8 Q5 Ttext", "key \"a\": a string of 5 bytes is longer than the rest"},
    {"a tokenizer past the end", "M0,1 Ktokenizer.x=8 Q-1 Ttext", "a string of 18446744073709551615 bytes is longer than the rest"},
    {"a length is cut", "M0,1 Ka=8 W4", "key \"a\": the file ends inside the header"},
    {"a tensor's name of 2^64-1 bytes", "M1,0 Q-1 Y100", "is longer than 65536"},
    {"a tensor's name with a NUL", "M1,0 Va\\00,0,0,4 P32 D16", "a name is not UTF-8 without a NUL"},
    {"a tensor's name that is no UTF-8", "M1,0 V\\80,0,0,4 P32 D16", "a name is not UTF-8"},
    {"control bytes do not reach the message", "M0,1 K\\1b[2J=13 B0", "key \"?[2J\": 13 is no type of a value"},

    /* values */
    {"a value of type 13", "M0,1 Ka=13 Q0", "key \"a\": 13 is no type of a value at byte 33"},
    {"a value of type 2^32-1", "M0,1 Ka=-1 Q0", "4294967295 is no type"},
    {"a type is cut", "M0,1 Sab B0 H0", "the file ends inside the header"},
    {"a value is cut", "M0,1 Kab=10 W0", "key \"ab\": the file ends inside the header, after 42 bytes, at byte 38"},
    {"a boolean of 2", "M0,1 Ka=7 B2", "key \"a\": a boolean is 2, neither 0 nor 1"},
    {"a boolean of 255 in an array", "M0,1 Ka=9 W7 Q3 B0 B1 B255", "a boolean is 255"},
    {"llama #26690: elements of type 99", "M0,1 Ka=9 W99 Q1 Q0", "key \"a\": 99 is no type of a value at byte 37"},
    {"an array of arrays", "M0,1 Ka=9 W9 Q1 W4 Q1 W0", "an array holds arrays"},
    {"CVE-2024-21836: array size wraps to 8", "M0,1 Ka=9 W10 Q0x2000000000000001 Q0", "an array of 2305843009213693953 values is longer than the rest"},
    {"CVE-2024-23605: array size wraps to 0", "M0,1 Ka=9 W4 Q0x4000000000000000 Q0", "an array of 4611686018427387904 values"},
    {"an array of 2^64-1 bytes", "M0,1 Ka=9 W0 Q-1 Q0", "an array of 18446744073709551615 values"},
    {"an array past the end", "M0,1 Ka=9 W0 Q9 Q0", "an array of 9 values is longer than the rest"},
    {"an array of floats past the end", "M0,1 Ka=9 W6 Q3 Q0", "an array of 3 values is longer than the rest"},
    {"2^61 strings, 2^64 bytes of lengths", "M0,1 Ka=9 W8 Q0x2000000000000000 Q0", "strings is longer than the rest"},
    {"more strings than lengths", "M0,1 Ka=9 W8 Q2 Sabcdefgh", "the file ends inside the header"},
    {"an array's string of 2^64-1 bytes", "M0,1 Ka=9 W8 Q2 Sa Q-1", "a string of 18446744073709551615 bytes is longer than 65536"},
    {"an array's string of 65537 bytes", "M0,1 Ka=9 W8 Q1 X65537", "a string of 65537 bytes"},
    {"an array's string past the end", "M0,1 Ka=9 W8 Q1 Q5 Ttext", "a string of 5 bytes is longer than the rest"},
    {"a key twice", "M0,2 Ka=0 B0 Ka=0 B0", "key \"a\": the key occurs twice at byte 3"},
    {"a key twice, with values of two types", "M0,3 Ka=0 B0 Kb=0 B0 Ka=8 Sx", "key \"a\": the key occurs twice"},

    /* alignment */
    {"alignment 0", "M0,1 Kgeneral.alignment=4 W0", "key \"general.alignment\": the value is no power of two up to 1048576 at byte 24"},
    {"alignment 3", "M0,1 Kgeneral.alignment=4 W3", "no power of two"},
    {"llama #24997: alignment 2^31", "M0,1 Kgeneral.alignment=4 W0x80000000", "no power of two up to 1048576"},
    {"alignment 2^21", "M0,1 Kgeneral.alignment=4 W0x200000", "no power of two up to 1048576"},
    {"alignment 2^63", "M0,1 Kgeneral.alignment=10 Q0x8000000000000000", "no power of two"},
    {"alignment -32", "M0,1 Kgeneral.alignment=5 W-32", "no power of two"},
    {"alignment 32.0", "M0,1 Kgeneral.alignment=6 F32", "the value is no integer"},
    {"alignment \"32\"", "M0,1 Kgeneral.alignment=8 S32", "the value is no integer"},
    {"alignment true", "M0,1 Kgeneral.alignment=7 B1", "the value is no integer"},
    {"alignment [32]", "M0,1 Kgeneral.alignment=9 W4 Q1 W32", "the value is no integer"},

    /* tensors */
    {"five dimensions", "M1,0 Va,0,0,1,1,1,1,1 P32 D4", "tensor \"a\": 5 dimensions are more than 4 at byte 33"},
    {"nine dimensions", "M1,0 Sa W9 Q1*9 W0 Q0 P32 D4", "9 dimensions are more than 4"},
    {"2^32-1 dimensions", "M1,0 Sa W-1 Q1*9", "4294967295 dimensions"},
    {"CVE-2025-52566: a dimension of -32", "M1,0 Va,0,0,4,-32 P32 D64", "tensor \"a\": a dimension is negative, or 2^63 or more at byte 45"},
    {"a dimension of 2^63", "M1,0 Va,0,0,0x8000000000000000 P32 D64", "a dimension is negative"},
    {"a product of 2^64", "M1,0 Va,0,0,0x100000000,0x100000000", "the shape overflows"},
    {"a product of 2^64 with a zero", "M1,0 Va,0,0,0x100000000,0,0x100000000", "the shape overflows"},
    {"CVE-2026-33298: bytes wrap to 4 MiB", "M1,0 Va,0,0,0x4000000000100000 P32 D64", "the shape overflows"},
    {"bytes wrap to 0", "M1,0 Va,0,0,0x4000000000000000 P32", "the shape overflows"},
    {"blocks wrap", "M1,0 Va,8,0,0x7fffffffffffffe0,32 P32", "the shape overflows"},
    {"elements past 2^63, bytes below", "M1,0 Va,2,0,0x4000000000000000,2 P32", "the shape overflows"},
    {"GHSA-wcr5: exabytes that are no wrap", "M1,0 Va,24,0,0x4000000000000000 P32 D64", "tensor \"a\": 4611686018427387904 bytes at offset 0 end beyond the file, whose data are 64 bytes, at byte 24"},
    {"type 4, removed", "M1,0 Va,4,0,32 P32 D64", "tensor \"a\": 4 is no type of a tensor at byte 45"},
    {"type 31, removed", "M1,0 Va,31,0,32 P32 D64", "31 is no type of a tensor"},
    {"type 36, removed", "M1,0 Va,36,0,32 P32 D64", "36 is no type of a tensor"},
    {"type 9999", "M1,0 Va,9999,0,32 P32 D64", "9999 is no type of a tensor"},
    {"type -1", "M1,0 Va,-1,0,32 P32 D64", "4294967295 is no type of a tensor"},
    {"CVE-2025-49847: a number as an index", "M1,0 Va,0x7fffffff,0,32 P32 D64", "2147483647 is no type of a tensor"},
    {"half a block", "M1,0 Va,8,0,48 P32 D64", "the first dimension, 48, is no multiple of a Q8_0 block, 32 at byte 45"},
    {"less than a block", "M1,0 Va,12,0,255 P32 D144", "no multiple of a Q4_K block, 256"},
    {"blocks of a scalar", "M1,0 Va,39,0 P32 D64", "the first dimension, 1, is no multiple of a MXFP4 block"},
    {"whole blocks in all, none in a row", "M1,0 Va,8,0,16,2 P32 D64", "no multiple of a Q8_0 block"},
    {"offset 4", "M1,0 Va,0,4,4 P32 D64", "tensor \"a\": the offset 4 is no multiple of the alignment, 32 at byte 49"},
    {"offset 32 where 64 is the alignment", "M1,1 Kgeneral.alignment=4 W64 Va,0,32,4 P64 D64", "the offset 32 is no multiple of the alignment, 64"},
    {"offset -1", "M1,0 Va,0,-1,4 P32 D64", "no multiple of the alignment"},
    {"offset 2^64-64: the place wraps", "M1,0 Va,0,-64,4 P32 D64", "16 bytes at offset 18446744073709551552 end beyond the file"},
    {"offset 2^40", "M1,0 Va,0,0x10000000000,4 P32 D64", "end beyond the file"},
    {"offset at the end", "M1,0 Va,0,64,4 P32 D64", "end beyond the file"},
    {"an empty tensor past the end", "M1,0 Va,0,96,0 P32 D64", "0 bytes at offset 96 end beyond the file"},
    {"one byte past the end", "M1,0 Va,24,0,65 P32 D64", "65 bytes at offset 0 end beyond the file"},
    {"CVE-2026-7482: offset + size past the end", "M1,0 Va,0,32,9 P32 D64", "36 bytes at offset 32 end beyond the file"},
    {"no data at all", "M1,0 Va,24,0,1", "1 bytes at offset 0 end beyond the file, whose data are 0 bytes"},
    {"CVE-2025-53630: the sum of padded sizes wraps", "M3,0 Va,24,0,0x7fffffffffffffff Vb,24,0x8000000000000000,0x7fffffffffffffff Vc,24,0,64 P32 D64", "end beyond the file"},
    {"CVE-2026-27940: sizes and overhead wrap", "M2,0 Va,24,0,0x7ffffffffffffe00 Vb,24,0x7ffffffffffffe00,0x7fffffffffffff80 P32 D64", "end beyond the file"},
    {"the same data twice", "M2,0 Va,0,0,4 Vb,0,0,4 P32 D64", "the data overlap another tensor's"},
    {"inside another", "M2,0 Va,0,0,16 Vb,0,32,4 P32 D64", "tensor \"b\": the data overlap another tensor's at byte"},
    {"inside another, named before it", "M2,0 Va,0,32,4 Vb,0,0,16 P32 D64", "tensor \"a\": the data overlap"},
    {"inside another, behind an empty one", "M3,0 Va,0,0,16 Ve,0,32,0 Vb,0,32,4 P32 D64", "tensor \"b\": the data overlap"},
    {"a name twice", "M2,0 Va,0,0,4 Va,0,32,4 P32 D64", "tensor \"a\": the name occurs twice"},
    {"an empty name twice", "M2,0 V,0,0,4 V,0,32,4 P32 D64", "tensor \"\": the name occurs twice"},
    {"the last tensor is cut", "M1,0 Sa W2 Q4 Q1 W0 W0", "tensor \"a\": the file ends inside the header"},

    /* splits */
    {"one of a split, in memory", "M0,3 Ksplit.no=2 H0 Ksplit.count=2 H3 Ksplit.tensors.count=5 W7", "the file is one of a split of 3"},
    {"a split without a number", "M0,2 Ksplit.count=2 H3 Ksplit.tensors.count=5 W7", "key \"split.no\" is missing"},
    {"split number past the count", "M0,2 Ksplit.no=2 H3 Ksplit.count=2 H3", "key \"split.no\": the value is no integer from 0 to 2"},
    {"split count \"2\"", "M0,2 Ksplit.no=2 H0 Ksplit.count=8 S2", "key \"split.count\": the value is no integer from 0 to 99999"},
    {"split count -2", "M0,2 Ksplit.no=2 H0 Ksplit.count=3 H-2", "no integer from 0 to 99999"},
    {"split count 2^40", "M0,2 Ksplit.no=2 H0 Ksplit.count=10 Q0x10000000000", "no integer from 0 to 99999"},
};
/* clang-format on */

static char folder[] = "/tmp/moe_gguf_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* Looks at all that an open file gives. */
static void use(const gg_file *file)
{
    unsigned char *data;
    for (size_t i = 0; i < gg_count(file); i++) {
        const gg_tensor *t = gg_at(file, i);
        assert_ptr_equal(gg_find(file, t->name), t);
        data = malloc(t->bytes + 1);
        assert_non_null(data);
        assert_int_equal(gg_read(file, t, 0, t->bytes, data, NULL), IO_OK);
        free(data);
    }
    for (size_t i = 0; i < gg_keys(file); i++) {
        const char *key = gg_key(file, i), *text;
        int64_t integer;
        double real;
        bool truth;
        size_t count;
        assert_true(gg_has(file, key));
        int kinds = gg_integer(file, key, &integer) + gg_bool(file, key, &truth) +
                    gg_string(file, key, &text) + gg_array(file, key, &count);
        assert_true(kinds <= 1);
        if (gg_integer(file, key, &integer)) assert_true(gg_real(file, key, &real));
        if (!gg_array(file, key, &count)) continue;
        for (size_t e = 0; e < count; e++) gg_array_integer(file, key, e, &integer);
        assert_false(gg_array_integer(file, key, count, &integer));
    }
}

/* Opens the file in memory (path NULL) or on the disk. */
static void judge(const rule_case *c, file_bytes bytes, const char *path)
{
    gg_file *file;
    io_error error = {0};
    io_status status = path ? gg_open(path, &file, &error)
                            : gg_open_memory(bytes.bytes, bytes.size, &file, &error);
    if (!c->message) {
        if (status != IO_OK) fail_msg("%s: %s", c->what, error.text);
        use(file);
        gg_close(file);
        return;
    }
    if (status != IO_E_FORMAT) fail_msg("%s: status %d, %s", c->what, status, error.text);
    assert_null(file);
    assert_int_equal(error.status, status);
    if (!strstr(error.text, c->message)) fail_msg("%s: %s", c->what, error.text);
    assert_memory_equal(error.text, path ? path : "(memory): ", strlen(path ? path : "(memory): "));
}

/* In memory each file has an allocation of exactly its size, so that a sanitizer sees a read beyond
 * it; a split is another thing on the disk. */
static void every_rule(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rule_cases / sizeof *rule_cases; i++) {
        const rule_case *c = &rule_cases[i];
        file_bytes bytes = gguf_bytes(c->script);
        unsigned char *exact = malloc(bytes.size + 1);
        assert_non_null(exact);
        memcpy(exact + 1, bytes.bytes, bytes.size);
        judge(c, (file_bytes){exact + 1, bytes.size}, NULL);
        write_bytes(in_folder("rule"), bytes);
        if (!c->message || !strstr(c->message, "split")) judge(c, bytes, in_folder("rule"));
        free(exact);
        free(bytes.bytes);
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

static gg_file *opened(const char *script, file_bytes *bytes)
{
    gg_file *file;
    io_error error;
    *bytes = gguf_bytes(script);
    if (gg_open_memory(bytes->bytes, bytes->size, &file, &error) != IO_OK)
        fail_msg("%s", error.text);
    return file;
}

static void closed(gg_file *file, file_bytes bytes)
{
    gg_close(file);
    free(bytes.bytes);
}

static void numbers(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        bool is_integer, is_real;
        int64_t integer;
        double real;
    } cases[] = {
        {"u8", true, true, 255, 255},
        {"u16", true, true, 65535, 65535},
        {"u32", true, true, 4294967295, 4294967295},
        {"u64", true, true, INT64_MAX, 9223372036854775808.0},
        {"u64big", false, true, 0, 18446744073709551616.0},
        {"i8", true, true, 127, 127},
        {"i16", true, true, 32767, 32767},
        {"i32", true, true, 2147483647, 2147483647},
        {"i64", true, true, 5, 5},
        {"i8neg", false, true, 0, -1},
        {"i16neg", false, true, 0, -2},
        {"i32neg", false, true, 0, -3},
        {"i64neg", false, true, 0, -4},
        {"f32", false, true, 0, 1.5},
        {"f64", false, true, 0, 0.1},
        {"f32inf", false, false, 0, 0},
        {"f32nan", false, false, 0, 0},
        {"f64nan", false, false, 0, 0},
        {"bool", false, false, 0, 0},
        {"text", false, false, 0, 0},
        {"list", false, false, 0, 0},
        {"absent", false, false, 0, 0},
    };
    file_bytes bytes;
    gg_file *file = opened("M0,21 Ku8=0 B255 Ku16=2 H65535 Ku32=4 W-1 Ku64=10 Q0x7fffffffffffffff "
                           "Ku64big=10 Q-1 Ki8=1 B127 Ki16=3 H32767 Ki32=5 W2147483647 Ki64=11 Q5 "
                           "Ki8neg=1 B-1 Ki16neg=3 H-2 Ki32neg=5 W-3 Ki64neg=11 Q-4 Kf32=6 F1.5 "
                           "Kf64=12 G0.1 Kf32inf=6 Finf Kf32nan=6 Fnan Kf64nan=12 Gnan Kbool=7 B1 "
                           "Ktext=8 S1 Klist=9 W4 Q1 W1",
                           &bytes);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t integer = -77;
        double real = -77;
        assert_int_equal(gg_integer(file, cases[i].key, &integer), cases[i].is_integer);
        assert_true(integer == (cases[i].is_integer ? cases[i].integer : -77));
        assert_int_equal(gg_real(file, cases[i].key, &real), cases[i].is_real);
        assert_true(real == (cases[i].is_real ? cases[i].real : -77));
    }
    assert_int_equal(gg_keys(file), 21);
    assert_string_equal(gg_key(file, 0), "u8"); /* in the order of the file */
    assert_string_equal(gg_key(file, 20), "list");
    assert_false(gg_has(file, "absent"));
    closed(file, bytes);
}

static void texts_booleans_and_arrays(void **state)
{
    (void)state;
    file_bytes bytes;
    gg_file *file =
        opened("M0,11 Ktext=8 Sh\\c3\\a9llo Kempty=8 S Kbad=8 Sa\\ff Knul=8 Sa\\00b Ktrue=7 B1 "
               "Kfalse=7 B0 Kints=9 W3 Q3 H7 H-1 H32767 Kbools=9 W7 Q2 B1 B0 Kwide=9 W10 Q2 Q-1 Q9 "
               "Kreals=9 W6 Q1 F1 Kwords=9 W8 Q2 Sa Sb",
               &bytes);
    const char *text = NULL;
    bool truth;
    size_t count = 77;
    int64_t value = -77;
    assert_true(gg_string(file, "text", &text));
    assert_string_equal(text, "h\xc3\xa9llo");
    assert_true(gg_string(file, "empty", &text));
    assert_string_equal(text, "");
    assert_false(gg_string(file, "bad", &text));
    assert_false(gg_string(file, "nul", &text));
    assert_false(gg_string(file, "true", &text));
    assert_false(gg_string(file, "absent", &text));
    assert_true(gg_bool(file, "true", &truth) && truth);
    assert_true(gg_bool(file, "false", &truth) && !truth);
    assert_false(gg_bool(file, "ints", &truth));

    assert_false(gg_array(file, "words", &count));
    assert_false(gg_array(file, "text", &count));
    assert_false(gg_array_integer(file, "words", 0, &value));
    assert_int_equal(count, 77);
    double real = -77;
    assert_true(gg_array(file, "reals", &count));
    assert_int_equal(count, 1);
    assert_false(gg_array_integer(file, "reals", 0, &value));
    assert_false(gg_array_real(file, "reals", 1, &real));
    assert_true(real == -77);
    assert_true(gg_array_real(file, "reals", 0, &real) && real == 1);
    assert_true(gg_array_real(file, "ints", 1, &real) && real == -1);
    assert_true(gg_array(file, "ints", &count));
    assert_int_equal(count, 3);
    assert_true(gg_array_integer(file, "ints", 0, &value));
    assert_int_equal(value, 7);
    assert_false(gg_array_integer(file, "ints", 1, &value)); /* negative */
    assert_false(gg_array_integer(file, "ints", 3, &value));
    assert_int_equal(value, 7);
    assert_true(gg_array_integer(file, "ints", 2, &value));
    assert_int_equal(value, 32767);
    assert_true(gg_array_integer(file, "bools", 0, &value) && value == 1);
    assert_true(gg_array_integer(file, "bools", 1, &value) && value == 0);
    assert_false(gg_array_integer(file, "wide", 0, &value));
    assert_true(gg_array_integer(file, "wide", 1, &value) && value == 9);
    closed(file, bytes);
}

/* Longer than other texts may be: there, and not kept. */
static void texts_of_a_tokenizer(void **state)
{
    (void)state;
    file_bytes bytes;
    gg_file *file = opened("M0,3 Ktokenizer.model=8 Sgpt2 Ktokenizer.edge=8 X65536 "
                           "Ktokenizer.json=8 X65537",
                           &bytes);
    const char *text = NULL;
    assert_true(gg_string(file, "tokenizer.model", &text));
    assert_string_equal(text, "gpt2");
    assert_true(gg_string(file, "tokenizer.edge", &text));
    assert_int_equal(strlen(text), 65536);
    assert_true(gg_has(file, "tokenizer.json"));
    assert_false(gg_string(file, "tokenizer.json", &text));
    closed(file, bytes);
}

static void tensors(void **state)
{
    (void)state;
    file_bytes bytes;
    gg_file *file = opened("M2,0 Vb,8,64,32,2 Va,0,0,3 P32 D132", &bytes);
    assert_int_equal(gg_count(file), 2);
    const gg_tensor *t = gg_at(file, 0);
    assert_string_equal(t->name, "b");
    assert_int_equal(t->type, GG_Q8_0);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->ne[0], 32);
    assert_int_equal(t->ne[1], 2);
    assert_int_equal(t->ne[2], 1);
    assert_int_equal(t->ne[3], 1);
    assert_int_equal(t->offset, 64);
    assert_int_equal(t->bytes, 68);
    assert_int_equal(t->part, 0);
    unsigned char data[4] = {9, 9, 9, 9};
    assert_int_equal(gg_read(file, t, 65, 3, data, NULL), IO_OK);
    assert_memory_equal(data, "\x81\x82\x83\x09", 4);
    assert_int_equal(gg_read(file, t, 68, 0, NULL, NULL), IO_OK);
    assert_ptr_equal(gg_find(file, "a"), gg_at(file, 1));
    assert_null(gg_find(file, ""));
    assert_null(gg_find(file, "ab"));
    closed(file, bytes);
    gg_close(NULL);
}

/* The blocks of the format's reference package, in turn name, k, bytes; Q8_1, which no file holds, is
 * as in ggml. */
static void types(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        const char *name;
        size_t k, bytes;
    } known[] = {
        {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
        {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
        {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},
        {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
        {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
        {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
        {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
        {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
        {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
        {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
        {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},
        {41, "Q1_0", 128, 18},
    };
    size_t next = 0, count = sizeof known / sizeof *known;
    for (uint32_t type = 0; type < 100; type++) {
        size_t k = 77, bytes = 77;
        gg_type_block(type, &k, &bytes);
        if (next < count && known[next].type == type) {
            assert_string_equal(gg_type_name(type), known[next].name);
            assert_int_equal(k, known[next].k);
            assert_int_equal(bytes, known[next].bytes);
            next++;
        } else {
            assert_null(gg_type_name(type));
            assert_int_equal(k, 0);
            assert_int_equal(bytes, 0);
        }
    }
    assert_int_equal(next, count);
    assert_null(gg_type_name(UINT32_MAX));
}

/* ---- damage ---------------------------------------------------------------------------------- */

static const char sample[] =
    "M3,6 Kgeneral.architecture=8 Stest Kgeneral.alignment=4 W16 Klist=9 W8 Q3 Sa Sbc S Kints=9 W5 "
    "Q2 W1 W2 Kflag=7 B1 Keps=6 F1e-6 Va,0,0,2,2 Vb,8,16,32 Vc,30,64,3 P16 D70";

static void every_truncation_is_refused(void **state)
{
    (void)state;
    file_bytes whole = gguf_bytes(sample);
    for (size_t size = 0; size < whole.size; size++) {
        unsigned char *exact = malloc(size + 1);
        assert_non_null(exact);
        memcpy(exact + 1, whole.bytes, size);
        gg_file *file;
        assert_int_equal(gg_open_memory(exact + 1, size, &file, NULL), IO_E_FORMAT);
        assert_null(file);
        free(exact);
    }
    free(whole.bytes);
}

static void every_mutation_is_survived(void **state)
{
    (void)state;
    file_bytes whole = gguf_bytes(sample);
    unsigned char *copy = malloc(whole.size);
    assert_non_null(copy);
    size_t refused = 0;
    for (size_t at = 0; at < whole.size - 70; at++) {
        for (int value = 0; value < 256; value++) {
            memcpy(copy, whole.bytes, whole.size);
            copy[at] = (unsigned char)value;
            gg_file *file;
            io_status status = gg_open_memory(copy, whole.size, &file, NULL);
            assert_true(status == IO_OK || status == IO_E_FORMAT);
            refused += status != IO_OK;
            if (status == IO_OK) use(file);
            gg_close(file);
        }
    }
    assert_true(refused > (whole.size - 70) * 120);
    free(copy);
    free(whole.bytes);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(in_folder("rule"));
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rule),
        cmocka_unit_test(numbers),
        cmocka_unit_test(texts_booleans_and_arrays),
        cmocka_unit_test(texts_of_a_tokenizer),
        cmocka_unit_test(tensors),
        cmocka_unit_test(types),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(every_mutation_is_survived),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
