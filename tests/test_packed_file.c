/* SPDX-License-Identifier: Apache-2.0 */
/* test_packed_file.c - files of packed layers: what is written is read, what is damaged is seen,
 * and whatever fails, or kills the writer, leaves the old file or the new one, whole.
 *
 * Linked with -Wl,--wrap for each of the functions in WRAPPED below. */
#define _XOPEN_SOURCE 700
#include "expect.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "io/hash.h"
#include "io/packed.h"
#include "safetensors_bytes.h"

/* ---- faults ---------------------------------------------------------------------------------- */

/* WRAPPED: malloc calloc realloc strdup open fstat lstat pread __pread_chk write fsync close rename
 * realpath pthread_create */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *text);
int __real_open(const char *path, int flags, mode_t mode);
int __real_fstat(int fd, struct stat *about);
int __real_lstat(const char *path, struct stat *about);
ssize_t __real_pread(int fd, void *dst, size_t n, off_t offset);
ssize_t __real_write(int fd, const void *src, size_t n);
int __real_fsync(int fd);
int __real_close(int fd);
int __real_rename(const char *from, const char *to);
char *__real_realpath(const char *path, char *resolved);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *arg);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *text);
int __wrap_open(const char *path, int flags, mode_t mode);
int __wrap_fstat(int fd, struct stat *about);
int __wrap_lstat(const char *path, struct stat *about);
ssize_t __wrap_pread(int fd, void *dst, size_t n, off_t offset);
ssize_t __wrap___pread_chk(int fd, void *dst, size_t n, off_t offset, size_t room);
ssize_t __wrap_write(int fd, const void *src, size_t n);
int __wrap_fsync(int fd);
int __wrap_close(int fd);
int __wrap_rename(const char *from, const char *to);
char *__wrap_realpath(const char *path, char *resolved);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *arg);

typedef enum fault { NO_FAULT, FAILS, DIES_BEFORE, DIES_AFTER, SHORT } fault;

enum { DEAD = 77 }; /* exit code of a process that the fault killed */

/* What happens to call number `at` of the wrapped functions (0 is the first). */
static struct {
    fault what;
    int cause;
    _Atomic int at;
    _Atomic bool came;
    _Atomic size_t largest; /* malloc and calloc */
    _Atomic bool no_threads;
    _Atomic bool slow_helpers; /* reads of threads but the first take long */
} plan;

static pthread_t first_thread;

static _Atomic int descriptors;

static bool strikes(void)
{
    if (plan.what == NO_FAULT || plan.what == SHORT || atomic_fetch_sub(&plan.at, 1) != 0)
        return false;
    plan.came = true;
    errno = plan.cause;
    if (plan.what == DIES_BEFORE) _exit(DEAD);
    return plan.what == FAILS;
}

/* The call is done. */
static void survives(void)
{
    if (plan.what == DIES_AFTER && plan.came) _exit(DEAD);
}

static void plan_fault(fault what, int at, int cause)
{
    plan.what = what;
    plan.at = at;
    plan.cause = cause;
    plan.came = false;
}

static bool fault_came(void)
{
    plan.what = NO_FAULT;
    return plan.came;
}

static void note(size_t n)
{
    if (n > plan.largest) plan.largest = n;
}

void *__wrap_malloc(size_t n)
{
    note(n);
    return strikes() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    note(n * size);
    return strikes() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    note(n);
    return strikes() ? NULL : __real_realloc(p, n);
}

char *__wrap_strdup(const char *text)
{
    return strikes() ? NULL : __real_strdup(text);
}

int __wrap_open(const char *path, int flags, mode_t mode)
{
    int fd = strikes() ? -1 : __real_open(path, flags, mode);
    assert_true(fd < 0 || (flags & O_CLOEXEC) != 0);
    descriptors += fd >= 0;
    survives();
    return fd;
}

int __wrap_fstat(int fd, struct stat *about)
{
    return strikes() ? -1 : __real_fstat(fd, about);
}

int __wrap_lstat(const char *path, struct stat *about)
{
    return strikes() ? -1 : __real_lstat(path, about);
}

ssize_t __wrap_pread(int fd, void *dst, size_t n, off_t offset)
{
    if (strikes()) return plan.cause ? -1 : 0;
    if (plan.slow_helpers && !pthread_equal(pthread_self(), first_thread))
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    return __real_pread(fd, dst, plan.what == SHORT && n > 1000 ? n / 2 : n, offset);
}

ssize_t __wrap___pread_chk(int fd, void *dst, size_t n, off_t offset, size_t room)
{
    assert_true(n <= room);
    return __wrap_pread(fd, dst, n, offset);
}

ssize_t __wrap_write(int fd, const void *src, size_t n)
{
    if (strikes()) return plan.cause ? -1 : 0;
    /* a process that is killed may have written a part */
    ssize_t done = __real_write(fd, src, (plan.what == SHORT || plan.came) && n > 1 ? n / 2 : n);
    survives();
    return done;
}

int __wrap_fsync(int fd)
{
    int result = strikes() ? -1 : __real_fsync(fd);
    survives();
    return result;
}

int __wrap_close(int fd)
{
    int result = __real_close(fd);
    descriptors--;
    if (strikes()) return -1;
    survives();
    return result;
}

int __wrap_rename(const char *from, const char *to)
{
    int result = strikes() ? -1 : __real_rename(from, to);
    survives();
    return result;
}

char *__wrap_realpath(const char *path, char *resolved)
{
    return strikes() ? NULL : __real_realpath(path, resolved);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *arg)
{
    return plan.no_threads ? EAGAIN : __real_pthread_create(thread, attributes, run, arg);
}

/* ---- files ----------------------------------------------------------------------------------- */

static char folder[] = "/tmp/moe_packed_XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
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

/* A payload of `bytes` bytes given in pieces of `piece`; text is what is said about it. */
typedef struct content {
    size_t bytes, piece;
    unsigned char seed;
    const char *text;
    moe_status fails; /* in the second round, at the end; the first with fails_first */
    bool fails_first;
    int *rounds;
} content;

static unsigned char byte_of(const content *c, size_t i)
{
    return (unsigned char)((i * 2654435761u >> 7) + c->seed + (i >> 20));
}

static moe_status emit(const void *from, packed_put *put, void *to)
{
    const content *c = from;
    unsigned char *piece = __real_malloc(c->piece);
    moe_status s = MOE_OK;
    assert_non_null(piece);
    for (size_t at = 0; s == MOE_OK && at < c->bytes;) {
        size_t n = c->bytes - at < c->piece ? c->bytes - at : c->piece;
        for (size_t i = 0; i < n; i++) piece[i] = byte_of(c, at + i);
        s = put(to, piece, n);
        at += n;
    }
    free(piece);
    if (s == MOE_OK && c->fails != MOE_OK && (c->fails_first || ++*c->rounds == 2)) return c->fails;
    return s;
}

static io_status write_content(const char *path, const content *c, io_error *error)
{
    moe_status status;
    return packed_write(path, c->text, strlen(c->text), emit, c, &status, error);
}

/* Reads all in the given way; whether it is c. */
static io_status read_content(packed_file *f, const content *c, size_t piece, int threads,
                              io_error *error)
{
    packed_stream s = {.file = f, .threads = threads};
    size_t bytes;
    const void *about = packed_about(f, &bytes);
    assert_int_equal(bytes, strlen(c->text));
    assert_memory_equal(about, c->text, bytes);
    assert_int_equal(packed_bytes(f), c->bytes);
    unsigned char *all = __real_malloc(c->bytes + 1);
    assert_non_null(all);
    bool ok = true;
    for (size_t at = 0; ok && at < c->bytes; at += piece)
        ok = packed_read(&s, all + at, c->bytes - at < piece ? c->bytes - at : piece);
    packed_stream_end(&s);
    for (size_t i = 0; ok && i < c->bytes; i++)
        if (all[i] != byte_of(c, i)) fail_msg("byte %zu of %zu", i, c->bytes);
    free(all);
    if (error != NULL) *error = s.error;
    return ok ? IO_OK : s.error.status;
}

/* Opens path and reads it; IO_OK if it is c, whole. */
static io_status read_path(const char *path, const content *c, size_t piece, int threads,
                           io_error *error)
{
    packed_file *f;
    io_status s = packed_open(path, &f, error);
    if (s == IO_OK) s = read_content(f, c, piece, threads, error);
    packed_close(f);
    return s;
}

static const content small = {5000, 700, 3, "small", 0, false, NULL};
static const content larger = {PACKED_CHUNK + 5000, 300000, 5, "a larger one", 0, false, NULL};

static void write_one(const char *name, const content *c)
{
    io_error error = {0};
    if (write_content(in_folder(name), c, &error) != IO_OK) fail_msg("%s", error.text);
}

/* ---- what is written is read ------------------------------------------------------------------ */

static void what_is_written_is_read(void **state)
{
    (void)state;
    const size_t chunk = PACKED_CHUNK;
    const size_t sizes[] = {0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 777, 4 * chunk};
    const size_t pieces[] = {4096, 999999, chunk, 2 * chunk + 1, 10 * chunk};
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (size_t p = 0; p < COUNT(pieces); p++) {
            content c = {
                sizes[i], pieces[(p + i) % COUNT(pieces)], (unsigned char)p, "about", 0, false,
                NULL};
            write_one("same", &c);
            for (int threads = 1; threads <= 5; threads += 2) {
                io_error error = {0};
                if (read_path(in_folder("same"), &c, pieces[p], threads, &error) != IO_OK)
                    fail_msg("%s", error.text);
            }
            plan.no_threads = true;
            assert_int_equal(read_path(in_folder("same"), &c, pieces[p], 4, NULL), IO_OK);
            plan.no_threads = false;
        }
    assert_int_equal(descriptors, 0);
}

/* The same bytes give the same file. */
static void files_are_reproducible(void **state)
{
    (void)state;
    content other = larger;
    other.piece = 12345;
    write_one("one", &larger);
    write_one("two", &other);
    file_bytes one = bytes_of_file(in_folder("one")), two = bytes_of_file(in_folder("two"));
    assert_int_equal(one.size, two.size);
    assert_memory_equal(one.bytes, two.bytes, one.size);
    free(one.bytes);
    free(two.bytes);
}

static void more_than_there_is(void **state)
{
    (void)state;
    packed_file *f;
    unsigned char bytes[8];
    write_one("end", &small);
    assert_int_equal(packed_open(in_folder("end"), &f, NULL), IO_OK);
    assert_string_equal(packed_path(f), in_folder("end"));
    packed_stream s = {.file = f, .at = small.bytes - 4, .threads = 2};
    assert_false(packed_read(&s, bytes, 5));
    assert_int_equal(s.error.status, IO_E_FORMAT);
    assert_true(packed_read(&s, bytes, 4));
    s.at = SIZE_MAX;
    assert_false(packed_read(&s, bytes, 1));
    packed_stream_end(&s);
    packed_close(f);
    packed_close(NULL);
}

typedef struct watch {
    uint64_t last, all;
    int calls, stop_at;
} watch;

static int watched(void *user, uint64_t done, uint64_t all)
{
    watch *w = user;
    assert_true(done > w->last && done <= all);
    w->last = done;
    w->all = all;
    return ++w->calls == w->stop_at;
}

static void progress_is_told(void **state)
{
    (void)state;
    content c = {5 * PACKED_CHUNK + 11, 1 << 20, 1, "", 0, false, NULL};
    packed_file *f;
    unsigned char *all = __real_malloc(c.bytes);
    write_one("progress", &c);
    assert_int_equal(packed_open(in_folder("progress"), &f, NULL), IO_OK);
    for (int stop = 0; stop <= 6; stop++) {
        watch w = {.stop_at = stop};
        packed_stream s = {.file = f, .threads = 1, .progress = watched, .user = &w};
        bool ok = packed_read(&s, all, 100) && packed_read(&s, all + 100, c.bytes - 100);
        assert_int_equal(ok, stop == 0);
        if (stop == 0) assert_true(w.last == c.bytes && w.all == c.bytes && w.calls == 6);
        if (!ok) {
            assert_int_equal(s.error.status, IO_E_READ);
            assert_int_equal(w.calls, stop);
        }
        packed_stream_end(&s);
    }
    /* the last report is of all, also where a helper's chunk is the last */
    plan.slow_helpers = true;
    for (int threads = 2; threads <= 4; threads++) {
        watch w = {.last = 0};
        packed_stream s = {.file = f, .threads = threads, .progress = watched, .user = &w};
        assert_true(packed_read(&s, all, c.bytes));
        if (w.last != c.bytes) fail_msg("%" PRIu64 " of %zu", w.last, c.bytes);
        packed_stream_end(&s);
    }
    plan.slow_helpers = false;
    packed_close(f);
    free(all);
}

/* ---- damage ---------------------------------------------------------------------------------- */

/* The bytes are refused when opened or when read. */
static io_status judge(const file_bytes *file, size_t size, const content *c, io_error *error)
{
    packed_file *f;
    io_status s = packed_open_memory(file->bytes, size, &f, error);
    if (s == IO_OK) s = read_content(f, c, c->bytes + 1, 1, error);
    packed_close(f);
    return s;
}

static void every_bit_of_the_front(void **state)
{
    (void)state;
    write_one("bits", &small);
    file_bytes file = bytes_of_file(in_folder("bits"));
    assert_int_equal(judge(&file, file.size, &small, NULL), IO_OK);
    for (size_t bit = 0; bit < PACKED_ALIGN * 8; bit++) {
        io_error error;
        file.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        assert_int_equal(judge(&file, file.size, &small, &error), IO_E_FORMAT);
        assert_non_null(strstr(error.text, " at byte "));
        file.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    free(file.bytes);
}

static void random_bits_of_the_payload(void **state)
{
    (void)state;
    enum { FLIPS = 10000 };
    write_one("flips", &larger);
    file_bytes file = bytes_of_file(in_folder("flips"));
    for (uint64_t n = 0; n < FLIPS; n++) {
        io_error error;
        size_t bit = PACKED_ALIGN * 8 + layer_random(1, 2, n) % (larger.bytes * 8);
        packed_file *f;
        file.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        assert_int_equal(packed_open_memory(file.bytes, file.size, &f, &error), IO_OK);
        size_t chunk = (bit / 8 - PACKED_ALIGN) / PACKED_CHUNK;
        packed_stream s = {.file = f, .at = chunk * PACKED_CHUNK, .threads = 1};
        unsigned char byte; /* any byte of the chunk */
        assert_false(packed_read(&s, &byte, 1));
        assert_int_equal(s.error.status, IO_E_FORMAT);
        char text[64];
        snprintf(text, sizeof text, "checksum at byte %zu", PACKED_ALIGN + chunk * PACKED_CHUNK);
        assert_non_null(strstr(s.error.text, text));
        packed_stream_end(&s);
        packed_close(f);
        file.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    free(file.bytes);
}

/* With several threads the message is still of a chunk that is damaged. */
static void damage_that_a_helper_finds(void **state)
{
    (void)state;
    content c = {9 * PACKED_CHUNK, 1 << 20, 1, "", 0, false, NULL};
    write_one("helper", &c);
    file_bytes file = bytes_of_file(in_folder("helper"));
    for (size_t chunk = 0; chunk < 9; chunk++) {
        packed_file *f;
        io_error error;
        char text[64];
        file.bytes[PACKED_ALIGN + chunk * PACKED_CHUNK + 77] ^= 1;
        assert_int_equal(packed_open_memory(file.bytes, file.size, &f, NULL), IO_OK);
        assert_int_equal(read_content(f, &c, c.bytes, 3, &error), IO_E_FORMAT);
        snprintf(text, sizeof text, "at byte %zu", PACKED_ALIGN + chunk * PACKED_CHUNK);
        assert_non_null(strstr(error.text, text));
        packed_close(f);
        file.bytes[PACKED_ALIGN + chunk * PACKED_CHUNK + 77] ^= 1;
    }
    free(file.bytes);
}

static void every_interesting_length(void **state)
{
    (void)state;
    write_one("lengths", &small);
    file_bytes file = bytes_of_file(in_folder("lengths"));
    for (size_t size = 0; size < file.size; size += size < PACKED_ALIGN + 100 ? 1 : 97) {
        unsigned char *exact = __real_malloc(size + (size == 0));
        memcpy(exact, file.bytes, size);
        file_bytes cut = {exact, size};
        assert_int_equal(judge(&cut, size, &small, NULL), IO_E_FORMAT);
        free(exact);
    }
    assert_int_equal(judge(&file, file.size - 1, &small, NULL), IO_E_FORMAT);
    assert_int_equal(judge(&file, file.size + 1, &small, NULL), IO_E_FORMAT); /* its NUL */
    free(file.bytes);
}

/* A file that shrinks after it was opened. */
static void a_file_that_shrinks(void **state)
{
    (void)state;
    packed_file *f;
    io_error error;
    write_one("shrinks", &larger);
    assert_int_equal(packed_open(in_folder("shrinks"), &f, NULL), IO_OK);
    assert_int_equal(truncate(in_folder("shrinks"), PACKED_ALIGN + 1000), 0);
    assert_int_equal(read_content(f, &larger, 5000, 2, &error), IO_E_READ);
    assert_non_null(strstr(error.text, "the file ends at byte 5096"));
    packed_close(f);
}

/* ---- heads that are made up ------------------------------------------------------------------- */

enum {
    AT_ORDER = 8,
    AT_VERSION = 12,
    AT_LAYOUT = 16,
    AT_CANON = 20,
    AT_KIND_HASH = 24,
    AT_FILE = 32,
    AT_ABOUT = 40,
    AT_PAYLOAD_AT = 48,
    AT_PAYLOAD = 56,
    AT_CHUNK = 64,
    AT_ABOUT_HASH = 72,
    AT_SPARE = 80,
    AT_HEAD_HASH = 88
};

static void put_number(file_bytes *file, size_t at, uint64_t value, size_t bytes)
{
    memcpy(file->bytes + at, &value, bytes);
}

/* All checksums of the front as they must be. */
static void seal(file_bytes *file)
{
    put_number(file, AT_KIND_HASH, io_hash(file->bytes, AT_KIND_HASH), 8);
    put_number(file, AT_ABOUT_HASH, io_hash(file->bytes + PACKED_HEAD, PACKED_ALIGN - PACKED_HEAD),
               8);
    put_number(file, AT_HEAD_HASH, io_hash(file->bytes, AT_HEAD_HASH), 8);
}

static void made_up_sizes(void **state)
{
    (void)state;
    const size_t fields[] = {AT_FILE, AT_ABOUT, AT_PAYLOAD_AT, AT_PAYLOAD, AT_CHUNK, AT_SPARE};
    const uint64_t values[] = {0,
                               1,
                               4095,
                               4096,
                               4097,
                               1 << 20,
                               UINT64_MAX,
                               UINT64_MAX - 7,
                               UINT64_MAX - 4095,
                               INT64_MAX,
                               (uint64_t)1 << 63,
                               (uint64_t)1 << 62,
                               (uint64_t)1 << 42,
                               (uint64_t)1 << 28,
                               ((uint64_t)1 << 42) + 1,
                               ((uint64_t)1 << 28) + 1};
    write_one("made_up", &small);
    file_bytes file = bytes_of_file(in_folder("made_up"));
    unsigned char was[PACKED_HEAD];
    memcpy(was, file.bytes, sizeof was);
    seal(&file);
    assert_memory_equal(was, file.bytes, sizeof was);
    for (size_t i = 0; i < COUNT(fields); i++)
        for (size_t v = 0; v < COUNT(values); v++) {
            io_error error;
            if (fields[i] == AT_ABOUT && values[v] == 1) continue; /* a sound file that says less */
            put_number(&file, fields[i], values[v], 8);
            if (memcmp(was, file.bytes, sizeof was) != 0) {
                seal(&file);
                plan.largest = 0;
                packed_file *f;
                io_status opened = packed_open_memory(file.bytes, file.size, &f, &error);
                if (opened == IO_OK) { /* less is said, and the checksums are elsewhere */
                    packed_stream s = {.file = f, .threads = 1};
                    assert_false(packed_read(&s, was, 1));
                    opened = s.error.status;
                    packed_stream_end(&s);
                }
                assert_int_equal(opened, IO_E_FORMAT);
                assert_true(plan.largest < 2 * PACKED_CHUNK);
                packed_close(f);
            }
            memcpy(file.bytes, was, sizeof was);
        }
    free(file.bytes);
}

/* A payload so large that where it ends wraps around to the size that the file has. */
static void a_size_that_wraps_around(void **state)
{
    (void)state;
    write_one("wraps", &small);
    file_bytes file = bytes_of_file(in_folder("wraps"));
    uint64_t payload = UINT64_MAX, payload_at = 0;
    for (int i = 0; i < 64; i++) { /* until the two agree */
        uint64_t chunks = payload / PACKED_CHUNK + (payload % PACKED_CHUNK != 0);
        payload_at =
            (PACKED_HEAD + 8 + 8 * chunks + PACKED_ALIGN - 1) / PACKED_ALIGN * PACKED_ALIGN;
        payload = file.size - payload_at;
    }
    put_number(&file, AT_PAYLOAD_AT, payload_at, 8);
    put_number(&file, AT_PAYLOAD, payload, 8);
    put_number(&file, AT_FILE, file.size, 8);
    seal(&file);
    plan.largest = 0;
    assert_int_equal(judge(&file, file.size, &small, NULL), IO_E_FORMAT);
    assert_true(plan.largest < 2 * PACKED_CHUNK);
    free(file.bytes);
}

static void of_another_version(void **state)
{
    (void)state;
    write_one("versions", &small);
    file_bytes file = bytes_of_file(in_folder("versions"));
    for (size_t at = AT_VERSION; at <= AT_CANON; at += 4) {
        io_error error;
        file.bytes[at]++;
        assert_int_equal(judge(&file, file.size, &small, &error), IO_E_FORMAT);
        seal(&file);
        memset(file.bytes + AT_FILE, 0xEE, 64); /* whatever that version has there */
        assert_int_equal(judge(&file, file.size, &small, &error), IO_E_STALE);
        assert_non_null(strstr(error.text, "this library reads"));
        free(file.bytes);
        file = bytes_of_file(in_folder("versions"));
    }
    const unsigned char swapped[] = {1, 2, 3, 4};
    memcpy(file.bytes + AT_ORDER, swapped, 4);
    assert_int_equal(judge(&file, file.size, &small, NULL), IO_E_STALE);
    file.bytes[AT_ORDER] = 9;
    seal(&file);
    assert_int_equal(judge(&file, file.size, &small, NULL), IO_E_FORMAT);
    free(file.bytes);
}

/* ---- what is no file -------------------------------------------------------------------------- */

static void what_is_no_regular_file(void **state)
{
    (void)state;
    packed_file *f;
    io_error error;
    char link[512], pipe[512], below[512];
    write_one("file", &small);
    snprintf(link, sizeof link, "%s/link", folder);
    snprintf(pipe, sizeof pipe, "%s/pipe", folder);
    snprintf(below, sizeof below, "%s/below", folder);
    assert_int_equal(symlink(in_folder("file"), link), 0);
    assert_int_equal(mkfifo(pipe, 0600), 0);
    assert_int_equal(mkdir(below, 0700), 0);
    const char *paths[] = {link, pipe, below, "/dev/null", "/nowhere/at/all"};
    for (size_t i = 0; i < COUNT(paths); i++) {
        f = (packed_file *)(uintptr_t)64;
        assert_int_equal(packed_open(paths[i], &f, &error), IO_E_OPEN);
        assert_null(f);
        assert_int_equal(error.status, IO_E_OPEN);
        assert_int_equal(write_content(paths[i], &larger, &error), IO_E_WRITE);
    }
    /* the link's target is as it was */
    assert_int_equal(read_path(in_folder("file"), &small, 5000, 1, NULL), IO_OK);
    assert_int_equal(descriptors, 0);
    unlink(link);
    unlink(pipe);
    rmdir(below);
}

/* Large files of nothing: seen before memory is taken for them. */
static void sparse_files(void **state)
{
    (void)state;
    packed_file *f;
    const char *path = in_folder("sparse");
    int fd = __real_open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)1 << 40), 0);
    plan.largest = 0;
    assert_int_equal(packed_open(path, &f, NULL), IO_E_FORMAT);
    assert_true(plan.largest < PACKED_CHUNK);
    __real_close(fd);
    write_one("sparse", &small);
    assert_int_equal(truncate(path, (off_t)1 << 40), 0);
    assert_int_equal(packed_open(path, &f, NULL), IO_E_FORMAT);
    assert_true(plan.largest < 2 * PACKED_CHUNK);
    unlink(path);
}

/* ---- what fails ------------------------------------------------------------------------------- */

static void every_call_of_the_reader_fails(void **state)
{
    (void)state;
    static const int causes[] = {EIO, ENOMEM, EACCES, 0};
    write_one("reader", &larger);
    for (size_t i = 0; i < COUNT(causes); i++) {
        io_status s = IO_E_READ;
        int site = 0;
        for (;; site++) {
            io_error error = {0};
            plan_fault(FAILS, site, causes[i]);
            s = read_path(in_folder("reader"), &larger, 700000, 2, &error);
            if (!fault_came()) break;
            if (s == IO_OK) continue; /* close */
            assert_int_equal(error.status, s);
            assert_true(s == IO_E_READ || s == IO_E_NOMEM || s == IO_E_OPEN);
            assert_int_equal(descriptors, 0);
        }
        assert_int_equal(s, IO_OK);
        assert_in_range(site, 8, 40);
    }
    for (int site = 0; site < 20; site++) { /* a signal, of which a reader takes no notice */
        plan_fault(FAILS, site, EINTR);
        io_status s = read_path(in_folder("reader"), &larger, 700000, 1, NULL);
        fault_came();
        assert_true(s == IO_OK || s == IO_E_NOMEM || s == IO_E_OPEN);
    }
    plan_fault(SHORT, 0, 0);
    assert_int_equal(read_path(in_folder("reader"), &larger, 700000, 2, NULL), IO_OK);
    fault_came();
}

/* Whichever call fails, what was there before is there after, and nothing beside it. */
static void every_call_of_the_writer_fails(void **state)
{
    (void)state;
    static const int causes[] = {ENOSPC, EIO, ENOMEM, 0};
    for (size_t i = 0; i < COUNT(causes); i++)
        for (int taken = 0; taken < 2; taken++) {
            io_status s = IO_E_WRITE;
            int site = 0;
            unlink(in_folder("writer"));
            if (taken) write_one("writer", &small);
            size_t before = entries();
            for (;; site++) {
                io_error error = {0};
                plan_fault(FAILS, site, causes[i]);
                s = write_content(in_folder("writer"), &larger, &error);
                if (!fault_came()) break;
                if (s == IO_OK) break; /* lstat of what is not there, say */
                assert_int_equal(error.status, s);
                assert_true(s == IO_E_WRITE || s == IO_E_NOMEM);
                assert_int_equal(descriptors, 0);
                assert_int_equal(entries(), before);
                if (taken)
                    assert_int_equal(read_path(in_folder("writer"), &small, 5000, 1, NULL), IO_OK);
            }
            for (; fault_came(); site++) plan_fault(FAILS, site, 0);
            plan_fault(NO_FAULT, 0, 0);
            assert_int_equal(write_content(in_folder("writer"), &larger, NULL), IO_OK);
            assert_int_equal(read_path(in_folder("writer"), &larger, 5000, 1, NULL), IO_OK);
        }
    plan_fault(SHORT, 0, 0);
    assert_int_equal(write_content(in_folder("writer"), &small, NULL), IO_OK);
    fault_came();
    assert_int_equal(read_path(in_folder("writer"), &small, 5000, 1, NULL), IO_OK);
}

/* A writer that dies before or after any of its calls: the old file, or the new one, whole.  What
 * it leaves besides has a name of its own. */
static void every_call_kills_the_writer(void **state)
{
    (void)state;
    for (fault when = DIES_BEFORE; when <= DIES_AFTER; when++) {
        bool came = true, old = true, new = false;
        int site = 0;
        for (; came; site++) {
            write_one("killed", &small);
            fflush(NULL);
            pid_t child = fork();
            assert_true(child >= 0);
            if (child == 0) {
                plan_fault(when, site, EIO);
                _exit(write_content(in_folder("killed"), &larger, NULL) == IO_OK ? 0 : 1);
            }
            int status;
            assert_int_equal(waitpid(child, &status, 0), child);
            assert_true(WIFEXITED(status));
            came = WEXITSTATUS(status) == DEAD;
            if (!came) assert_int_equal(WEXITSTATUS(status), 0);
            packed_file *f;
            assert_int_equal(packed_open(in_folder("killed"), &f, NULL), IO_OK);
            bool is_new = packed_bytes(f) == larger.bytes;
            assert_int_equal(read_content(f, is_new ? &larger : &small, 5000, 1, NULL), IO_OK);
            packed_close(f);
            assert_false(new && !is_new);
            new |= is_new;
            old &= !is_new;
        }
        assert_true(new && !old);
        assert_in_range(site, 8, 60);
    }
    char command[600];
    snprintf(command, sizeof command, "rm -f %s/.moe-*.tmp", folder);
    assert_int_equal(system(command), 0);
}

static void a_source_that_fails(void **state)
{
    (void)state;
    size_t before = entries();
    for (int first = 0; first < 2; first++) {
        int rounds = 0;
        moe_status status = MOE_OK;
        io_error error = {0};
        content c = {5000, 700, 3, "fails", MOE_E_ABI, first == 1, &rounds};
        io_status s =
            packed_write(in_folder("source"), c.text, strlen(c.text), emit, &c, &status, &error);
        assert_int_not_equal(s, IO_OK);
        assert_int_equal(status, MOE_E_ABI);
        assert_int_equal(entries(), before);
    }
}

/* ---- several at once -------------------------------------------------------------------------- */

typedef struct writer {
    const content *content;
    const char *path;
    atomic_bool *stop;
} writer;

static void *write_on(void *arg)
{
    writer *w = arg;
    while (!atomic_load(w->stop)) assert_int_equal(write_content(w->path, w->content, NULL), IO_OK);
    return NULL;
}

static void writers_at_once(void **state)
{
    (void)state;
    enum { OPENED = 60 };
    char path[512];
    atomic_bool stop = false;
    pthread_t thread[2];
    write_one("shared", &small);
    snprintf(path, sizeof path, "%s/shared", folder);
    size_t before = entries();
    writer writers[] = {{&small, path, &stop}, {&larger, path, &stop}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, write_on, &writers[i]), 0);
    for (int n = 0; n < OPENED; n++) {
        packed_file *f;
        assert_int_equal(packed_open(path, &f, NULL), IO_OK);
        const content *c = packed_bytes(f) == small.bytes ? &small : &larger;
        assert_int_equal(read_content(f, c, 500000, 2, NULL), IO_OK);
        packed_close(f);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    assert_int_equal(entries(), before);
}

/* ---- the checksum ----------------------------------------------------------------------------- */

/* The definition's own numbers, and every processor's are the same. */
static void the_checksum(void **state)
{
    (void)state;
    assert_true(io_hash("", 0) == 0x2D06800538D394C2u);
    unsigned char bytes[5000];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)layer_random(3, 4, i);
    for (size_t n = 0; n < sizeof bytes - 7; n += n < 600 ? 1 : 37)
        for (size_t shift = 0; shift < 8; shift += 3)
            assert_true(io_hash(bytes + shift, n) == io_hash_any(bytes + shift, n));
}

static int make_folder(void **state)
{
    (void)state;
    first_thread = pthread_self();
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[600];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(files_are_reproducible),
        cmocka_unit_test(more_than_there_is),
        cmocka_unit_test(progress_is_told),
        cmocka_unit_test(every_bit_of_the_front),
        cmocka_unit_test(random_bits_of_the_payload),
        cmocka_unit_test(damage_that_a_helper_finds),
        cmocka_unit_test(every_interesting_length),
        cmocka_unit_test(a_file_that_shrinks),
        cmocka_unit_test(made_up_sizes),
        cmocka_unit_test(a_size_that_wraps_around),
        cmocka_unit_test(of_another_version),
        cmocka_unit_test(what_is_no_regular_file),
        cmocka_unit_test(sparse_files),
        cmocka_unit_test(every_call_of_the_reader_fails),
        cmocka_unit_test(every_call_of_the_writer_fails),
        cmocka_unit_test(every_call_kills_the_writer),
        cmocka_unit_test(a_source_that_fails),
        cmocka_unit_test(writers_at_once),
        cmocka_unit_test(the_checksum),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
