/* SPDX-License-Identifier: Apache-2.0 */
/* test_safetensors_faults.c - the reader and writer when memory or the system fails, and how
 * much memory they take. */
#define _XOPEN_SOURCE 700

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "faults.h"
#include "io/safetensors.h"
#include "safetensors_bytes.h"

static char folder[] = "/tmp/moe_safetensors_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

enum { TENSORS = 20 };

static io_status write_many(const char *name, io_error *error)
{
    static char names[TENSORS][16];
    static st_tensor t[TENSORS];
    static const unsigned char bytes[16];
    const void *data[TENSORS];
    const char *keys[TENSORS], *values[TENSORS];
    for (int i = 0; i < TENSORS; i++) {
        snprintf(names[i], sizeof names[i], "t%d", i);
        t[i] = (st_tensor){.name = names[i], .dtype = ST_F32, .rank = 1, .shape = {4}, .bytes = 16};
        data[i] = bytes;
        keys[i] = values[i] = names[i];
    }
    return st_write(in_folder(name), t, data, TENSORS, keys, values, TENSORS, error);
}

/* ---- memory
 * -------------------------------------------------------------------------------------- */

static void every_allocation_fails_while_reading(void **state)
{
    (void)state;
    assert_int_equal(write_many("many", NULL), IO_OK);
    file_bytes bytes = bytes_of_file(in_folder("many"));
    size_t before = live;
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        io_status status = IO_E_NOMEM;
        int site = 0;
        for (; status != IO_OK; site++) {
            st_file *file;
            io_error error = {0};
            plan_fault(ALLOC, site, ENOMEM);
            status = in_memory ? st_open_memory(bytes.bytes, bytes.size, &file, &error)
                               : st_open(in_folder("many"), &file, &error);
            bool came = fault_came();
            assert_int_equal(status, came ? IO_E_NOMEM : IO_OK);
            assert_int_equal(error.status, status);
            if (came) {
                assert_null(file);
                assert_non_null(strstr(error.text, ": out of memory"));
            }
            st_close(file);
            assert_int_equal(live, before);
            assert_int_equal(descriptors, 0);
        }
        assert_in_range(site, 6, 50); /* file, path, header, tensors, metadata, index */
    }
    free(bytes.bytes);
}

static size_t entries(void)
{
    size_t n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    while (readdir(dir)) n++;
    closedir(dir);
    return n;
}

/* Both when the name is free and when a file has it. */
static void every_allocation_fails_while_writing(void **state)
{
    (void)state;
    size_t before = live, entries_before = entries();
    for (int taken = 0; taken < 2; taken++) {
        io_status status = IO_E_NOMEM;
        int site = 0;
        for (; status != IO_OK; site++) {
            io_error error = {0};
            plan_fault(ALLOC, site, ENOMEM);
            status = write_many("written", &error);
            bool came = fault_came();
            assert_int_equal(status, came ? IO_E_NOMEM : IO_OK);
            assert_int_equal(error.status, status);
            assert_int_equal(live, before);
            if (came) assert_int_equal(entries(), entries_before);
        }
        assert_in_range(site, 8, 80);
        entries_before = entries();
    }
}

/* A header of n members, each the text of format with its number. */
static file_bytes numbered(const char *head, const char *format, int n, const char *tail)
{
    enum { MEMBER = 80 };
    size_t room = (size_t)n * MEMBER + strlen(head) + strlen(tail) + 1;
    char *header = malloc(room), *at = header;
    assert_non_null(header);
    at += snprintf(at, room, "%s", head);
    for (int i = 0; i < n; i++) at += snprintf(at, MEMBER, format, i ? "," : "", i);
    at += snprintf(at, strlen(tail) + 1, "%s", tail);
    file_bytes file = safetensors_bytes(header, (size_t)(at - header), 0);
    free(header);
    return file;
}

static file_bytes repeated(const char *head, const char *part, int n)
{
    size_t head_size = strlen(head), size = strlen(part);
    char *header = malloc(head_size + (size_t)n * size);
    assert_non_null(header);
    memcpy(header, head, head_size);
    for (int i = 0; i < n; i++) memcpy(header + head_size + (size_t)i * size, part, size);
    file_bytes file = safetensors_bytes(header, head_size + (size_t)n * size, 0);
    free(header);
    return file;
}

/* The peak while file is read, in units of its size. */
static double peak_ratio(file_bytes file, io_status wanted)
{
    st_file *opened;
    size_t before = live;
    peak = live;
    assert_int_equal(st_open_memory(file.bytes, file.size, &opened, NULL), wanted);
    st_close(opened);
    assert_int_equal(live, before);
    free(file.bytes);
    return (double)(peak - before) / (double)file.size;
}

/* The smallest members there are, sound and hostile.  qsort of the C library is not counted; it
 * takes at most 16 bytes per tensor, a third of a header. */
static void memory_is_bounded_by_the_header(void **state)
{
    (void)state;
    enum { MANY = 50000 };
    static const char entry[] = "%s\"%x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
    double worst[] = {
        peak_ratio(numbered("{", entry, MANY, "}"), IO_OK),
        peak_ratio(numbered("{\"__metadata__\":{", "%s\"%x\":\"\"", MANY, "}}"), IO_OK),
        peak_ratio(repeated("{\"__metadata__\":{\"\":\"\"", ",\"\":\"\"", MANY), IO_E_FORMAT),
        peak_ratio(repeated("{", "[", MANY), IO_E_FORMAT),
        peak_ratio(repeated("[", "[", MANY), IO_E_FORMAT),
        peak_ratio(repeated("{\"a\":1", ",\"a\":1", MANY), IO_E_FORMAT),
        peak_ratio(repeated("{\"a\":{\"shape\":[0", ",0", MANY), IO_E_FORMAT),
        peak_ratio(repeated("{\"", "\\u00e9", MANY), IO_E_FORMAT),
        peak_ratio(repeated("{}", " ", MANY), IO_OK),
    };
    for (size_t i = 0; i < sizeof worst / sizeof *worst; i++) {
        if (worst[i] > 12) fail_msg("header %zu takes %.1f times its size", i, worst[i]);
    }
}

/* A header that claims to be large must not be paid for before the file is seen to hold it. */
static void a_claimed_length_allocates_nothing(void **state)
{
    (void)state;
    file_bytes file = safetensors_bytes("{}", 2, 0);
    file.bytes[3] = 5; /* 83886082 bytes */
    assert_true(peak_ratio(file, IO_E_FORMAT) < 100);
}

/* ---- system calls
 * -------------------------------------------------------------------------------- */

static void failing_reads(void **state)
{
    (void)state;
    st_file *file;
    io_error error;
    unsigned char data[16];
    assert_int_equal(write_many("read", NULL), IO_OK);

    plan_fault(FSTAT, 0, EIO);
    assert_int_equal(st_open(in_folder("read"), &file, &error), IO_E_OPEN);
    assert_true(fault_came());
    for (int i = 0; i < 2; i++) { /* the length, the header */
        plan_fault(PREAD, i, EIO);
        assert_int_equal(st_open(in_folder("read"), &file, &error), IO_E_READ);
        assert_true(fault_came());
        assert_non_null(strstr(error.text, "/read: cannot be read: Input/output error"));
        assert_null(file);
        plan_fault(PREAD, i, 0);
        assert_int_equal(st_open(in_folder("read"), &file, &error), IO_E_READ);
        assert_non_null(
            strstr(error.text, i ? "the file ends at byte 8" : "the file ends at byte 0"));
        plan_fault(PREAD, i, EINTR);
        assert_int_equal(st_open(in_folder("read"), &file, &error), IO_OK);
        assert_true(fault_came());
        st_close(file);
    }
    plan.short_moves = true;
    assert_int_equal(st_open(in_folder("read"), &file, &error), IO_OK);
    assert_int_equal(st_read(file, st_at(file, 1), data, &error), IO_OK);
    plan.short_moves = false;
    plan_fault(PREAD, 0, EIO);
    assert_int_equal(st_read(file, st_at(file, 1), data, &error), IO_E_READ);
    st_close(file);
    assert_int_equal(descriptors, 0);
}

/* Whatever fails, the old file stays under the name, and nothing beside it. */
static void failing_writes(void **state)
{
    (void)state;
    static const struct {
        call what;
        int successes, cause;
        const char *text;
    } cases[] = {
        {OPEN, 0, EACCES, "Permission denied"}, {WRITE, 0, ENOSPC, "No space left on device"},
        {WRITE, 5, EIO, "Input/output error"},  {WRITE, 1, 0, "Input/output error"},
        {FSYNC, 0, EIO, "Input/output error"},  {CLOSE, 0, EDQUOT, "Disk quota exceeded"},
        {RENAME, 0, EPERM, "not permitted"},    {REALPATH, 0, ELOOP, "symbolic links"},
    };
    write_bytes(in_folder("failing"), (file_bytes){(unsigned char *)"old", 3});
    size_t before = live, entries_before = entries();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        io_error error = {0};
        plan_fault(cases[i].what, cases[i].successes, cases[i].cause);
        assert_int_equal(write_many("failing", &error), IO_E_WRITE);
        assert_true(fault_came());
        if (!strstr(error.text, cases[i].text)) fail_msg("case %zu: %s", i, error.text);
        assert_int_equal(live, before);
        assert_int_equal(descriptors, 0);
        assert_int_equal(entries(), entries_before);
        file_bytes kept = bytes_of_file(in_folder("failing"));
        assert_string_equal((char *)kept.bytes, "old");
        free(kept.bytes);
    }
}

static void the_first_failure_is_reported(void **state)
{
    (void)state;
    io_error error = {0};
    plan_fault(WRITE, 0, ENOSPC);
    plan.close_fails = true;
    assert_int_equal(write_many("twice", &error), IO_E_WRITE);
    plan.close_fails = false;
    assert_non_null(strstr(error.text, "No space left on device"));
}

static void interrupted_and_short_writes(void **state)
{
    (void)state;
    assert_int_equal(write_many("plain", NULL), IO_OK);
    plan_fault(WRITE, 3, EINTR);
    assert_int_equal(write_many("interrupted", NULL), IO_OK);
    assert_true(fault_came());
    plan.short_moves = true;
    assert_int_equal(write_many("short", NULL), IO_OK);
    plan.short_moves = false;

    file_bytes plain = bytes_of_file(in_folder("plain"));
    const char *others[] = {"interrupted", "short"};
    for (int i = 0; i < 2; i++) {
        file_bytes other = bytes_of_file(in_folder(others[i]));
        assert_int_equal(other.size, plain.size);
        assert_memory_equal(other.bytes, plain.bytes, plain.size);
        free(other.bytes);
    }
    free(plain.bytes);
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
        cmocka_unit_test(every_allocation_fails_while_reading),
        cmocka_unit_test(every_allocation_fails_while_writing),
        cmocka_unit_test(memory_is_bounded_by_the_header),
        cmocka_unit_test(a_claimed_length_allocates_nothing),
        cmocka_unit_test(failing_reads),
        cmocka_unit_test(failing_writes),
        cmocka_unit_test(the_first_failure_is_reported),
        cmocka_unit_test(interrupted_and_short_writes),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
