/* SPDX-License-Identifier: Apache-2.0 */
/* test_cache.c - packed layers through moe_tkg_io.h: saved, listed, loaded, refused, held against
 * the checkpoint that they are of.  What damage does to a file is in test_packed_file.c, what it does
 * to an image in test_image.c.
 *
 * Linked with -Wl,--wrap for each of the functions in WRAPPED below. */
#define _DEFAULT_SOURCE /* flock */
#define _XOPEN_SOURCE   700
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "image.h"
#include "io/cache.h"
#include "io/cache_record.h"
#include "io/hash.h"
#include "io/safetensors.h"
#include "loaded_layer.h"
#include "safetensors_bytes.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* ---- faults ---------------------------------------------------------------------------------- */

/* WRAPPED: malloc calloc realloc aligned_alloc open openat close pread __pread_chk write fsync rename
 * mkdir opendir */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
int __real_open(const char *path, int flags, mode_t mode);
int __real_openat(int folder, const char *path, int flags, mode_t mode);
int __real_close(int fd);
ssize_t __real_pread(int fd, void *dst, size_t n, off_t offset);
ssize_t __real_write(int fd, const void *src, size_t n);
int __real_fsync(int fd);
int __real_rename(const char *from, const char *to);
int __real_mkdir(const char *path, mode_t mode);
DIR *__real_opendir(const char *path);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
int __wrap_open(const char *path, int flags, mode_t mode);
int __wrap_openat(int folder, const char *path, int flags, mode_t mode);
int __wrap_close(int fd);
ssize_t __wrap_pread(int fd, void *dst, size_t n, off_t offset);
ssize_t __wrap___pread_chk(int fd, void *dst, size_t n, off_t offset, size_t room);
ssize_t __wrap_write(int fd, const void *src, size_t n);
int __wrap_fsync(int fd);
int __wrap_rename(const char *from, const char *to);
int __wrap_mkdir(const char *path, mode_t mode);
DIR *__wrap_opendir(const char *path);

static struct {
    bool planned;
    _Atomic int at; /* the call that fails; 0 is the first */
    _Atomic bool came;
    int cause;
} plan;

static _Atomic int descriptors;
static _Atomic size_t largest; /* that calloc was asked for */
static _Atomic int flushed_folders;

static bool strikes(void)
{
    if (!plan.planned || atomic_fetch_sub(&plan.at, 1) != 0) return false;
    plan.came = true;
    errno = plan.cause;
    return true;
}

static void plan_fault(int at, int cause)
{
    plan.at = at;
    plan.cause = cause;
    plan.came = false;
    plan.planned = true;
}

static bool fault_came(void)
{
    plan.planned = false;
    return plan.came;
}

void *__wrap_malloc(size_t n)
{
    return strikes() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    if (n * size > largest) largest = n * size;
    return strikes() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return strikes() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    return strikes() ? NULL : __real_aligned_alloc(alignment, n);
}

int __wrap_open(const char *path, int flags, mode_t mode)
{
    int fd = strikes() ? -1 : __real_open(path, flags, mode);
    descriptors += fd >= 0;
    return fd;
}

int __wrap_openat(int at, const char *path, int flags, mode_t mode)
{
    int fd = strikes() ? -1 : __real_openat(at, path, flags, mode);
    descriptors += fd >= 0;
    return fd;
}

int __wrap_close(int fd)
{
    descriptors--;
    return strikes() ? (__real_close(fd), -1) : __real_close(fd);
}

ssize_t __wrap_pread(int fd, void *dst, size_t n, off_t offset)
{
    return strikes() ? -1 : __real_pread(fd, dst, n, offset);
}

ssize_t __wrap___pread_chk(int fd, void *dst, size_t n, off_t offset, size_t room)
{
    assert_true(n <= room);
    return __wrap_pread(fd, dst, n, offset);
}

ssize_t __wrap_write(int fd, const void *src, size_t n)
{
    return strikes() ? -1 : __real_write(fd, src, n);
}

int __wrap_fsync(int fd)
{
    struct stat about;
    flushed_folders += fstat(fd, &about) == 0 && S_ISDIR(about.st_mode);
    return strikes() ? -1 : __real_fsync(fd);
}

int __wrap_rename(const char *from, const char *to)
{
    return strikes() ? -1 : __real_rename(from, to);
}

int __wrap_mkdir(const char *path, mode_t mode)
{
    return strikes() ? -1 : __real_mkdir(path, mode);
}

DIR *__wrap_opendir(const char *path)
{
    return strikes() ? NULL : __real_opendir(path);
}

/* ---- places ---------------------------------------------------------------------------------- */

static char folder[] = "/tmp/moe_cache_XXXXXX";

/* The path stays until the program ends. */
static const char *in_folder(const char *name)
{
    static char path[64][512];
    static int used;
    char one[512];
    snprintf(one, sizeof one, "%s/%s", folder, name);
    for (int i = 0; i < used; i++)
        if (strcmp(path[i], one) == 0) return path[i];
    assert_true(used < 64);
    return memcpy(path[used++], one, sizeof one);
}

static void run(const char *format, const char *path)
{
    char command[700];
    snprintf(command, sizeof command, format, path);
    assert_int_equal(system(command), 0);
}

#define MUST(call)                                                                                 \
    do {                                                                                           \
        moe_status must_ = (call);                                                                 \
        if (must_ != MOE_OK) fail_msg("%s: %s", moe_status_name(must_), moe_io_last_error());      \
    } while (0)

static void save(unsigned kind, int64_t number, const char *directory)
{
    moe_layer *l = loaded_layer_make(kind, number);
    MUST(moe_layer_save(l, directory));
    moe_layer_free(l);
}

static moe_model *open_at(const char *path)
{
    moe_model *m;
    MUST(moe_model_open(path, NULL, &m));
    return m;
}

static void expect_text(const char *text)
{
    if (strstr(moe_io_last_error(), text) == NULL)
        fail_msg("\"%s\" without \"%s\"", moe_io_last_error(), text);
}

static void refuses_to_open(const char *path, moe_status want, const char *text)
{
    moe_model *m = (moe_model *)(uintptr_t)64;
    moe_status s = moe_model_open(path, NULL, &m);
    if (s != want) fail_msg("%d, not %d: %s", (int)s, (int)want, moe_io_last_error());
    assert_null(m);
    expect_text(text);
}

/* ---- what is saved is loaded ------------------------------------------------------------------ */

static void expect_same_info(const moe_layer_info *a, const moe_layer_info *b)
{
    moe_layer_info x = *a, y = *b;
    assert_int_equal(x.foreign_router == NULL, y.foreign_router == NULL);
    if (x.foreign_router != NULL) assert_string_equal(x.foreign_router, y.foreign_router);
    x.foreign_router = y.foreign_router = NULL;
    x.struct_size = y.struct_size = 0;
    assert_memory_equal(&x, &y, sizeof x);
}

static void expect_same_array(const moe_array *a, const moe_array *b, size_t values)
{
    assert_int_equal(a->dtype, b->dtype);
    if (a->dtype == MOE_DTYPE_NONE) {
        assert_null(b->data);
        return;
    }
    assert_memory_equal(a->data, b->data, values * moe_dtype_size(a->dtype));
    assert_int_equal(a->row_stride, b->row_stride);
    assert_int_equal(a->column_stride, b->column_stride);
}

static void expect_same_experts(const moe_experts *a, const moe_experts *b)
{
    assert_int_equal(a == NULL, b == NULL);
    if (a == NULL) return;
    image x = image_of(a), y = image_of(b);
    assert_int_equal(x.bytes, y.bytes);
    assert_memory_equal(x.data, y.data, x.bytes);
    free(x.data);
    free(y.data);
    size_t bytes;
    float *p = image_run(NULL, a, MOE_SILU, MOE_ACT_EXACT, 7, &bytes),
          *q = image_run(NULL, b, MOE_SILU, MOE_ACT_EXACT, 7, &bytes);
    assert_memory_equal(p, q, bytes);
    free(p);
    free(q);
}

static void expect_same_layer(const moe_layer *a, const moe_layer *b)
{
    size_t E = (size_t)a->info.E, H = (size_t)a->info.H;
    expect_same_info(&a->info, &b->info);
    expect_same_array(&a->router, &b->router, E * H);
    expect_same_array(&a->router_bias, &b->router_bias, E);
    expect_same_array(&a->selection_bias, &b->selection_bias, E);
    expect_same_array(&a->shared_gate, &b->shared_gate, H);
    expect_same_experts(a->experts, b->experts);
    expect_same_experts(a->shared, b->shared);
    assert_string_equal(a->family, b->family);
    assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->origin.count, b->origin.count);
    assert_null(origin_differs(&a->origin, &b->origin));
    moe_block_args x, y;
    MUST(moe_layer_args(a, &x));
    MUST(moe_layer_args(b, &y));
    assert_int_equal(x.experts.activation_fn, y.experts.activation_fn);
    assert_int_equal(x.router.E, y.router.E);
    assert_ptr_equal(y.shared, b->shared);
}

static int count_calls(void *user, uint64_t done, uint64_t all)
{
    assert_true(done <= all && done > 0);
    ++*(int *)user;
    return 0;
}

static void the_same_layer_comes_back(void **state)
{
    (void)state;
    const char *at = in_folder("same"), *again = in_folder("again");
    for (unsigned kind = 0; kind < LOADED_LAYER_KINDS; kind++)
        for (int threads = 1; threads <= 3; threads++) {
            moe_layer *was = loaded_layer_make(kind, 3), *is;
            moe_context *context;
            moe_context_options options = moe_context_options_init();
            options.threads = threads;
            assert_int_equal(moe_context_create(&options, &context), MOE_OK);
            MUST(moe_layer_save(was, at));
            moe_model *m = open_at(at);
            int calls = 0;
            moe_load_options load = moe_load_options_init();
            load.progress = count_calls;
            load.user = &calls;
            MUST(moe_model_load(m, 3, context, &load, &is));
            assert_true(calls > 0);
            load.packing = MOE_PACK_LOSSLESS; /* is what was packed so, or refused */
            moe_layer *lossless;
            moe_status s = moe_model_load(m, 3, context, &load, &lossless);
            moe_experts_info info = {.struct_size = sizeof info};
            MUST(moe_experts_describe(is->experts, &info));
            assert_int_equal(s, info.packing == MOE_PACK_LOSSLESS ? MOE_OK : MOE_E_UNSUPPORTED);
            if (s != MOE_OK) expect_text("packing = LOSSLESS: the layer was packed plain");
            MUST(moe_layer_free(lossless));
            moe_model_close(m);
            expect_same_layer(was, is);
            MUST(moe_layer_save(is, again));
            file_bytes x = bytes_of_file(in_folder("same/layer-00003.moe")),
                       y = bytes_of_file(in_folder("again/layer-00003.moe"));
            assert_int_equal(x.size, y.size);
            assert_memory_equal(x.bytes, y.bytes, x.size);
            free(x.bytes);
            free(y.bytes);
            MUST(moe_layer_free(was));
            MUST(moe_layer_free(is));
            moe_context_destroy(context);
        }
    assert_int_equal(descriptors, 0);
}

static void layers_are_listed(void **state)
{
    (void)state;
    const char *at = in_folder("list");
    const int64_t numbers[] = {7, 0, 11, 2};
    const unsigned kinds[] = {2, 2, 0, 1};
    for (size_t i = 0; i < COUNT(numbers); i++) save(kinds[i], numbers[i], at);
    run("touch %s/.moe-1-0.tmp", at);
    run("touch %s/notes.txt", at);
    moe_model *m = open_at(at);
    moe_model_info info = {.struct_size = sizeof info};
    MUST(moe_model_describe(m, &info));
    assert_string_equal(info.container, "packed");
    assert_string_equal(info.family, "a-family");
    assert_int_equal(info.layers, 12);
    assert_int_equal(info.moe_layers, COUNT(numbers));
    const int64_t sorted[] = {0, 2, 7, 11};
    for (int64_t i = 0; i < 4; i++) {
        moe_layer_info layer = {.struct_size = sizeof layer};
        moe_layer *l;
        MUST(moe_model_layer(m, i, &layer));
        assert_int_equal(layer.layer, sorted[i]);
        if (layer.layer % 7 == 0) assert_string_equal(layer.foreign_router, "sparsemixer");
        MUST(moe_model_load(m, sorted[i], NULL, NULL, &l));
        expect_same_info(&layer, &l->info);
        MUST(moe_layer_free(l));
    }
    moe_layer_info layer = {.struct_size = sizeof layer};
    moe_layer *l = (moe_layer *)(uintptr_t)64;
    assert_int_equal(moe_model_layer(m, 4, &layer), MOE_E_VALUE);
    assert_int_equal(moe_model_layer(m, -1, &layer), MOE_E_VALUE);
    assert_int_equal(moe_model_load(m, 3, NULL, NULL, &l), MOE_E_VALUE);
    expect_text("layer = 3");
    assert_null(l);
    moe_model_close(m);
}

/* ---- directories that are refused ------------------------------------------------------------- */

static void what_is_no_cache(void **state)
{
    (void)state;
    const char *at = in_folder("odd");
    refuses_to_open(in_folder("nowhere"), MOE_E_OPEN, "nowhere");
    run("mkdir %s", at);
    refuses_to_open(at, MOE_E_OPEN, "odd");
    run("mkdir %s/layer-1.moe", at);
    refuses_to_open(at, MOE_E_OPEN, "is no regular file");
    run("rmdir %s/layer-1.moe", at);
    run("mkfifo %s/layer-1.moe", at);
    refuses_to_open(at, MOE_E_OPEN, "is no regular file");
    run("rm %s/layer-1.moe", at);
    save(0, 1, in_folder("other"));
    run("ln -s ../other/layer-00001.moe %s/layer-1.moe", at);
    refuses_to_open(at, MOE_E_OPEN, "symbolic links");
    run("rm %s/layer-1.moe", at);
    run("touch %s/layer-1.moe", at);
    refuses_to_open(at, MOE_E_FORMAT, "cut off at byte 0");
    run("rm %s/layer-1.moe", at);
    run("truncate -s 1T %s/layer-1.moe", at);
    refuses_to_open(at, MOE_E_FORMAT, "not a packed layer at byte 0");
    run("rm %s/layer-1.moe", at);
}

static void directories_of_several_models(void **state)
{
    (void)state;
    const char *at = in_folder("mixed");
    save(0, 1, at);
    run("cp %s/layer-00001.moe /tmp/moe_cache_copy && mv /tmp/moe_cache_copy %1$s/layer-copy.moe",
        at);
    refuses_to_open(at, MOE_E_MODEL, "is layer 1, as ");
    run("rm %s/layer-copy.moe", at);
    moe_layer *l = loaded_layer_make(0, 2);
    l->layers = 13;
    MUST(moe_layer_save(l, at));
    refuses_to_open(at, MOE_E_MODEL, "of another model (a-family, 13 layers)");
    l->layers = 12;
    snprintf(l->family, sizeof l->family, "another");
    MUST(moe_layer_save(l, at));
    refuses_to_open(at, MOE_E_MODEL, "of another model (another, 12 layers)");
    MUST(moe_layer_free(l));
    run("rm %s/layer-00002.moe", at);
    moe_model_close(open_at(at));
    file_bytes empty = safetensors_bytes("{}", 2, 0);
    write_bytes(in_folder("mixed/model.safetensors"), empty);
    free(empty.bytes);
    refuses_to_open(at, MOE_E_MODEL, "packed layers and a checkpoint");
}

/* Layers beside a checkpoint would make it one that cannot be opened. */
static void directory_of_a_checkpoint(void **state)
{
    (void)state;
    const char *at = in_folder("checkpoint");
    run("mkdir -p %s", at);
    file_bytes empty = safetensors_bytes("{}", 2, 0);
    write_bytes(in_folder("checkpoint/model.safetensors"), empty);
    free(empty.bytes);
    moe_layer *l = loaded_layer_make(0, 1);
    assert_int_equal(moe_layer_save(l, in_folder("checkpoint")), MOE_E_MODEL);
    expect_text("packed layers and a checkpoint");
    run("test $(ls %s) = model.safetensors", in_folder("checkpoint"));
    MUST(moe_layer_free(l));
}

static void places_that_cannot_be_written(void **state)
{
    (void)state;
    moe_layer *l = loaded_layer_make(2, 4);
    run("touch %s", in_folder("a_file"));
    assert_int_equal(moe_layer_save(l, in_folder("a_file")), MOE_E_WRITE);
    assert_int_equal(moe_layer_save(l, in_folder("not/there")), MOE_E_WRITE);
    expect_text("cannot be made");
    run("mkdir -p %s/layer-00004.moe", in_folder("taken"));
    assert_int_equal(moe_layer_save(l, in_folder("taken")), MOE_E_WRITE);
    expect_text("no regular file");
    run("rmdir %s/layer-00004.moe", in_folder("taken"));
    run("ln -s nowhere %s/layer-00004.moe", in_folder("taken"));
    assert_int_equal(moe_layer_save(l, in_folder("taken")), MOE_E_WRITE);
    assert_int_equal(moe_layer_save(NULL, folder), MOE_E_NULL_ARG);
    assert_int_equal(moe_layer_save(l, NULL), MOE_E_NULL_ARG);
    MUST(moe_layer_free(l));
}

/* A process that was killed leaves a file: the next one to write there removes it, and nothing else. */
static void what_was_left_behind(void **state)
{
    (void)state;
    const char *at = in_folder("left");
    char name[64], wanted[512], command[700];
    run("mkdir -p %s", at);
    pid_t dead = fork();
    if (dead == 0) _exit(0);
    assert_int_equal(waitpid(dead, NULL, 0), dead);
    snprintf(command, sizeof command,
             "cd %%s && touch .moe-%1$d-0.tmp .moe-%1$d-12.tmp .moe-%1$d-7.tmp .moe-%1$d-00.tmp "
             ".moe-%1$d-0.tmpx x.moe-%1$d-0.tmp .moe-%2$d-999.tmp .moe-1-0.tmp .moe-0-0.tmp "
             ".moe--%1$d-0.tmp && mkdir .moe-%1$d-1.tmp && ln -s nowhere .moe-%1$d-2.tmp",
             (int)dead, (int)getpid());
    run(command, at);
    snprintf(name, sizeof name, "left/.moe-%d-7.tmp", (int)dead); /* somebody still has it */
    int held = open(in_folder(name), O_RDONLY | O_CLOEXEC);
    assert_int_equal(flock(held, LOCK_EX), 0);
    flushed_folders = 0;
    save(0, 1, at);
    assert_int_equal(flushed_folders, 1);
    close(held);
    snprintf(
        wanted, sizeof wanted,
        "cd %%s && for f in 7.tmp 00.tmp 0.tmpx 1.tmp; do test -e .moe-%1$d-$f || exit 1; done; "
        "test -h .moe-%1$d-2.tmp && test -e .moe-%2$d-999.tmp && test -e .moe-1-0.tmp && "
        "test -e .moe-0-0.tmp && test -e .moe--%1$d-0.tmp && test -e x.moe-%1$d-0.tmp && "
        "test ! -e .moe-%1$d-0.tmp && test ! -e .moe-%1$d-12.tmp && "
        "test $(ls -A | wc -l) = 11",
        (int)dead, (int)getpid());
    run(wanted, at);
    save(0, 1, at);
    assert_int_equal(access(in_folder(name), F_OK), -1);
}

/* ---- files that are refused ------------------------------------------------------------------- */

enum { AT_ABOUT = 40, AT_PAYLOAD = 48 }; /* test_packed_file.c has the whole head */

static uint64_t number_at(const file_bytes *f, size_t at)
{
    uint64_t v;
    memcpy(&v, f->bytes + at, sizeof v);
    return v;
}

/* Every checksum as it must be. */
static void seal(file_bytes *f)
{
    size_t payload = (size_t)number_at(f, AT_PAYLOAD);
    size_t sums = PACKED_HEAD + ((size_t)number_at(f, AT_ABOUT) + 7) / 8 * 8;
    for (size_t at = payload; at < f->size; at += PACKED_CHUNK, sums += 8) {
        size_t n = f->size - at < PACKED_CHUNK ? f->size - at : PACKED_CHUNK;
        uint64_t hash = io_hash(f->bytes + at, n);
        memcpy(f->bytes + sums, &hash, 8);
    }
    uint64_t hash = io_hash(f->bytes + PACKED_HEAD, payload - PACKED_HEAD);
    memcpy(f->bytes + 72, &hash, 8);
    hash = io_hash(f->bytes, 88);
    memcpy(f->bytes + 88, &hash, 8);
}

static moe_status read_memory(const file_bytes *f, moe_layer **layer)
{
    packed_file *p;
    moe_load_options options = moe_load_options_init();
    *layer = NULL;
    if (packed_open_memory(f->bytes, f->size, &p, NULL) != IO_OK) return MOE_E_FORMAT;
    moe_layer *l = calloc(1, sizeof *l);
    assert_non_null(l);
    moe_status s = cache_read(p, NULL, &options, l);
    packed_close(p);
    if (s == MOE_OK)
        *layer = l;
    else
        moe_layer_free(l);
    return s;
}

/* A file whose checksums are right may say anything.  It is refused, or is a layer that can be
 * described, run and saved. */
static void every_bit_of_what_is_said(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < LOADED_LAYER_KINDS - 1; kind++) {
        save(kind, 5, in_folder("said"));
        file_bytes f = bytes_of_file(in_folder("said/layer-00005.moe"));
        size_t about = (size_t)number_at(&f, AT_ABOUT), refused = 0, sound = 0;
        moe_layer *l;
        seal(&f);
        assert_int_equal(read_memory(&f, &l), MOE_OK);
        moe_layer_free(l);
        for (size_t bit = PACKED_HEAD * 8; bit < (PACKED_HEAD + about) * 8; bit++) {
            f.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
            seal(&f);
            moe_status s = read_memory(&f, &l);
            assert_true(s == MOE_OK || s == MOE_E_FORMAT);
            refused += s != MOE_OK;
            if (s == MOE_OK) {
                moe_block_args args;
                MUST(moe_layer_args(l, &args));
                size_t bytes;
                cache_images images = {1, l->shared != NULL};
                free(cache_encode(l, &images, &bytes));
                assert_int_equal(bytes, about);
                MUST(moe_layer_free(l));
                sound++;
            }
            f.bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        }
        assert_true(refused > 1000 && sound > 1000); /* numbers; weights of the router */
        free(f.bytes);
    }
}

static void every_length_of_what_is_said(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < LOADED_LAYER_KINDS; kind++) {
        moe_layer *l = loaded_layer_make(kind, 5);
        cache_images images = {77, l->shared != NULL ? 88 : 0}, got;
        size_t bytes, at;
        const char *rule;
        unsigned char *about = cache_encode(l, &images, &bytes);
        for (size_t n = 0; n <= bytes; n++) {
            unsigned char *exact = malloc(n + (n == 0));
            memcpy(exact, about, n);
            moe_layer said = {.layers = 0};
            cache_verdict v = cache_decode(exact, n, &said, &got, &rule, &at);
            assert_int_equal(v, n == bytes ? CACHE_SOUND : CACHE_UNSOUND);
            if (n < bytes) assert_non_null(strstr(rule, "cut off"));
            loaded_forget(&said);
            free(exact);
        }
        assert_memory_equal(&got, &images, sizeof got);
        about = realloc(about, bytes + 1);
        about[bytes] = 0;
        moe_layer said = {.layers = 0};
        assert_int_equal(cache_decode(about, bytes + 1, &said, &got, &rule, &at), CACHE_UNSOUND);
        loaded_forget(&said);
        free(about);
        moe_layer_free(l);
    }
}

/* A count of files takes no memory before they are seen to be there. */
static void more_files_than_there_are(void **state)
{
    (void)state;
    save(2, 5, in_folder("files"));
    file_bytes f = bytes_of_file(in_folder("files/layer-00005.moe"));
    size_t at = PACKED_HEAD;
    while (memcmp(f.bytes + at, "model-0.safetensors", 19) != 0) at++;
    assert_int_equal(number_at(&f, at - 8), 2);
    const uint64_t count = 60000;
    memcpy(f.bytes + at - 8, &count, 8);
    seal(&f);
    moe_layer *l;
    largest = 0;
    assert_int_equal(read_memory(&f, &l), MOE_E_FORMAT);
    expect_text("cut off");
    assert_true(largest < 1 << 20);
    free(f.bytes);
}

/* Sound files that do not go together: an image of other experts, of another layout, none. */
static void what_is_said_must_be_so(void **state)
{
    (void)state;
    moe_layer *l = loaded_layer_make(0, 6), *got;
    moe_experts *own = l->experts, *shared = l->shared;
    const char *at = in_folder("so");
    l->experts = shared;
    MUST(moe_layer_save(l, at));
    moe_model *m = open_at(at);
    assert_int_equal(moe_model_load(m, 6, NULL, NULL, &got), MOE_E_FORMAT);
    expect_text("experts of E = 1, H = 40, I = 32: must be 4, 40, 24");
    l->experts = own;
    l->shared = own;
    MUST(moe_layer_save(l, at));
    assert_int_equal(moe_model_load(m, 6, NULL, NULL, &got), MOE_E_FORMAT);
    expect_text("a shared expert of E = 4");
    l->shared = shared;
    MUST(moe_layer_save(l, at));
    MUST(moe_model_load(m, 6, NULL, NULL, &got));
    MUST(moe_layer_free(got));
    /* an image of another layout, in a file that says it is of this one */
    file_bytes f = bytes_of_file(in_folder("so/layer-00006.moe"));
    size_t payload = (size_t)number_at(&f, AT_PAYLOAD);
    f.bytes[payload + 12]++;
    write_bytes(in_folder("so/layer-00006.moe"), f);
    assert_int_equal(moe_model_load(m, 6, NULL, NULL, &got), MOE_E_FORMAT);
    expect_text("checksum");
    seal(&f);
    write_bytes(in_folder("so/layer-00006.moe"), f);
    assert_int_equal(moe_model_load(m, 6, NULL, NULL, &got), MOE_E_STALE);
    expect_text("this library (version");
    assert_null(got);
    /* a file that says it is of another */
    f.bytes[payload + 12]--;
    f.bytes[16]++;
    uint64_t hash = io_hash(f.bytes, 24);
    memcpy(f.bytes + 24, &hash, 8);
    seal(&f);
    write_bytes(in_folder("so/layer-00006.moe"), f);
    assert_int_equal(moe_model_load(m, 6, NULL, NULL, &got), MOE_E_STALE);
    refuses_to_open(at, MOE_E_STALE, "this library reads");
    free(f.bytes);
    l->info.layer = 8; /* under a name that was layer 6's */
    MUST(moe_layer_save(l, at));
    run("mv %s/layer-00008.moe %1$s/layer-00006.moe", at);
    assert_int_equal(moe_model_load(m, 6, NULL, NULL, &got), MOE_E_STALE);
    expect_text("is layer 8 by now, and was 6");
    run("rm %s/layer-00006.moe", at);
    assert_int_equal(moe_model_load(m, 6, NULL, NULL, &got), MOE_E_OPEN);
    moe_model_close(m);
    MUST(moe_layer_free(l));
    assert_int_equal(descriptors, 0);
}

static int stops(void *user, uint64_t done, uint64_t all)
{
    (void)user, (void)done, (void)all;
    return 1;
}

static void loading_can_be_stopped(void **state)
{
    (void)state;
    save(3, 1, in_folder("stop"));
    moe_model *m = open_at(in_folder("stop"));
    moe_layer *l;
    moe_load_options options = moe_load_options_init();
    options.progress = stops;
    assert_int_equal(moe_model_load(m, 1, NULL, &options, &l), MOE_E_READ);
    expect_text("reading was stopped");
    assert_null(l);
    moe_model_close(m);
}

/* ---- what fails ------------------------------------------------------------------------------- */

static void every_call_of_a_load_fails(void **state)
{
    (void)state;
    const char *at = in_folder("load");
    save(0, 1, at);
    save(1, 2, at);
    moe_status s = MOE_E_NOMEM;
    int site = 0;
    for (;; site++) {
        moe_model *m = NULL;
        moe_layer *l = NULL;
        plan_fault(site, EIO);
        s = moe_model_open(at, NULL, &m);
        if (s == MOE_OK) s = moe_model_load(m, 1, NULL, NULL, &l);
        bool came = fault_came();
        assert_int_equal(s == MOE_OK, l != NULL);
        moe_model_close(m);
        MUST(moe_layer_free(l));
        assert_int_equal(descriptors, 0);
        if (!came) break;
        /* opendir: no cache, and no checkpoint either; close: no harm */
        assert_true(s == MOE_E_NOMEM || s == MOE_E_READ || s == MOE_E_OPEN || s == MOE_E_MODEL ||
                    s == MOE_OK);
    }
    assert_int_equal(s, MOE_OK);
    assert_in_range(site, 30, 150);
}

static void every_call_of_a_save_fails(void **state)
{
    (void)state;
    const char *at = in_folder("save");
    moe_layer *old = loaded_layer_make(2, 1), *new = loaded_layer_make(0, 1), *l;
    int site = 0;
    for (bool came = true; came; site++) {
        run("rm -rf %s", at);
        MUST(moe_layer_save(old, at));
        plan_fault(site, ENOSPC);
        moe_status s = moe_layer_save(new, at);
        came = fault_came();
        assert_true(s == MOE_OK || s == MOE_E_WRITE || s == MOE_E_NOMEM);
        moe_model *m = open_at(at);
        MUST(moe_model_load(m, 1, NULL, NULL, &l));
        expect_same_layer(s == MOE_OK ? new : old, l);
        MUST(moe_layer_free(l));
        moe_model_close(m);
        run("test $(ls -A %s | wc -l) = 1", at);
    }
    assert_in_range(site, 10, 60);
    MUST(moe_layer_free(old));
    MUST(moe_layer_free(new));
}

/* ---- several at once -------------------------------------------------------------------------- */

typedef struct job {
    const moe_model *model;
    const moe_layer *layer;
    const char *at;
} job;

static void *load_and_save(void *arg)
{
    job *j = arg;
    for (int n = 0; n < 10; n++) {
        moe_layer *l;
        MUST(moe_model_load(j->model, 1, NULL, NULL, &l));
        expect_same_experts(l->experts, j->layer->experts);
        MUST(moe_layer_save(l, j->at));
        MUST(moe_layer_free(l));
    }
    return NULL;
}

static void loads_and_saves_at_once(void **state)
{
    (void)state;
    enum { JOBS = 3 };
    const char *at = in_folder("jobs");
    moe_layer *l = loaded_layer_make(0, 1);
    MUST(moe_layer_save(l, at));
    moe_model *m = open_at(at);
    job j = {m, l, at};
    pthread_t thread[JOBS];
    for (int i = 0; i < JOBS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, load_and_save, &j), 0);
    for (int i = 0; i < JOBS; i++) pthread_join(thread[i], NULL);
    moe_model_close(m);
    MUST(moe_layer_free(l));
}

/* ---- the checkpoint behind it ----------------------------------------------------------------- */

enum { E = 3, H = 16, I = 8, LAYERS = 2, MOST = 40 };

static const char config[] =
    "{\"model_type\":\"qwen2_moe\",\"hidden_size\":16,\"num_hidden_layers\":2,"
    "\"hidden_act\":\"silu\",\"moe_intermediate_size\":8,\"shared_expert_intermediate_size\":8,"
    "\"num_experts\":3,\"num_experts_per_tok\":%d,\"norm_topk_prob\":false}";

/* A Qwen2-MoE in one file: `extra` bytes of an unused tensor. */
static void write_model(const char *at, int chosen, int64_t extra)
{
    static const uint16_t zeros[1024];
    static char names[MOST][128];
    st_tensor t[MOST];
    const void *data[MOST];
    size_t n = 0;
    char path[600], text[1024];
    mkdir(at, 0700);
    snprintf(path, sizeof path, "%s/config.json", at);
    snprintf(text, sizeof text, config, chosen);
    write_bytes(path, (file_bytes){(unsigned char *)text, strlen(text)});
#define TENSOR(rows, columns, ...)                                                                 \
    do {                                                                                           \
        snprintf(names[n], sizeof names[n], __VA_ARGS__);                                          \
        t[n] = (st_tensor){.name = names[n],                                                       \
                           .dtype = ST_BF16,                                                       \
                           .rank = 2,                                                              \
                           .shape = {rows, columns},                                               \
                           .bytes = (size_t)((rows) * (columns)) * 2};                             \
        data[n++] = zeros;                                                                         \
    } while (0)
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int e = 0; e < E; e++) {
            TENSOR(I, H, "model.layers.%d.mlp.experts.%d.gate_proj.weight", layer, e);
            TENSOR(I, H, "model.layers.%d.mlp.experts.%d.up_proj.weight", layer, e);
            TENSOR(H, I, "model.layers.%d.mlp.experts.%d.down_proj.weight", layer, e);
        }
        TENSOR(E, H, "model.layers.%d.mlp.gate.weight", layer);
        TENSOR(I, H, "model.layers.%d.mlp.shared_expert.gate_proj.weight", layer);
        TENSOR(I, H, "model.layers.%d.mlp.shared_expert.up_proj.weight", layer);
        TENSOR(H, I, "model.layers.%d.mlp.shared_expert.down_proj.weight", layer);
        TENSOR(1, H, "model.layers.%d.mlp.shared_expert_gate.weight", layer);
    }
    TENSOR(1, extra, "unused");
#undef TENSOR
    io_error error;
    snprintf(path, sizeof path, "%s/model.safetensors", at);
    if (st_write(path, t, data, n, NULL, NULL, 0, &error) != IO_OK) fail_msg("%s", error.text);
}

static void a_cache_is_of_its_checkpoint(void **state)
{
    (void)state;
    const char *at = in_folder("model"), *file = in_folder("model/model.safetensors"),
               *packed = in_folder("packed");
    write_model(at, 2, 10);
    moe_model *m = open_at(at);
    for (int64_t i = 0; i < LAYERS; i++) {
        moe_layer *l, *again;
        MUST(moe_model_load(m, i, NULL, NULL, &l));
        assert_int_equal(l->origin.count, 1);
        MUST(moe_layer_save(l, packed));
        moe_model *c = open_at(packed);
        MUST(moe_model_load(c, i, NULL, NULL, &again));
        expect_same_layer(l, again);
        moe_model_close(c);
        MUST(moe_layer_free(again));
        MUST(moe_layer_free(l));
    }
    moe_model *c = open_at(packed);
    MUST(moe_model_matches(c, m));
    moe_model_close(m);
    m = open_at(at);
    MUST(moe_model_matches(c, m));
    assert_int_equal(moe_model_matches(m, m), MOE_E_UNSUPPORTED);
    assert_int_equal(moe_model_matches(c, c), MOE_E_UNSUPPORTED);
    assert_int_equal(moe_model_matches(NULL, m), MOE_E_NULL_ARG);
    assert_int_equal(moe_model_matches(c, NULL), MOE_E_NULL_ARG);

    /* files that change while both are open, and files that did before */
    struct stat about;
    assert_int_equal(stat(file, &about), 0);
    struct timespec times[2] = {about.st_atim, about.st_mtim};
    for (int reopened = 0; reopened < 2; reopened++) {
        times[1].tv_nsec = about.st_mtim.tv_nsec ^ 1;
        assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
        if (reopened) moe_model_close(m), m = open_at(at);
        assert_int_equal(moe_model_matches(c, m), MOE_E_STALE);
        expect_text("model.safetensors is not as it was");
        times[1] = about.st_mtim;
        assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
        if (reopened) moe_model_close(m), m = open_at(at);
        MUST(moe_model_matches(c, m));
    }
    run("mv %s %1$s.away", file);
    assert_int_equal(moe_model_matches(c, m), MOE_E_STALE);
    expect_text("is not there any more");
    run("mv %s.away %1$s", file);
    MUST(moe_model_matches(c, m));
    moe_model_close(m);

    write_model(at, 2, 12); /* of another size */
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
    m = open_at(at);
    assert_int_equal(moe_model_matches(c, m), MOE_E_STALE);
    moe_model_close(m);

    file_bytes f; /* of the same size and time, and another header */
    write_model(at, 2, 10);
    f = bytes_of_file(file);
    char *unused = strstr((char *)f.bytes + 8, "unused");
    assert_non_null(unused);
    unused[0] = 'x';
    write_bytes(file, f);
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
    m = open_at(at);
    assert_int_equal(moe_model_matches(c, m), MOE_E_STALE);
    moe_model_close(m);
    unused[0] = 'u';
    write_bytes(file, f);
    free(f.bytes);
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
    m = open_at(at);
    MUST(moe_model_matches(c, m));
    moe_model_close(m);

    write_model(at, 1, 10); /* K = 1 */
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
    m = open_at(at);
    assert_int_equal(moe_model_matches(c, m), MOE_E_STALE);
    expect_text("described otherwise");
    moe_model_close(m);
    moe_model_close(c);

    write_model(at, 2, 10);
    m = open_at(at);
    moe_layer *l;
    MUST(moe_model_load(m, 1, NULL, NULL, &l));
    l->info.layer = 5;
    l->layers = 9;
    MUST(moe_layer_save(l, in_folder("further")));
    MUST(moe_layer_free(l));
    c = open_at(in_folder("further"));
    assert_int_equal(moe_model_matches(c, m), MOE_E_STALE);
    expect_text("has none");
    moe_model_close(c);
    moe_model_close(m);
    assert_int_equal(descriptors, 0);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    (void)state;
    run("rm -rf %s", folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_layer_comes_back),
        cmocka_unit_test(layers_are_listed),
        cmocka_unit_test(what_is_no_cache),
        cmocka_unit_test(directories_of_several_models),
        cmocka_unit_test(directory_of_a_checkpoint),
        cmocka_unit_test(places_that_cannot_be_written),
        cmocka_unit_test(what_was_left_behind),
        cmocka_unit_test(every_bit_of_what_is_said),
        cmocka_unit_test(every_length_of_what_is_said),
        cmocka_unit_test(more_files_than_there_are),
        cmocka_unit_test(what_is_said_must_be_so),
        cmocka_unit_test(loading_can_be_stopped),
        cmocka_unit_test(every_call_of_a_load_fails),
        cmocka_unit_test(every_call_of_a_save_fails),
        cmocka_unit_test(loads_and_saves_at_once),
        cmocka_unit_test(a_cache_is_of_its_checkpoint),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
