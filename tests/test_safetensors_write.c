/* SPDX-License-Identifier: Apache-2.0 */
/* test_safetensors_write.c - the writer: the reference writer's bytes, round trips, refusals,
 * and what is left on the disk. */
#define _XOPEN_SOURCE 700

#include <dirent.h>
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

#include "io/safetensors.h"
#include "safetensors_bytes.h"

static char folder[] = "/tmp/moe_safetensors_XXXXXX";
static const unsigned char zeros[64];

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* The entries of the folder but . and .. */
static size_t entries(void)
{
    size_t n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    while (readdir(dir)) n++;
    closedir(dir);
    return n - 2;
}

static void assert_file(const char *path, const char *bytes, size_t size)
{
    file_bytes file = bytes_of_file(path);
    assert_non_null(file.bytes);
    assert_int_equal(file.size, size);
    assert_memory_equal(file.bytes, bytes, size);
    free(file.bytes);
}

static io_status write_one(const char *path, io_error *error)
{
    static const st_tensor t = {.name = "t", .dtype = ST_U8, .rank = 1, .shape = {64}, .bytes = 64};
    const void *data[] = {zeros};
    return st_write(path, &t, data, 1, NULL, NULL, 0, error);
}

/* Four tensors, not in the order of the file, and what the reference writer makes of them. */
static void the_reference_writers_bytes(void **state)
{
    (void)state;
    static const char expected[] =
        "\x10\x01\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},"
        "\"\xc3\xa9\\n\\\"\\\\\\u001f/\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
        "\"s\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[8,10]},"
        "\"a\":{\"dtype\":\"U8\",\"shape\":[0,7],\"data_offsets\":[10,10]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[10,13]}}       "
        "\0\0\xc0?\0\0\0\xc0\x80?\x01\x02\x03";
    static const st_tensor t[] = {
        {.name = "b", .dtype = ST_U8, .rank = 1, .shape = {3}, .bytes = 3, .offset = 99},
        {.name = "\xc3\xa9\n\"\\\x1f/", .dtype = ST_F32, .rank = 2, .shape = {1, 2}, .bytes = 8},
        {.name = "s", .dtype = ST_BF16, .rank = 0, .bytes = 2},
        {.name = "a", .dtype = ST_U8, .rank = 2, .shape = {0, 7}, .bytes = 0},
    };
    const void *data[] = {"\1\2\3", "\0\0\xc0?\0\0\0\xc0", "\x80?", NULL};
    const char *keys[] = {"format"}, *values[] = {"pt"};
    assert_int_equal(st_write(in_folder("sample"), t, data, 4, keys, values, 1, NULL), IO_OK);
    assert_file(in_folder("sample"), expected, sizeof expected - 1);
}

static void nothing_to_write(void **state)
{
    (void)state;
    assert_int_equal(st_write(in_folder("nothing"), NULL, NULL, 0, NULL, NULL, 0, NULL), IO_OK);
    assert_file(in_folder("nothing"), "\x8\0\0\0\0\0\0\0{}      ", 16);
}

/* The order of the reference writer, one tensor of each dtype. */
static void dtypes_are_ordered_and_survive(void **state)
{
    (void)state;
    static const st_dtype order[] = {
        ST_U64,         ST_I64,     ST_F64,     ST_C64,     ST_F32, ST_U32,
        ST_I32,         ST_BF16,    ST_F16,     ST_U16,     ST_I16, ST_F8_E5M2FNUZ,
        ST_F8_E4M3FNUZ, ST_F8_E8M0, ST_F8_E4M3, ST_F8_E5M2, ST_I8,  ST_U8,
        ST_F6_E3M2,     ST_F6_E2M3, ST_F4,      ST_BOOL};
    st_tensor t[ST_DTYPE_COUNT];
    unsigned char bytes[ST_DTYPE_COUNT][32];
    const void *data[ST_DTYPE_COUNT];
    for (int i = 0; i < ST_DTYPE_COUNT; i++) {
        st_dtype dtype = (st_dtype)i;
        t[i] = (st_tensor){.name = st_dtype_name(dtype), .dtype = dtype, .rank = 1, .shape = {4}};
        t[i].bytes = st_dtype_bits(dtype) / 2;
        memset(bytes[i], i + 1, sizeof bytes[i]);
        data[i] = bytes[i];
    }
    assert_int_equal(st_write(in_folder("all"), t, data, ST_DTYPE_COUNT, NULL, NULL, 0, NULL),
                     IO_OK);
    st_file *file;
    assert_int_equal(st_open(in_folder("all"), &file, NULL), IO_OK);
    assert_int_equal(st_count(file), ST_DTYPE_COUNT);
    for (size_t i = 0; i < ST_DTYPE_COUNT; i++) {
        const st_tensor *got = st_at(file, i);
        unsigned char read[32];
        assert_int_equal(got->dtype, order[i]);
        assert_string_equal(got->name, st_dtype_name(order[i]));
        assert_int_equal(got->bytes, t[order[i]].bytes);
        assert_int_equal(st_read(file, got, read, NULL), IO_OK);
        assert_memory_equal(read, bytes[order[i]], got->bytes);
    }
    st_close(file);
}

static void text_survives(void **state)
{
    (void)state;
    char every[256 + 8];
    size_t n = 0;
    for (int c = 1; c < 128; c++) every[n++] = (char)c;
    memcpy(every + n, "\xC2\x80\xEF\xBF\xBD\xF4\x8F\xBF\xBF", 10);
    const st_tensor t = {.name = every, .dtype = ST_U8, .rank = 1, .shape = {1}, .bytes = 1};
    const void *data[] = {"x"};
    const char *keys[] = {every, "", "b"}, *values[] = {"", every, "2"};
    assert_int_equal(st_write(in_folder("text"), &t, data, 1, keys, values, 3, NULL), IO_OK);
    st_file *file;
    assert_int_equal(st_open(in_folder("text"), &file, NULL), IO_OK);
    assert_string_equal(st_at(file, 0)->name, every);
    assert_string_equal(st_metadata(file, every), "");
    assert_string_equal(st_metadata(file, ""), every);
    assert_string_equal(st_metadata(file, "b"), "2");
    assert_string_equal(st_metadata_key(file, 0), "");
    st_close(file);
}

/* What the reader would refuse is refused, and the file that was there stays. */
static void unsound_files_are_not_written(void **state)
{
    (void)state;
    static const struct {
        st_tensor t[2];
        const char *keys[2], *message;
    } cases[] = {
        {{{"a", ST_U8, 1, {1}, 0, 1}, {"a", ST_F32, 0, {0}, 0, 4}}, {0}, "the name occurs twice"},
        {{{"a", ST_U8, 1, {1}, 0, 1}, {"b", ST_F32, 1, {2}, 0, 4}},
         {0},
         "tensor \"b\": data_offsets disagree"},
        {{{"a", ST_U8, 1, {1}, 0, 1}, {"b", ST_F32, 1, {-1}, 0, 4}}, {0}, "a number is negative"},
        {{{"a", ST_U8, 1, {1}, 0, 1}, {"\xFF", ST_F32, 0, {0}, 0, 4}}, {0}, "not valid UTF-8"},
        {{{"a", ST_U8, 1, {1}, 0, 1}, {"__metadata__", ST_F32, 0, {0}, 0, 4}},
         {0},
         "a string is expected"},
        {{{"a", ST_U8, 1, {1}, 0, 1}, {"b", ST_DTYPE_COUNT, 0, {0}, 0, 4}},
         {0},
         "tensor \"b\": unknown dtype or rank"},
        {{{"a", ST_U8, 1, {1}, 0, 1}, {"b", ST_F32, 9, {0}, 0, 4}}, {0}, "unknown dtype or rank"},
        {{{"a", ST_U8, 1, {1}, 0, 1}, {"b", ST_F32, -1, {0}, 0, 4}}, {0}, "unknown dtype or rank"},
        {{{"a", ST_U8, 0, {0}, 0, 1}, {"b", ST_F4, 1, {3}, 0, 2}}, {0}, "fills no whole bytes"},
        {{{"a", ST_U8, 0, {0}, 0, 1}, {"b", ST_U8, 0, {0}, 0, SIZE_MAX}},
         {0},
         "the tensors are too large"},
        {{{"a", ST_U8, 0, {0}, 0, 1}, {"b", ST_U8, 0, {0}, 0, SIZE_MAX - 1}},
         {0},
         "the tensors are too large"},
        {{{"a", ST_U8, 0, {0}, 0, 1}, {"b", ST_U8, 0, {0}, 0, SIZE_MAX / 2 + 1}},
         {0},
         "a number is negative"},
        {{{"a", ST_U8, 0, {0}, 0, 1}, {"b", ST_U8, 0, {0}, 0, 1}},
         {"k", "k"},
         "__metadata__ occurs twice"},
    };
    write_bytes(in_folder("kept"), (file_bytes){(unsigned char *)"old", 3});
    size_t before = entries();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const void *data[] = {zeros, zeros};
        const char *values[] = {"1", "2"};
        io_error error = {0};
        io_status status = st_write(in_folder("kept"), cases[i].t, data, 2, cases[i].keys, values,
                                    cases[i].keys[0] ? 2 : 0, &error);
        if (status != IO_E_FORMAT || !strstr(error.text, cases[i].message))
            fail_msg("case %zu gives %d %s", i, (int)status, error.text);
        assert_non_null(strstr(error.text, "/kept: not written: "));
    }
    assert_file(in_folder("kept"), "old", 3);
    assert_int_equal(entries(), before);
}

/* A name that is no text at all still gives a message. */
static void a_name_of_tails(void **state)
{
    (void)state;
    char name[200];
    memset(name, 0x80, sizeof name - 1);
    name[sizeof name - 1] = '\0';
    const st_tensor t = {.name = name, .dtype = ST_DTYPE_COUNT};
    const void *data[] = {zeros};
    io_error error;
    assert_int_equal(st_write(in_folder("tails"), &t, data, 1, NULL, NULL, 0, &error), IO_E_FORMAT);
    assert_non_null(strstr(error.text, "tensor \"\": unknown dtype or rank"));
}

static void expect_write_failure(const char *path, const char *message)
{
    size_t before = entries();
    io_error error = {0};
    assert_int_equal(write_one(path, &error), IO_E_WRITE);
    assert_int_equal(error.status, IO_E_WRITE);
    if (!strstr(error.text, message)) fail_msg("%s", error.text);
    assert_int_equal(entries(), before);
}

static void paths_that_cannot_be_written(void **state)
{
    (void)state;
    expect_write_failure("/dev/full", "/dev/full: cannot be written: No space left on device");
    expect_write_failure(folder, "cannot be written: Is a directory");
    expect_write_failure(in_folder("no/such/folder"),
                         "cannot be written: No such file or directory");
    expect_write_failure("", "No such file or directory");
    assert_int_equal(write_one("/dev/null", NULL), IO_OK);
}

static void a_name_without_a_folder(void **state)
{
    (void)state;
    char before[512];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(write_one("here", NULL), IO_OK);
    assert_int_equal(chdir(before), 0);
    assert_int_equal(access(in_folder("here"), R_OK), 0);
}

static void permissions_follow_the_umask(void **state)
{
    (void)state;
    mode_t before = umask(027);
    struct stat about;
    assert_int_equal(write_one(in_folder("mode"), NULL), IO_OK);
    umask(before);
    assert_int_equal(stat(in_folder("mode"), &about), 0);
    assert_int_equal(about.st_mode & 0777, 0640);
}

static void links_are_followed(void **state)
{
    (void)state;
    struct stat about;
    write_bytes(in_folder("target"), (file_bytes){(unsigned char *)"old", 3});
    assert_int_equal(symlink("target", in_folder("link")), 0);
    assert_int_equal(write_one(in_folder("link"), NULL), IO_OK);
    assert_int_equal(lstat(in_folder("link"), &about), 0);
    assert_true(S_ISLNK(about.st_mode));
    assert_int_equal(lstat(in_folder("target"), &about), 0);
    assert_true(S_ISREG(about.st_mode) && about.st_size > 64);
}

/* The names that a crash left behind, or that another thread uses, are not touched. */
static void taken_temporary_names(void **state)
{
    (void)state;
    char name[64];
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, ".moe-%ld-%d.tmp", (long)getpid(), i);
        if (i == 1) assert_int_equal(write_one(in_folder("second"), NULL), IO_OK);
        write_bytes(in_folder(name), (file_bytes){(unsigned char *)"old", 3});
    }
    expect_write_failure(in_folder("third"), "cannot be written: File exists");
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, ".moe-%ld-%d.tmp", (long)getpid(), i);
        assert_int_equal(remove(in_folder(name)), 0);
    }
    assert_int_equal(access(in_folder("second"), R_OK), 0);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    struct dirent *one;
    DIR *dir = opendir(folder);
    while (dir && (one = readdir(dir))) unlink(in_folder(one->d_name));
    if (dir) closedir(dir);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_reference_writers_bytes),    cmocka_unit_test(nothing_to_write),
        cmocka_unit_test(dtypes_are_ordered_and_survive), cmocka_unit_test(text_survives),
        cmocka_unit_test(unsound_files_are_not_written),  cmocka_unit_test(a_name_of_tails),
        cmocka_unit_test(paths_that_cannot_be_written),   cmocka_unit_test(a_name_without_a_folder),
        cmocka_unit_test(permissions_follow_the_umask),   cmocka_unit_test(links_are_followed),
        cmocka_unit_test(taken_temporary_names),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
