/* SPDX-License-Identifier: Apache-2.0 */
/* faults.c - calls of the C library and the system that fail when they are told to. */
#define _XOPEN_SOURCE 700

#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
int __real_open(const char *path, int flags, mode_t mode);
int __real_fstat(int fd, struct stat *about);
ssize_t __real_pread(int fd, void *dst, size_t n, off_t offset);
ssize_t __real_write(int fd, const void *src, size_t n);
int __real_fsync(int fd);
int __real_close(int fd);
int __real_rename(const char *from, const char *to);
char *__real_realpath(const char *path, char *resolved);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);
int __wrap_open(const char *path, int flags, mode_t mode);
int __wrap_fstat(int fd, struct stat *about);
ssize_t __wrap_pread(int fd, void *dst, size_t n, off_t offset);
ssize_t __wrap___pread_chk(int fd, void *dst, size_t n, off_t offset, size_t room);
ssize_t __wrap_write(int fd, const void *src, size_t n);
int __wrap_fsync(int fd);
int __wrap_close(int fd);
int __wrap_rename(const char *from, const char *to);
char *__wrap_realpath(const char *path, char *resolved);

fault_plan plan;
int descriptors;
size_t live, peak;

static bool strikes(call what)
{
    if (plan.what != what || plan.successes-- > 0) return false;
    plan.what = NONE;
    if (plan.cause) errno = plan.cause;
    return true;
}

static void *count(void *p)
{
    live += malloc_usable_size(p);
    if (live > peak) peak = live;
    return p;
}

void *__wrap_malloc(size_t n)
{
    return strikes(ALLOC) ? NULL : count(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return strikes(ALLOC) ? NULL : count(__real_calloc(n, size));
}

/* Counted as if the block moved: old and new one live at the same time. */
void *__wrap_realloc(void *p, size_t n)
{
    if (strikes(ALLOC)) return NULL;
    size_t old = malloc_usable_size(p);
    p = count(__real_realloc(p, n));
    live -= old;
    return p;
}

void __wrap_free(void *p)
{
    live -= malloc_usable_size(p);
    __real_free(p);
}

int __wrap_open(const char *path, int flags, mode_t mode)
{
    int fd = strikes(OPEN) ? -1 : __real_open(path, flags, mode);
    descriptors += fd >= 0;
    return fd;
}

int __wrap_fstat(int fd, struct stat *about)
{
    return strikes(FSTAT) ? -1 : __real_fstat(fd, about);
}

ssize_t __wrap_pread(int fd, void *dst, size_t n, off_t offset)
{
    if (strikes(PREAD)) return plan.cause ? -1 : 0;
    return __real_pread(fd, dst, plan.short_moves && n > 1 ? 1 : n, offset);
}

ssize_t __wrap___pread_chk(int fd, void *dst, size_t n, off_t offset, size_t room)
{
    assert_true(n <= room);
    return __wrap_pread(fd, dst, n, offset);
}

ssize_t __wrap_write(int fd, const void *src, size_t n)
{
    if (strikes(WRITE)) return plan.cause ? -1 : 0;
    return __real_write(fd, src, plan.short_moves && n > 1 ? 1 : n);
}

int __wrap_fsync(int fd)
{
    return strikes(FSYNC) ? -1 : __real_fsync(fd);
}

int __wrap_close(int fd)
{
    int result = __real_close(fd);
    descriptors--;
    if (plan.close_fails) errno = EBADF;
    return strikes(CLOSE) || plan.close_fails ? -1 : result;
}

int __wrap_rename(const char *from, const char *to)
{
    return strikes(RENAME) ? -1 : __real_rename(from, to);
}

char *__wrap_realpath(const char *path, char *resolved)
{
    return strikes(REALPATH) ? NULL : count(__real_realpath(path, resolved));
}

void plan_fault(call what, int successes, int cause)
{
    plan.what = what;
    plan.successes = successes;
    plan.cause = cause;
}

bool fault_came(void)
{
    bool came = plan.what == NONE;
    plan.what = NONE;
    return came;
}
