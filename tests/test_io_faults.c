/* SPDX-License-Identifier: Apache-2.0 */
/* test_io_faults.c - the readers of GGUF, configurations and indices when memory or the system
 * fails, and how much memory they take. */
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
#include "gguf_bytes.h"
#include "io/config.h"
#include "io/gguf.h"
#include "io/index.h"
#include "io/sniff.h"

static char folder[] = "/tmp/moe_io_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* ---- one call for all readers ---------------------------------------------------------------- */

typedef enum reader { GGUF, GGUF_SPLIT, CONFIG, INDEX, SNIFF, READERS } reader;

static const char *const names[READERS] = {"gguf", "split-00001-of-00002.gguf", "config", "index",
                                           "config"};

/* Opens what the folder holds for a reader, or bytes if there are any, and closes it. */
static io_status open_and_close(reader r, const file_bytes *bytes, io_error *error)
{
    const char *path = in_folder(names[r]);
    gg_file *gguf = NULL;
    cfg_file *config = NULL;
    ix_index *index = NULL;
    io_kind kind;
    io_status status;
    switch (r) {
    case CONFIG:
        status = bytes ? cfg_open_memory(bytes->bytes, bytes->size, &config, error)
                       : cfg_open(path, &config, error);
        break;
    case INDEX:
        status = bytes ? ix_open_memory(bytes->bytes, bytes->size, &index, error)
                       : ix_open(path, &index, error);
        break;
    case SNIFF: status = io_sniff(path, &kind, error); break;
    default:
        status = bytes ? gg_open_memory(bytes->bytes, bytes->size, &gguf, error)
                       : gg_open(path, &gguf, error);
    }
    bool some = gguf || config || index;
    assert_int_equal(some, status == IO_OK && r != SNIFF);
    gg_close(gguf);
    cfg_close(config);
    ix_close(index);
    return status;
}

/* More keys and tensors than the first room for them; a text longer than a window. */
static const char gguf_script[] =
    "M12,12 Ka=0 B1 Kb=0 B1 Kc=0 B1 Kd=0 B1 Ke=0 B1 Kf=0 B1 Kg=0 B1 Kh=0 B1 Ki=0 B1 Kl=9 W0 Q20000 "
    "D20000 Kt=9 W8 Q3 X300 X20000 Sx Ks=8 X60000 Va,0,0,1 Vb,0,32,1 Vc,0,64,1 Vd,0,96,1 "
    "Ve,0,128,1 Vf,0,160,1 Vg,0,192,1 Vh,0,224,1 Vi,0,256,1 Vj,0,288,1 Vk,0,320,1 Vl,0,352,1 P32 "
    "D384";

static void write_script(const char *name, const char *script)
{
    file_bytes bytes = gguf_bytes(script);
    write_bytes(in_folder(name), bytes);
    free(bytes.bytes);
}

static void write_text(const char *name, const char *text)
{
    write_bytes(in_folder(name), (file_bytes){(unsigned char *)(uintptr_t)text, strlen(text)});
}

static void write_files(void)
{
    write_script("gguf", gguf_script);
    write_script(
        "split-00001-of-00002.gguf",
        "M1,3 Ksplit.no=2 H0 Ksplit.count=2 H2 Ksplit.tensors.count=5 W2 Va,0,0,4 P32 D32");
    write_script(
        "split-00002-of-00002.gguf",
        "M1,3 Ksplit.no=2 H1 Ksplit.count=2 H2 Ksplit.tensors.count=5 W2 Vb,0,0,4 P32 D32");
    write_text("config", "{\"a\":{\"b\":[1,2.5,\"c\"]},\"d\":null}");
    write_text("index",
               "{\"weight_map\":{\"a\":\"f\",\"b\":\"g\",\"c\":\"f\",\"d\":\"f\",\"e\":\"f\","
               "\"g\":\"f\",\"h\":\"f\",\"i\":\"f\",\"j\":\"f\",\"k\":\"f\"}}");
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void every_allocation_fails(void **state)
{
    (void)state;
    static const int least[READERS] = {8, 9, 5, 6, 1};
    write_files();
    size_t before = live;
    for (int r = 0; r < READERS; r++) {
        io_status status = IO_E_NOMEM;
        int site = 0;
        for (; status != IO_OK; site++) {
            io_error error = {0};
            plan_fault(ALLOC, site, ENOMEM);
            status = open_and_close((reader)r, NULL, &error);
            bool came = fault_came();
            assert_int_equal(status, came ? IO_E_NOMEM : IO_OK);
            assert_int_equal(error.status, status);
            if (came) assert_non_null(strstr(error.text, ": out of memory"));
            assert_int_equal(live, before);
            assert_int_equal(descriptors, 0);
        }
        if (site <= least[r] || site > 60) fail_msg("reader %d: %d sites", r, site - 1);
    }
}

/* The peak while bytes are read, in units of their size. */
static double peak_ratio(reader r, file_bytes bytes, io_status wanted)
{
    size_t before = live;
    peak = live;
    io_error error;
    io_status status = open_and_close(r, &bytes, &error);
    if (status != wanted) fail_msg("%d: %s", status, status == IO_OK ? "accepted" : error.text);
    assert_int_equal(live, before);
    double ratio = (double)(peak - before) / (double)bytes.size;
    free(bytes.bytes);
    return ratio;
}

/* head, n members, each the text of format with its number behind a comma from the second on, tail. */
static file_bytes numbered(const char *head, const char *format, int n, const char *tail)
{
    enum { MEMBER = 80 };
    size_t room = (size_t)n * MEMBER + strlen(head) + strlen(tail) + 1;
    char *text = malloc(room), *at = text;
    assert_non_null(text);
    at += snprintf(at, room, "%s", head);
    for (int i = 0; i < n; i++) at += snprintf(at, MEMBER, format, i ? "," : "", i);
    at += snprintf(at, strlen(tail) + 1, "%s", tail);
    return (file_bytes){(unsigned char *)text, (size_t)(at - text)};
}

static file_bytes repeated(const char *head, const char *part, int n)
{
    size_t head_size = strlen(head), size = strlen(part);
    char *text = malloc(head_size + (size_t)n * size);
    assert_non_null(text);
    memcpy(text, head, head_size);
    for (int i = 0; i < n; i++) memcpy(text + head_size + (size_t)i * size, part, size);
    return (file_bytes){(unsigned char *)text, head_size + (size_t)n * size};
}

/* A GGUF file of n keys, or n tensors, as small as they can be, in which numbers make the names. */
static file_bytes numbered_gguf(bool tensors, int n)
{
    file_bytes head = gguf_bytes("M0,0");
    unsigned char *bytes = calloc(1, head.size + (size_t)n * 32);
    assert_non_null(bytes);
    memcpy(bytes, head.bytes, head.size);
    free(head.bytes);
    size_t at = head.size;
    for (int i = 0; i < n; i++) {
        char name[8];
        int length = snprintf(name, sizeof name, "%x", (unsigned)i);
        bytes[at] = (unsigned char)length;
        memcpy(bytes + at + 8, name, (size_t)length);
        at += 8 + (size_t)length;
        if (tensors) bytes[at + 4] = 24; /* no dimensions, I8 */
        at += tensors ? 16 : 5;          /* offset 0; type 0, a byte */
    }
    for (int i = 0; i < 4; i++) bytes[(tensors ? 8 : 16) + i] = (unsigned char)(n >> 8 * i);
    return (file_bytes){bytes, at};
}

/* The smallest members there are, sound and hostile.  (qsort of the C library is not counted; it
 * takes at most 16 bytes for what has five bytes or more in the text.) */
static void memory_is_bounded_by_the_size(void **state)
{
    (void)state;
    enum { MANY = 50000 };
    double worst[] = {
        peak_ratio(GGUF, numbered_gguf(false, MANY), IO_OK),
        peak_ratio(GGUF, numbered_gguf(true, MANY), IO_E_FORMAT), /* no data behind the header */
        peak_ratio(GGUF, gguf_bytes("M0,1 Ka=9 W8 Q250000 X8*250000"), IO_OK),
        peak_ratio(GGUF, gguf_bytes("M0,1 Ka=9 W5 Q250000 W7*250000"), IO_OK),
        peak_ratio(GGUF, gguf_bytes("M0,1 Ka=9 W7 Q1000000 B1*1000000"), IO_OK),
        peak_ratio(GGUF, gguf_bytes("M0,2 Ka=8 X65536 Kb=8 X65536"), IO_OK),
        peak_ratio(CONFIG, numbered("{\"a\":[", "%s%d", MANY, "]}"), IO_OK),
        peak_ratio(CONFIG, repeated("{\"a\":[0", ",0", MANY), IO_E_FORMAT),
        peak_ratio(CONFIG, repeated("{\"a\":[[]", ",[]", MANY), IO_E_FORMAT),
        peak_ratio(CONFIG, numbered("{", "%s\"%x\":0", MANY, "}"), IO_OK),
        peak_ratio(CONFIG, repeated("{\"\":0", ",\"\":0", MANY), IO_E_FORMAT),
        peak_ratio(CONFIG, repeated("{\"\":\"", ",:{[", MANY), IO_E_FORMAT),
        peak_ratio(CONFIG, repeated("{", ",", MANY), IO_E_FORMAT),
        peak_ratio(CONFIG, repeated("{", ":", MANY), IO_E_FORMAT),
        peak_ratio(CONFIG, repeated("{", ",:", MANY), IO_E_FORMAT),
        peak_ratio(CONFIG, repeated("{\"a\":", "[", MANY), IO_E_FORMAT),
        peak_ratio(CONFIG, repeated("{}", " ", MANY), IO_OK),
        peak_ratio(INDEX, numbered("{\"weight_map\":{", "%s\"%x\":\"f\"", MANY, "}}"), IO_OK),
        peak_ratio(INDEX, numbered("{\"weight_map\":{", "%1$s\"%2$x\":\"%2$x\"", MANY, "}}"),
                   IO_OK),
        peak_ratio(INDEX, repeated("{\"weight_map\":{\"\":\"f\"", ",\"\":\"f\"", MANY),
                   IO_E_FORMAT),
        peak_ratio(INDEX, repeated("{\"a\":", "[", MANY), IO_E_FORMAT),
    };
    for (size_t i = 0; i < sizeof worst / sizeof *worst; i++) {
        if (worst[i] > 14) fail_msg("file %zu takes %.1f times its size", i, worst[i]);
    }
}

/* Counts and lengths that claim much must not be paid for before the file is seen to hold it. */
static void a_claimed_size_allocates_nothing(void **state)
{
    (void)state;
    static const char *const scripts[] = {"M65536,0 Y40",
                                          "M0,65536 Y40",
                                          "M0,1 Q65536 Y40",
                                          "M0,1 Ka=8 Q65536 Y40",
                                          "M0,1 Ka=9 W4 Q100000000 Y40",
                                          "M0,1 Ka=9 W8 Q100000000 Y40",
                                          "M1,0 Va,0,0,0x1000000000 Y40"};
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        file_bytes bytes = gguf_bytes(scripts[i]);
        assert_true(peak_ratio(GGUF, bytes, IO_E_FORMAT) * (double)bytes.size < 4000);
    }
}

/* ---- system calls ---------------------------------------------------------------------------- */

/* Every pread fails in turn: with an error, as if the file ended there, and by a signal. */
static void failing_reads(void **state)
{
    (void)state;
    static const int least[READERS] = {3, 2, 1, 1, 1};
    write_files();
    for (int r = 0; r < READERS; r++) {
        io_error error = {0};
        plan_fault(FSTAT, 0, EIO);
        assert_int_equal(open_and_close((reader)r, NULL, &error), IO_E_OPEN);
        assert_true(fault_came());
        assert_non_null(strstr(error.text, "cannot be opened: Input/output error"));
        int site = 0;
        for (;; site++) {
            plan_fault(PREAD, site, EIO);
            io_status status = open_and_close((reader)r, NULL, &error);
            if (!fault_came()) break;
            assert_int_equal(status, IO_E_READ);
            assert_non_null(strstr(error.text, "cannot be read: Input/output error"));
            plan_fault(PREAD, site, 0);
            assert_int_equal(open_and_close((reader)r, NULL, &error), IO_E_READ);
            assert_non_null(strstr(error.text, ": the file ends at byte "));
            plan_fault(PREAD, site, EINTR);
            assert_int_equal(open_and_close((reader)r, NULL, NULL), IO_OK);
            assert_true(fault_came());
            assert_int_equal(descriptors, 0);
        }
        assert_in_range(site, least[r], 40);
        plan.short_moves = true;
        assert_int_equal(open_and_close((reader)r, NULL, NULL), IO_OK);
        plan.short_moves = false;
    }
}

/* The second file of a split. */
static void failing_files_of_a_split(void **state)
{
    (void)state;
    io_error error;
    write_files();
    plan_fault(OPEN, 1, EMFILE);
    assert_int_equal(open_and_close(GGUF_SPLIT, NULL, &error), IO_E_OPEN);
    assert_true(fault_came());
    assert_non_null(
        strstr(error.text, "split-00002-of-00002.gguf: cannot be opened: Too many open"));
    plan_fault(FSTAT, 1, EIO);
    assert_int_equal(open_and_close(GGUF_SPLIT, NULL, &error), IO_E_OPEN);
    assert_true(fault_came());
    assert_int_equal(descriptors, 0);
}

static void failing_reads_of_data(void **state)
{
    (void)state;
    gg_file *file;
    io_error error;
    unsigned char data[4];
    write_files();
    assert_int_equal(gg_open(in_folder("gguf"), &file, NULL), IO_OK);
    plan_fault(PREAD, 0, EIO);
    assert_int_equal(gg_read(file, gg_at(file, 3), 0, 4, data, &error), IO_E_READ);
    assert_true(fault_came());
    assert_non_null(strstr(error.text, "/gguf: cannot be read"));
    plan.short_moves = true;
    assert_int_equal(gg_read(file, gg_at(file, 3), 0, 4, data, NULL), IO_OK);
    plan.short_moves = false;
    assert_memory_equal(data, "\x60\x61\x62\x63", 4);
    gg_close(file);
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
        cmocka_unit_test(every_allocation_fails),
        cmocka_unit_test(memory_is_bounded_by_the_size),
        cmocka_unit_test(a_claimed_size_allocates_nothing),
        cmocka_unit_test(failing_reads),
        cmocka_unit_test(failing_files_of_a_split),
        cmocka_unit_test(failing_reads_of_data),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
