/* SPDX-License-Identifier: Apache-2.0 */
/* test_gguf_files.c - files on the disk: written by the format's own package (tests/data/gguf/make.py),
 * splits that do not fit together, files that shrink, and the malformed files of tests/data, of both
 * formats.
 *
 * The GGUF files in $MOE_SHARED_DIR (default: shared next to the source tree) are read if they are
 * there. */
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

#include "gguf_bytes.h"
#include "io/gguf.h"
#include "io/sniff.h"

#define DATA MOE_SOURCE_DIR "/tests/data/"

static char folder[] = "/tmp/moe_gguf_files_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_script(const char *name, const char *script)
{
    file_bytes bytes = gguf_bytes(script);
    write_bytes(in_folder(name), bytes);
    free(bytes.bytes);
}

static gg_file *opened(const char *path)
{
    gg_file *file;
    io_error error;
    if (gg_open(path, &file, &error) != IO_OK) fail_msg("%s", error.text);
    return file;
}

static void expect_failure(const char *path, io_status wanted, const char *message)
{
    gg_file *file;
    io_error error = {0};
    io_status status = gg_open(path, &file, &error);
    if (status != wanted || !strstr(error.text, message)) fail_msg("%d: %s", status, error.text);
    assert_null(file);
    assert_int_equal(gg_open(path, &file, NULL), wanted);
}

/* ---- the format's own writer ----------------------------------------------------------------- */

static void expect_integer(const gg_file *file, const char *key, int64_t wanted)
{
    int64_t value;
    assert_true(gg_integer(file, key, &value));
    assert_true(value == wanted);
}

static void expect_real(const gg_file *file, const char *key, double wanted)
{
    double value;
    assert_true(gg_real(file, key, &value));
    assert_true(value == wanted);
}

static void keys_of_the_writer(void **state)
{
    (void)state;
    gg_file *file = opened(DATA "gguf/types.gguf");
    int64_t integer;
    bool truth;
    const char *text;
    size_t count;
    expect_integer(file, "general.alignment", 64);
    expect_integer(file, "u8", 200);
    expect_integer(file, "u16", 60000);
    expect_integer(file, "u32", 4000000000);
    expect_integer(file, "i64", INT64_C(1) << 62);
    expect_real(file, "u64", 9223372036854775808.0);
    expect_real(file, "i8", -100);
    expect_real(file, "i16", -30000);
    expect_real(file, "i32", -2000000000);
    expect_real(file, "f32", 0.5);
    expect_real(file, "f64", 1e-20);
    assert_false(gg_integer(file, "u64", &integer));
    assert_true(gg_bool(file, "yes", &truth) && truth);
    assert_true(gg_bool(file, "no", &truth) && !truth);
    assert_true(gg_string(file, "text", &text));
    assert_string_equal(text, "h\xc3\xa9llo \xe2\x82\xac");
    assert_true(gg_array(file, "layers", &count) && count == 4);
    assert_true(gg_array_integer(file, "layers", 1, &integer) && integer == 1);
    assert_true(gg_array(file, "flags", &count) && count == 3);
    assert_true(gg_array_integer(file, "flags", 2, &integer) && integer == 1);
    assert_true(gg_has(file, "tokenizer.ggml.tokens"));
    assert_false(gg_has(file, "split.count"));
    gg_close(file);
}

/* Two rows of one block each, of bytes that count up from the type's number. */
static void tensors_of_the_writer(void **state)
{
    (void)state;
    gg_file *file = opened(DATA "gguf/types.gguf");
    size_t seen = 0;
    for (uint32_t type = 0; type < 100; type++) {
        char name[32];
        size_t k, bytes;
        gg_type_block(type, &k, &bytes);
        snprintf(name, sizeof name, "t.%s", gg_type_name(type) ? gg_type_name(type) : "");
        const gg_tensor *t = gg_find(file, name);
        if (!t) continue;
        unsigned char data[1024];
        assert_int_equal(t->type, type);
        assert_int_equal(t->rank, 2);
        assert_int_equal(t->ne[0], k);
        assert_int_equal(t->ne[1], 2);
        assert_int_equal(t->bytes, 2 * bytes);
        assert_true(t->bytes <= sizeof data);
        assert_int_equal(gg_read(file, t, 0, t->bytes, data, NULL), IO_OK);
        for (size_t i = 0; i < t->bytes; i++) assert_int_equal(data[i], (type + i) & 255);
        seen++;
    }
    assert_int_equal(seen, 33);
    assert_int_equal(gg_count(file), seen + 1);
    const gg_tensor *t = gg_find(file, "four");
    const uint64_t wanted[] = {4, 1, 3, 2};
    assert_non_null(t);
    assert_int_equal(t->rank, 4);
    assert_memory_equal(t->ne, wanted, sizeof wanted);
    float last;
    assert_int_equal(gg_read(file, t, 23 * sizeof last, sizeof last, &last, NULL), IO_OK);
    assert_true(last == 23);
    gg_close(file);
}

static void a_split_of_the_writer(void **state)
{
    (void)state;
    gg_file *file = opened(DATA "gguf/split-00001-of-00003.gguf");
    assert_int_equal(gg_count(file), 5);
    expect_integer(file, "test.expert_count", 4);
    for (size_t i = 0; i < 5; i++) {
        char name[8];
        float data[3];
        snprintf(name, sizeof name, "t%zu", i);
        const gg_tensor *t = gg_find(file, name);
        assert_non_null(t);
        assert_int_equal(t->part, i / 2);
        assert_int_equal(gg_read(file, t, 0, t->bytes, data, NULL), IO_OK);
        assert_true(data[2] == (float)(10 * i + 2));
    }
    gg_close(file);
    expect_failure(DATA "gguf/split-00002-of-00003.gguf", IO_E_FORMAT,
                   "the file is number 2 of a split: the first is to be opened");
}

/* ---- splits ---------------------------------------------------------------------------------- */

#define SPLIT(no, count, tensors)                                                                  \
    "Ksplit.no=2 H" #no " Ksplit.count=2 H" #count " Ksplit.tensors.count=5 W" #tensors " "
#define FIRST     "a-00001-of-00002.gguf"
#define SECOND    "a-00002-of-00002.gguf"
#define ONE(name) "V" name ",0,0,4 P32 D32"

static const char sound_first[] = "M1,3 " SPLIT(0, 2, 2) ONE("a");

static void a_split_with(const char *first, const char *second, io_status wanted,
                         const char *message)
{
    write_script(FIRST, first);
    write_script(SECOND, second);
    if (wanted != IO_OK)
        expect_failure(in_folder(FIRST), wanted, message);
    else
        gg_close(opened(in_folder(FIRST)));
}

static void splits_that_do_not_fit(void **state)
{
    (void)state;
    a_split_with(sound_first, "M1,3 " SPLIT(1, 2, 2) ONE("b"), IO_OK, NULL);
    a_split_with("M0,3 " SPLIT(0, 2, 1), "M1,3 " SPLIT(1, 2, 1) ONE("b"), IO_OK, NULL);
    a_split_with(sound_first, "M1,4 Kgeneral.alignment=4 W64 " SPLIT(1, 2, 2) "Vb,0,0,4 P64 D16",
                 IO_OK, NULL);
    a_split_with(
        sound_first, "M1,3 " SPLIT(0, 2, 2) ONE("b"), IO_E_FORMAT,
        "00002-of-00002.gguf: key \"split.no\": the value is 0 where 1 is expected at byte 24");
    a_split_with(sound_first, "M1,3 " SPLIT(1, 3, 2) ONE("b"), IO_E_FORMAT,
                 "key \"split.count\": the value is 3 where 2 is expected");
    a_split_with(sound_first, "M1,3 " SPLIT(1, 2, 3) ONE("b"), IO_E_FORMAT,
                 "key \"split.tensors.count\": the value is 3 where 2 is expected");
    a_split_with(sound_first, "M1,0 " ONE("b"), IO_E_FORMAT,
                 "key \"split.no\" is missing in a split");
    a_split_with(sound_first, "M0,3 " SPLIT(1, 2, 2), IO_E_FORMAT,
                 "the files of the split hold 1 tensors, and split.tensors.count is 2");
    a_split_with("M1,3 " SPLIT(0, 2, -2) ONE("a"), "M1,3 " SPLIT(1, 2, 2) ONE("b"), IO_E_FORMAT,
                 "key \"split.tensors.count\": the value is no integer from 0 to 65536");
    a_split_with("M1,2 Ksplit.no=2 H0 Ksplit.count=2 H2 " ONE("a"), "M0,0", IO_E_FORMAT,
                 "key \"split.tensors.count\" is missing");
    a_split_with("M1,3 " SPLIT(1, 2, 2) ONE("a"), "M0,0", IO_E_FORMAT, "the file is number 2");
    a_split_with("M1,3 " SPLIT(0, 3, 2) ONE("a"), "M0,0", IO_E_FORMAT,
                 "the file is one of a split, and its name does not end in -00001-of-00003.gguf");
    a_split_with(sound_first, "M1,3 " SPLIT(1, 2, 2) ONE("a"), IO_E_FORMAT,
                 "tensor \"a\": the name occurs twice");
    a_split_with(sound_first, "M1,3 " SPLIT(1, 2, 2) "Vb,0,0,9 P32 D32", IO_E_FORMAT,
                 "-00002-of-00002.gguf: tensor \"b\": 36 bytes at offset 0 end beyond the file");
    a_split_with("M40000,3 " SPLIT(0, 2, 65536) "Va,24,0,0*40000",
                 "M40000,3 " SPLIT(1, 2, 65536) "Va,24,0,0*40000", IO_E_FORMAT,
                 "-00002-of-00002.gguf: the split has more than 65536 tensors");
    a_split_with(sound_first, "TGGUF", IO_E_FORMAT, "-00002-of-00002.gguf: the file ends inside");
    assert_int_equal(unlink(in_folder(SECOND)), 0);
    expect_failure(in_folder(FIRST), IO_E_OPEN,
                   "-00002-of-00002.gguf: cannot be opened: No such file");
    write_script(SECOND, "M1,3 " SPLIT(1, 2, 2) ONE("b"));
    expect_failure(in_folder(SECOND), IO_E_FORMAT,
                   "-00002-of-00002.gguf: the file is number 2 of a split: the first is");
    assert_int_equal(unlink(in_folder(FIRST)), 0);
    expect_failure(in_folder(SECOND), IO_E_OPEN,
                   "-00001-of-00002.gguf: cannot be opened: No such file");
    assert_int_equal(unlink(in_folder(SECOND)), 0);
    write_script(FIRST, sound_first);
    assert_int_equal(mkfifo(in_folder(SECOND), 0600), 0);
    alarm(20); /* a reader that waits for a writer ends here */
    expect_failure(in_folder(FIRST), IO_E_OPEN, "-00002-of-00002.gguf: is no regular file");
    alarm(0);
    assert_int_equal(unlink(in_folder(SECOND)), 0);
    write_script("short", sound_first);
    expect_failure(in_folder("short"), IO_E_FORMAT, "does not end in -00001-of-00002.gguf");
    assert_int_equal(chdir(folder), 0); /* shorter than what it does not end in */
    expect_failure("short", IO_E_FORMAT,
                   "short: the file is one of a split, and its name does not");
    assert_int_equal(chdir(MOE_SOURCE_DIR), 0);
}

/* ---- what is no file, and files that shrink -------------------------------------------------- */

static void only_regular_files_are_opened(void **state)
{
    (void)state;
    io_kind kind;
    expect_failure(in_folder("absent"), IO_E_OPEN, "absent: cannot be opened: No such file");
    expect_failure(folder, IO_E_OPEN, "is no regular file");
    expect_failure("/dev/null", IO_E_OPEN, "is no regular file");
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    alarm(20); /* a reader that waits for a writer ends here */
    expect_failure(in_folder("fifo"), IO_E_OPEN, "is no regular file");
    assert_int_equal(io_sniff(in_folder("fifo"), &kind, NULL), IO_E_OPEN);
    alarm(0);
}

static void a_file_truncated_after_open(void **state)
{
    (void)state;
    char data[16];
    io_error error;
    write_script("cut", "M1,0 Va,0,0,4 P32 D16");
    gg_file *file = opened(in_folder("cut"));
    assert_int_equal(truncate(in_folder("cut"), 70), 0);
    assert_int_equal(gg_read(file, gg_at(file, 0), 0, 6, data, &error), IO_OK);
    assert_int_equal(gg_read(file, gg_at(file, 0), 0, 16, data, &error), IO_E_READ);
    assert_non_null(strstr(error.text, "cut: the file ends at byte 70"));
    gg_close(file);
}

/* A sparse file, of which the reader passes over most. */
static void a_header_has_256_mib_at_most(void **state)
{
    (void)state;
    write_script("long", "M0,2 Ktokenizer.json=8 Q268435390");
    assert_int_equal(truncate(in_folder("long"), 300 << 20), 0);
    expect_failure(in_folder("long"), IO_E_FORMAT,
                   "the header is longer than 268435456 bytes at byte 2684354");
    write_script("long", "M0,1 Ka=9 W8 Q33554432");
    assert_int_equal(truncate(in_folder("long"), 300 << 20), 0);
    expect_failure(in_folder("long"), IO_E_FORMAT,
                   "an array of 33554432 strings is longer than the rest of the header");
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    file_bytes whole = bytes_of_file(DATA "gguf/types.gguf");
    for (size_t size = 0; size < whole.size; size += size < 3000 ? 13 : 500) {
        write_bytes(in_folder("part"), (file_bytes){whole.bytes, size});
        expect_failure(in_folder("part"), IO_E_FORMAT, " at byte ");
    }
    free(whole.bytes);
}

/* ---- what a path is -------------------------------------------------------------------------- */

static void kinds(void **state)
{
    (void)state;
    static const struct {
        const char *script;
        io_kind kind;
    } cases[] = {
        {"M0,0", IO_GGUF},
        {"TGGUF", IO_GGUF},
        {"TFUGG", IO_GGUF},
        {"TGGU", IO_NEITHER},
        {"TGGML W1", IO_NEITHER},
        {"", IO_NEITHER},
        {"B0*100", IO_NEITHER},
        {"Thello", IO_NEITHER},
        {"T[]", IO_NEITHER},
        {"T{}", IO_JSON},
        {"T{", IO_JSON},
        {"T\\20\\0a\\09\\0d{\"a\":1}", IO_JSON},
        {"T\\20\\20\\20\\20\\20\\20\\20\\20{}", IO_JSON},
        {"T{\"aaaa\":{\"b\":1}}", IO_JSON},
        {"T{\"a\":\"\\c3\\a9\"}", IO_JSON},
        {"Q2 T{}", IO_SAFETENSORS},
        {"Q0x7B T{}", IO_SAFETENSORS}, /* the length starts with a { */
        {"Q0x2020207B T{}", IO_SAFETENSORS},
        {"Q-1 T{}", IO_SAFETENSORS},
        {"Q2 T{", IO_SAFETENSORS},
        {"Q2", IO_NEITHER},
        {"Q2 T[]", IO_NEITHER},
        {"Tmoepack\\1a", IO_PACKED},
        {"Tmoepack", IO_NEITHER},
    };
    io_kind kind;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_script("model.gguf", cases[i].script); /* names mean nothing */
        kind = (io_kind)77;
        assert_int_equal(io_sniff(in_folder("model.gguf"), &kind, NULL), IO_OK);
        if (kind != cases[i].kind) fail_msg("%s: %d", cases[i].script, kind);
    }
    assert_int_equal(io_sniff(folder, &kind, NULL), IO_OK);
    assert_int_equal(kind, IO_DIRECTORY);
    assert_int_equal(io_sniff(DATA "gguf/types.gguf", &kind, NULL), IO_OK);
    assert_int_equal(kind, IO_GGUF);
    io_error error;
    assert_int_equal(io_sniff("/dev/null", &kind, &error), IO_E_OPEN);
    assert_non_null(strstr(error.text, "/dev/null: is no regular file"));
    assert_int_equal(io_sniff(in_folder("absent"), &kind, &error), IO_E_OPEN);
}

/* ---- malformed files ------------------------------------------------------------------------- */

/* Opens path as what it is. */
static io_status open_any(const char *path, io_error *error)
{
    io_kind kind = IO_NEITHER;
    st_file *safetensors = NULL;
    gg_file *gguf = NULL;
    io_status status = io_sniff(path, &kind, error);
    assert_int_equal(status, IO_OK);
    assert_true(kind == IO_SAFETENSORS || kind == IO_GGUF);
    status = kind == IO_GGUF ? gg_open(path, &gguf, error) : st_open(path, &safetensors, error);
    assert_int_equal(gguf || safetensors, status == IO_OK);
    gg_close(gguf);
    st_close(safetensors);
    return status;
}

/* Each as malformed.tsv says; files of the stage "model" are sound containers, all of them. */
static void malformed_files_are_judged(void **state)
{
    (void)state;
    char line[512];
    int refused = 0, accepted = 0;
    FILE *list = fopen(DATA "malformed/malformed.tsv", "r");
    assert_non_null(list);
    assert_non_null(fgets(line, sizeof line, list)); /* names of the columns */
    while (fgets(line, sizeof line, list)) {
        char name[128], verdict[16], stage[16], path[512];
        io_error error = {0};
        assert_int_equal(sscanf(line, "%127s %15s %15s", name, verdict, stage), 3);
        snprintf(path, sizeof path, DATA "malformed/%s", name);
        bool refuse = !strcmp(verdict, "reject") && !strcmp(stage, "container");
        io_status status = open_any(path, &error);
        if (status != (refuse ? IO_E_FORMAT : IO_OK))
            fail_msg("%s: %d %s", name, status, error.text);
        if (refuse && !strstr(error.text, " at byte ")) fail_msg("%s", error.text);
        refused += refuse;
        accepted += !refuse;
    }
    fclose(list);
    assert_int_equal(refused, 35);
    assert_int_equal(accepted, 12);
}

/* ---- shared files ---------------------------------------------------------------------------- */

static void shared_files_are_accepted(void **state)
{
    (void)state;
    const char *root = getenv("MOE_SHARED_DIR");
    char fixtures[512], path[1024];
    snprintf(fixtures, sizeof fixtures, "%s/fixtures", root ? root : MOE_SOURCE_DIR "/../shared");
    DIR *dir = opendir(fixtures);
    if (!dir) skip();
    struct dirent *one;
    int files = 0;
    while ((one = readdir(dir))) {
        snprintf(path, sizeof path, "%s/%s/model.gguf", fixtures, one->d_name);
        if (access(path, R_OK) != 0) continue;
        gg_file *file = opened(path);
        assert_true(gg_count(file) > 0 && gg_has(file, "general.architecture"));
        for (size_t i = 0; i < gg_count(file); i++) {
            const gg_tensor *t = gg_at(file, i);
            unsigned char *data = malloc(t->bytes);
            assert_non_null(data);
            assert_int_equal(gg_read(file, t, 0, t->bytes, data, NULL), IO_OK);
            free(data);
        }
        gg_close(file);
        files++;
    }
    closedir(dir);
    if (files == 0) skip();
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
        cmocka_unit_test(keys_of_the_writer),
        cmocka_unit_test(tensors_of_the_writer),
        cmocka_unit_test(a_split_of_the_writer),
        cmocka_unit_test(splits_that_do_not_fit),
        cmocka_unit_test(only_regular_files_are_opened),
        cmocka_unit_test(a_file_truncated_after_open),
        cmocka_unit_test(a_header_has_256_mib_at_most),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(kinds),
        cmocka_unit_test(malformed_files_are_judged),
        cmocka_unit_test(shared_files_are_accepted),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
