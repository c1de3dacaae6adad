/* SPDX-License-Identifier: Apache-2.0 */
/* config.h - read a config.json: values by their path.  Takes files of any origin.
 *
 * A path is the names of members, from the outermost inwards, joined by dots:
 * "num_experts", "text_config.hidden_size", "quantization_config.config_groups.group_0.weights".
 * The empty path is the whole text.  A member whose own name has a dot in it is listed by
 * cfg_member and not reached by any path; neither is what lies inside an array. */
#ifndef MOE_IO_CONFIG_H
#define MOE_IO_CONFIG_H

#include "io/safetensors.h"

typedef struct cfg_file cfg_file;

/* Reads and checks all of the text: one JSON object, at most 4 MiB and 32 levels deep, no member
 * twice.  NaN and Infinity, which Python writes, count as reals.  *config is owned by the caller
 * (cfg_close); NULL on failure.  IO_E_FORMAT names the rule and the byte. */
io_status cfg_open(const char *path, cfg_file **config, io_error *error);

/* The same for a text in memory, which may go away afterwards. */
io_status cfg_open_memory(const void *text, size_t size, cfg_file **config, io_error *error);

void cfg_close(cfg_file *config); /* NULL is fine */

typedef enum cfg_kind {
    CFG_ABSENT,
    CFG_NULL,
    CFG_BOOL,
    CFG_INTEGER, /* a number without fraction and exponent, of any size */
    CFG_REAL,    /* any other number */
    CFG_STRING,
    CFG_ARRAY,
    CFG_OBJECT
} cfg_kind;

cfg_kind cfg_what(const cfg_file *config, const char *path);

/* There, and not null (which configurations write for "none"). */
bool cfg_has(const cfg_file *config, const char *path);

/* The value: false, and *value as it was, if it is absent, of another kind, or does not fit.
 * Integers of both signs; reals are finite, and may be written as integers. */
bool cfg_integer(const cfg_file *config, const char *path, int64_t *value);
bool cfg_real(const cfg_file *config, const char *path, double *value);
bool cfg_bool(const cfg_file *config, const char *path, bool *value);
bool cfg_string(const cfg_file *config, const char *path, const char **value); /* of config */

/* How many elements an array has; element number i, in constant time.  Elements of an array that
 * holds arrays or objects are not given. */
bool cfg_array(const cfg_file *config, const char *path, size_t *count);
bool cfg_array_integer(const cfg_file *config, const char *path, size_t i, int64_t *value);
bool cfg_array_real(const cfg_file *config, const char *path, size_t i, double *value);
bool cfg_array_bool(const cfg_file *config, const char *path, size_t i, bool *value);
bool cfg_array_string(const cfg_file *config, const char *path, size_t i, const char **value);

/* How many members an object has; the name of number i, sorted (owned by config). */
bool cfg_object(const cfg_file *config, const char *path, size_t *count);
bool cfg_member(const cfg_file *config, const char *path, size_t i, const char **name);

#endif
