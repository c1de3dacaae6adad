/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE 1

#include "tool_call.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "safetensors_bytes.h"

#include <fcntl.h>
#include <ftw.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_WORDS = 40 };

extern char **environ;

/* A file without a name: its descriptor. */
static int unnamed(void)
{
    char path[] = "/tmp/moe-tkg-output-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    return fd;
}

static char *text_of(int fd)
{
    off_t size = lseek(fd, 0, SEEK_END);
    char *text = calloc((size_t)size + 1, 1);
    assert_non_null(text);
    assert_true(pread(fd, text, (size_t)size, 0) == size);
    close(fd);
    return text;
}

__attribute__((format(printf, 1, 0))) static tool_result call(const char *format, va_list list)
{
    char *line, *rest, *words[MOST_WORDS + 1] = {(char *)MOE_TOOL};
    assert_true(vasprintf(&line, format, list) >= 0);
    rest = line;
    for (size_t n = 1; (words[n] = strsep(&rest, " ")) != NULL;)
        if (*words[n]) assert_true(++n < MOST_WORDS);
    int out = unnamed(), err = unnamed(), status;
    posix_spawn_file_actions_t files;
    assert_int_equal(posix_spawn_file_actions_init(&files), 0);
    posix_spawn_file_actions_adddup2(&files, out, 1);
    posix_spawn_file_actions_adddup2(&files, err, 2);
    pid_t child;
    assert_int_equal(posix_spawn(&child, MOE_TOOL, &files, NULL, words, environ), 0);
    posix_spawn_file_actions_destroy(&files);
    assert_true(waitpid(child, &status, 0) == child);
    free(line);
    return (tool_result){.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
                         .out = text_of(out),
                         .err = text_of(err)};
}

tool_result tool_call(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    tool_result r = call(format, list);
    va_end(list);
    return r;
}

void tool_free(tool_result *r)
{
    free(r->out);
    free(r->err);
    *r = (tool_result){0};
}

static void expect_one_line(const char *text)
{
    size_t n = strlen(text);
    assert_true(n > 1 && text[n - 1] == '\n');
    for (size_t i = 0; i + 1 < n; i++) assert_true((unsigned char)text[i] >= 0x20);
}

void tool_expect(int code, const char *words, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    tool_result r = call(format, list);
    va_end(list);
    if (r.code != code || (words && !strstr(r.err, words)))
        fail_msg("'%s' exits with %d, not %d, and says: %s (wanted: %s)", format, r.code, code,
                 r.err, words ? words : "");
    if (code != 0) expect_one_line(r.err);
    tool_free(&r);
}

json_t *tool_json(int code, const char *format, ...)
{
    json_error_t error;
    char *with_json;
    va_list list;
    assert_true(asprintf(&with_json, "%s --json", format) >= 0);
    va_start(list, format);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    tool_result r = call(with_json, list);
#pragma GCC diagnostic pop
    va_end(list);
    free(with_json);
    if (r.code != code) fail_msg("'%s' exits with %d, not %d: %s", format, r.code, code, r.err);
    for (const char *p = r.out; *p; p++) assert_true(*p == '\n' || *p >= 0x20);
    json_t *object = json_loads(r.out, JSON_REJECT_DUPLICATES, &error);
    if (!object) fail_msg("'%s' prints no JSON: %s: %s", format, error.text, r.out);
    tool_free(&r);
    return object;
}

void tool_folder(char path[64])
{
    snprintf(path, 64, "/tmp/moe-tkg-test-XXXXXX");
    assert_non_null(mkdtemp(path));
}

static int remove_one(const char *path, const struct stat *about, int type, struct FTW *where)
{
    (void)about;
    (void)type;
    (void)where;
    return remove(path);
}

void tool_folder_remove(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
