/* SPDX-License-Identifier: Apache-2.0 */
/* tool_call.h - the command moe-tkg as a program: arguments in, exit code and texts out. */
#ifndef MOE_TEST_TOOL_CALL_H
#define MOE_TEST_TOOL_CALL_H

#include <jansson.h>

typedef struct tool_result {
    int code; /* exit code; 128 and more: ended by a signal */
    char *out, *err;
} tool_result;

/* Runs it with these arguments, words with blanks between (none of them has any). */
__attribute__((format(printf, 1, 2))) tool_result tool_call(const char *format, ...);
void tool_free(tool_result *r);

/* The same, which must end with this code and, unless it is 0, one line on stderr that has these
 * words (NULL: whatever) and no control character. */
__attribute__((format(printf, 3, 4))) void tool_expect(int code, const char *words,
                                                       const char *format, ...);

/* Runs it with --json, which must end with this code; the object that it printed. */
__attribute__((format(printf, 2, 3))) json_t *tool_json(int code, const char *format, ...);

/* A new folder for files of a test, and its end with all that is in it. */
void tool_folder(char path[64]);
void tool_folder_remove(const char *path);

#endif
