/* SPDX-License-Identifier: Apache-2.0 */
/* output.c - owns the temporary file, its flush and its renaming.  Refuses nothing; reports
 * every failed call. */
#define _XOPEN_SOURCE 700

#include "io/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/io_error.h"

enum { TEMPORARY_NAME_BYTES = 64, TEMPORARY_NAMES = 1000 };

static void check(io_output *o, bool ok)
{
    if (!ok && o->cause == 0) o->cause = errno;
}

/* O_EXCL makes the name ours whoever else counts, and mode 0666 leaves the permissions to the
 * umask, which mkstemp does not. */
static void open_temporary(io_output *o, const char *target)
{
    const char *slash = strrchr(target, '/');
    size_t folder = slash ? (size_t)(slash - target) + 1 : 0;
    o->temporary = malloc(folder + TEMPORARY_NAME_BYTES);
    check(o, o->temporary);
    if (!o->temporary) return;
    memcpy(o->temporary, target, folder);
    for (int i = 0; i < TEMPORARY_NAMES; i++) {
        snprintf(o->temporary + folder, TEMPORARY_NAME_BYTES, ".moe-%ld-%d.tmp", (long)getpid(), i);
        o->fd = open(o->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (o->fd >= 0 || errno != EEXIST) break;
    }
    check(o, o->fd >= 0);
}

/* A pipe that nobody reads would keep a blocking open() waiting for ever; this one fails with
 * ENXIO.  Writing may wait again. */
static void open_in_place(io_output *o)
{
    o->fd = open(o->path, O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    check(o, o->fd >= 0);
    if (o->fd < 0) return;
    int flags = fcntl(o->fd, F_GETFL);
    check(o, flags != -1 && fcntl(o->fd, F_SETFL, flags & ~O_NONBLOCK) != -1);
}

void io_output_open(io_output *o, const char *path)
{
    struct stat about;
    *o = (io_output){.path = path, .fd = -1};
    bool exists = stat(path, &about) == 0;
    if (exists && !S_ISREG(about.st_mode)) {
        open_in_place(o);
        return;
    }
    /* Replacing the link instead of its target would break /dev/stdout when that is redirected
     * to a file. */
    if (exists) {
        o->target = realpath(path, NULL);
        check(o, o->target);
    }
    if (o->cause == 0) open_temporary(o, o->target ? o->target : path);
}

void io_output_put(io_output *o, const void *bytes, size_t n)
{
    const char *at = bytes;
    while (o->cause == 0 && n > 0) {
        errno = EIO; /* the cause if write returns 0 */
        ssize_t done = write(o->fd, at, n);
        if (done > 0) {
            at += done;
            n -= (size_t)done;
        } else {
            check(o, errno == EINTR);
        }
    }
}

io_status io_output_finish(io_output *o, io_error *error)
{
    bool opened = o->fd >= 0;
    if (o->cause == 0 && o->temporary) check(o, fsync(o->fd) == 0);
    if (opened) check(o, close(o->fd) == 0);
    if (opened && o->temporary) {
        if (o->cause == 0) check(o, rename(o->temporary, o->target ? o->target : o->path) == 0);
        if (o->cause != 0) unlink(o->temporary);
    }
    free(o->temporary);
    free(o->target);
    if (o->cause == 0) return IO_OK;
    return io_fail_errno(error, o->cause == ENOMEM ? IO_E_NOMEM : IO_E_WRITE, o->path,
                         o->cause == ENXIO ? "cannot be written, as nothing reads from it"
                                           : "cannot be written",
                         o->cause);
}
