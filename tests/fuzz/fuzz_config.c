/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_config.c - any text given to the reader of configurations.
 *
 * Checks that a refusal has a one-line message, and everything else against jansson: what it takes is
 * taken, what it refuses is refused, and every value that a path leads to is the same, but where the
 * head of the reader says that it differs.  And that the text gives rules of a model that can be, or a
 * one-line message. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "io/family.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PATH_ROOM = 2000 };

static void require(int holds)
{
    if (!holds) abort();
}

/* Whether the text has word, in a string or not. */
static int has(const char *text, size_t size, const char *word)
{
    size_t length = strlen(word);
    for (size_t i = 0; i + length <= size; i++) {
        if (memcmp(text + i, word, length) == 0) return 1;
    }
    return 0;
}

static void check_elements(const cfg_file *config, const char *path, const json_t *array)
{
    size_t count, lists = 0;
    require(cfg_array(config, path, &count) && count == json_array_size(array));
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_array_get(array, i);
        lists += json_is_array(one) || json_is_object(one);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *one = json_array_get(array, i);
        const char *text;
        double real;
        bool truth;
        bool is_string = cfg_array_string(config, path, i, &text);
        require(is_string == (json_is_string(one) && lists == 0));
        if (is_string) require(!strcmp(text, json_string_value(one)));
        if (cfg_array_real(config, path, i, &real)) require(real == json_number_value(one));
        if (cfg_array_bool(config, path, i, &truth)) require(truth == json_is_true(one));
    }
}

static void check_value(const cfg_file *config, char *path, const json_t *wanted)
{
    const char *text;
    double real = 0;
    int64_t integer;
    bool truth = false;
    size_t count = 0;
    cfg_kind kind = cfg_what(config, path);
    require(cfg_has(config, path) == !json_is_null(wanted));
    switch (json_typeof(wanted)) {
    case JSON_STRING:
        require(kind == CFG_STRING && cfg_string(config, path, &text));
        require(!strcmp(text, json_string_value(wanted)));
        break;
    case JSON_REAL: /* all numbers */
        require(kind == CFG_REAL || kind == CFG_INTEGER);
        if (cfg_real(config, path, &real)) require(real == json_real_value(wanted));
        if (cfg_integer(config, path, &integer)) require((double)integer == real);
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        require(kind == CFG_BOOL && cfg_bool(config, path, &truth));
        require(truth == json_is_true(wanted));
        break;
    case JSON_ARRAY:
        require(kind == CFG_ARRAY);
        check_elements(config, path, wanted);
        break;
    case JSON_OBJECT:
        require(kind == CFG_OBJECT && cfg_object(config, path, &count));
        require(count == json_object_size(wanted));
        break;
    default: require(kind == CFG_NULL);
    }
}

/* All that paths lead to below the object at path. */
static void check_object(const cfg_file *config, char *path, const json_t *object)
{
    size_t length = strlen(path), count = 0;
    require(cfg_object(config, path, &count));
    for (size_t i = 0; i < count; i++) {
        const char *name;
        require(cfg_member(config, path, i, &name));
        const json_t *value = json_object_get(object, name);
        require(value != NULL);
        if (strchr(name, '.') || !*name || length + strlen(name) + 2 > PATH_ROOM) continue;
        snprintf(path + length, PATH_ROOM - length, "%s%s", length ? "." : "", name);
        check_value(config, path, value);
        if (json_is_object(value)) check_object(config, path, value);
        path[length] = '\0';
    }
}

static void check_rules(const cfg_file *config)
{
    family_rules rules;
    const moe_layer_info *i = &rules.info;
    moe_status status = family_of_config(config, "(memory)", &rules);
    if (status != MOE_OK) {
        const char *message = moe_io_last_error();
        require(status == MOE_E_MODEL && !strchr(message, '\n'));
        require(strncmp(message, "(memory): ", 10) == 0);
        return;
    }
    require(rules.family && rules.layouts[0] && rules.layers > 0 && rules.grid_rows > 0);
    require(i->H > 0 && i->I > 0 && i->K > 0 && i->K <= i->E && rules.shared_I >= -1);
    require(isfinite(i->scale) && isfinite(i->gate_clamp_upper_limit.value));
    if (i->n_group > 0 && !i->foreign_router)
        require(i->E % i->n_group == 0 && i->K <= i->topk_group * (i->E / i->n_group));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cfg_file *config;
    io_error error = {.status = IO_OK};
    json_error_t other;
    const char *text = (const char *)data;
    io_status status = cfg_open_memory(data, size, &config, &error);
    json_t *wanted =
        json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &other);
    if (status == IO_OK) {
        int python = has(text, size, "NaN") || has(text, size, "Infinity");
        require(wanted || python || json_error_code(&other) == json_error_numeric_overflow);
        char path[PATH_ROOM] = "";
        if (wanted) check_object(config, path, wanted);
        check_rules(config);
        cfg_close(config);
    } else {
        require(status == IO_E_FORMAT && error.status == status && !config);
        require(strncmp(error.text, "(memory): ", 10) == 0 && !strchr(error.text, '\n'));
        int deep = strstr(error.text, "32 deep") != NULL;
        int nul = memchr(data, 0, size) != NULL; /* jansson passes over some of them */
        require(!wanted || deep || nul || !json_is_object(wanted));
    }
    json_decref(wanted);
    return 0;
}
