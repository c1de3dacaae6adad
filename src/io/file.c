/* SPDX-License-Identifier: Apache-2.0 */
/* file.c - opens files of foreign origin and reads parts of them.  Refuses what is no regular
 * file, and reads that come up short. */
#define _POSIX_C_SOURCE 200809L

#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/io_error.h"

_Static_assert(sizeof(size_t) == 8 && sizeof(off_t) == 8, "file offsets fit in size_t");

/* O_NONBLOCK: a FIFO without a writer must be refused, not waited for. */
static io_status open_regular(io_file *f, int flags, io_error *error)
{
    struct stat about;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags);
    if (f->fd < 0 || fstat(f->fd, &about) != 0)
        return io_fail_errno(error, IO_E_OPEN, f->path, "cannot be opened", errno);
    if (!S_ISREG(about.st_mode)) return io_fail(error, IO_E_OPEN, f->path, "is no regular file");
    f->size = (size_t)about.st_size;
    f->seconds = about.st_mtim.tv_sec;
    f->nanoseconds = (int32_t)about.st_mtim.tv_nsec;
    return IO_OK;
}

static io_status name(io_file *f, const char *path, io_error *error)
{
    size_t length = strlen(path) + 1;
    *f = (io_file){.path = malloc(length), .fd = -1};
    if (!f->path) return io_no_memory(error, path);
    memcpy(f->path, path, length);
    return IO_OK;
}

static io_status open_file(io_file *f, const char *path, int flags, io_error *error)
{
    io_status status = name(f, path, error);
    if (status != IO_OK) return status;
    status = open_regular(f, flags, error);
    if (status != IO_OK) io_file_close(f);
    return status;
}

io_status io_file_open(io_file *f, const char *path, io_error *error)
{
    return open_file(f, path, 0, error);
}

io_status io_file_open_own(io_file *f, const char *path, io_error *error)
{
    return open_file(f, path, O_NOFOLLOW, error);
}

io_status io_file_memory(io_file *f, const void *data, size_t size, io_error *error)
{
    io_status status = name(f, "(memory)", error);
    f->memory = data;
    f->size = size;
    return status;
}

void io_file_close(io_file *f)
{
    if (f->fd >= 0) close(f->fd);
    free(f->path);
    *f = (io_file){.fd = -1};
}

io_status io_file_read(const io_file *f, size_t offset, void *dst, size_t n, io_error *error)
{
    if (f->fd < 0) {
        if (n > 0) memcpy(dst, f->memory + offset, n); /* dst may be NULL for no bytes */
        return IO_OK;
    }
    size_t done = 0;
    while (done < n) {
        ssize_t got = pread(f->fd, (char *)dst + done, n - done, (off_t)(offset + done));
        if (got > 0)
            done += (size_t)got;
        else if (got == 0)
            return io_fail(error, IO_E_READ, f->path, "the file ends at byte %zu", offset + done);
        else if (errno != EINTR)
            return io_fail_errno(error, IO_E_READ, f->path, "cannot be read", errno);
    }
    return IO_OK;
}

void io_file_will_need(const io_file *f, size_t offset, size_t n)
{
    /* Advice: where it is not taken, reading takes longer. */
    if (f->fd >= 0) (void)posix_fadvise(f->fd, (off_t)offset, (off_t)n, POSIX_FADV_WILLNEED);
}

io_status io_file_text(const io_file *f, size_t most, char **text, io_error *error)
{
    *text = NULL;
    if (f->size > most)
        return io_fail(error, IO_E_FORMAT, f->path, "the text is longer than %zu bytes", most);
    char *copy = malloc(f->size > 0 ? f->size : 1); /* of size 0, NULL would be no failure */
    if (!copy) return io_no_memory(error, f->path);
    io_status status = io_file_read(f, 0, copy, f->size, error);
    if (status == IO_OK)
        *text = copy;
    else
        free(copy);
    return status;
}
