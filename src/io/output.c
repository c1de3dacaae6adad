/* SPDX-License-Identifier: Apache-2.0 */
/* output.c - owns the temporary file, its flush and its renaming, and what processes that were killed
 * left of theirs.  Refuses nothing; reports every failed call of its own file. */
#define _DEFAULT_SOURCE /* flock */
#define _XOPEN_SOURCE   700

#include "io/output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/io_error.h"

enum { TEMPORARY_NAME_BYTES = 64, TEMPORARY_NAMES = 1000 };

static void check(io_output *o, bool ok)
{
    if (!ok && o->cause == 0) o->cause = errno;
}

/* ---- temporary files ------------------------------------------------------------------------- */

static void temporary_name(char name[TEMPORARY_NAME_BYTES], long process, int number)
{
    snprintf(name, TEMPORARY_NAME_BYTES, ".moe-%ld-%d.tmp", process, number);
}

/* Whether it is the name of a temporary file of a process that is no more. */
static bool is_left_behind(const char *name)
{
    char same[TEMPORARY_NAME_BYTES];
    long process;
    int number;
    if (sscanf(name, ".moe-%9ld-%9d.tmp", &process, &number) != 2 || process < 1) return false;
    temporary_name(same, process, number);
    return strcmp(name, same) == 0 && kill((pid_t)process, 0) != 0 && errno == ESRCH;
}

/* Removes a file of ours that nobody writes: where processes do not see each other, as in containers,
 * their locks are seen. */
static void remove_left_behind(int folder, const char *name)
{
    struct stat about;
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return;
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_uid == geteuid() &&
        flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlinkat(folder, name, 0);
    close(fd);
}

/* A file that cannot be removed takes nothing but room: no failure. */
static void tidy(const char *folder)
{
    DIR *directory = opendir(folder);
    const struct dirent *entry;
    while (directory && (entry = readdir(directory)) != NULL)
        if (is_left_behind(entry->d_name)) remove_left_behind(dirfd(directory), entry->d_name);
    if (directory) closedir(directory);
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
    o->temporary[folder] = '\0';
    tidy(folder > 0 ? o->temporary : ".");
    for (int i = 0; i < TEMPORARY_NAMES; i++) {
        temporary_name(o->temporary + folder, (long)getpid(), i);
        o->fd = open(o->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (o->fd >= 0 || errno != EEXIST) break;
    }
    check(o, o->fd >= 0);
    if (o->fd >= 0) (void)flock(o->fd, LOCK_EX | LOCK_NB); /* where there are no locks: as it is */
}

/* Flushes the new name.  The file is whole under it already, so that nothing here is a failure. */
static void flush_folder(char *temporary)
{
    char *slash = strrchr(temporary, '/');
    if (slash) slash[1] = '\0';
    int fd = open(slash ? temporary : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

/* ---- the output ------------------------------------------------------------------------------ */

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
        if (o->cause == 0)
            flush_folder(o->temporary);
        else
            unlink(o->temporary);
    }
    free(o->temporary);
    free(o->target);
    if (o->cause == 0) return IO_OK;
    return io_fail_errno(error, o->cause == ENOMEM ? IO_E_NOMEM : IO_E_WRITE, o->path,
                         o->cause == ENXIO ? "cannot be written, as nothing reads from it"
                                           : "cannot be written",
                         o->cause);
}
