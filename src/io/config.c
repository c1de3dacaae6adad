/* SPDX-License-Identifier: Apache-2.0 */
/* config.c - the reader of configurations.
 *
 * It owns the text, decoded in place, a node for each value in it and an entry for each member of
 * an object.  It refuses text that is no JSON object, that is too long or nested too deeply, and a
 * member that occurs twice.  Memory stays below 16 times the text: 12 bytes for a value, of which
 * the text has one in two bytes at most, and up to 40 more for a member, one in four, while there
 * come more.  Time grows with the text times the logarithm of the number of members. */
#include "io/config.h"

#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "io/grow.h"
#include "io/io_error.h"
#include "io/json_scan.h"

enum { TEXT_MAX = 4 << 20, DEPTH_MAX = 32, ROOT = 0 };

typedef struct node {
    uint32_t parent; /* the number of the list's node that it is in */
    uint32_t value;  /* of a list, how many values it holds; else where it is in the text */
    uint8_t kind;    /* io_json_kind */
    bool flat;       /* a list that holds no lists: its values are the nodes behind it */
} node;

typedef struct member {
    const char *key;
    uint32_t parent, node;
} member;

struct cfg_file {
    char *text;
    size_t size;
    node *nodes; /* in the order of the text; number ROOT is the whole */
    size_t count;
    member *members; /* sorted by parent, then by key */
    size_t member_count;
};

static bool is_list(const node *n)
{
    return n->kind == IO_JSON_ARRAY || n->kind == IO_JSON_OBJECT;
}

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct parser {
    cfg_file *config;
    io_json scan;
    size_t room; /* of members */
    bool nomem;
} parser;

/* As many values as the text can hold: the first, and one behind each bracket that opens and each
 * comma, outside strings. */
static size_t most_values(const char *text, size_t size)
{
    size_t values = 1;
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '"') quoted = !quoted;
        if (!quoted)
            values += text[i] == '{' || text[i] == '[' || text[i] == ',';
        else if (text[i] == '\\')
            i++;
    }
    return values;
}

/* Reads a value, or its opening bracket, into the next node. */
static bool read_node(cfg_file *c, io_json *s, uint32_t parent)
{
    io_json_value value;
    if (!io_json_read(s, &value)) return false;
    node *n = &c->nodes[c->count++];
    *n = (node){.parent = parent, .kind = (uint8_t)value.kind, .flat = true};
    if (!is_list(n)) n->value = (uint32_t)s->token;
    if (n == c->nodes) return true;
    c->nodes[parent].value++;
    if (is_list(n)) c->nodes[parent].flat = false;
    return true;
}

/* Reads the key of a member whose value will be the next node. */
static bool read_key(parser *p, uint32_t object)
{
    cfg_file *c = p->config;
    member m = {.parent = object, .node = (uint32_t)c->count};
    if (!io_json_key(&p->scan, &m.key)) return false;
    member *list = io_grown(c->members, c->member_count, &p->room, sizeof m);
    p->nomem = !list;
    if (!list) return false;
    c->members = list;
    list[c->member_count++] = m;
    return true;
}

/* Reads all values in the order of the text; list is the innermost that is open. */
static bool read_values(parser *p)
{
    cfg_file *c = p->config;
    io_json *s = &p->scan;
    if (io_json_peek(s) != '{') return io_json_fail(s, "an object is expected");
    if (!read_node(c, s, ROOT)) return false;
    uint32_t list = ROOT;
    for (int depth = 1; depth > 0;) {
        bool object = c->nodes[list].kind == IO_JSON_OBJECT;
        uint32_t next = (uint32_t)c->count;
        if (!io_json_next(s, object ? '}' : ']', c->nodes[list].value)) {
            if (s->rule) return false;
            list = c->nodes[list].parent;
            depth--;
            continue;
        }
        if (object && !read_key(p, list)) return false;
        if (!read_node(c, s, list)) return false;
        if (!is_list(&c->nodes[next])) continue;
        if (depth++ == DEPTH_MAX) return io_json_fail(s, "lists are nested more than 32 deep");
        list = next;
    }
    return io_json_end(s);
}

static int compare_members(const void *a, const void *b)
{
    const member *x = a, *y = b;
    if (x->parent != y->parent) return x->parent < y->parent ? -1 : 1;
    return strcmp(x->key, y->key);
}

/* Sorting, unlike hashing, cannot be slowed down by chosen keys. */
static io_status sort_members(cfg_file *c, const char *path, io_error *error)
{
    if (c->members) qsort(c->members, c->member_count, sizeof *c->members, compare_members);
    for (size_t i = 1; i < c->member_count; i++) {
        const member *m = &c->members[i];
        if (compare_members(m - 1, m) == 0)
            return io_fail(error, IO_E_FORMAT, path, "\"%.*s\": the key occurs twice at byte %zu",
                           io_clip(m->key), m->key, (size_t)(m->key - c->text));
    }
    return IO_OK;
}

static io_status load(cfg_file *c, const io_file *in, io_error *error)
{
    io_status status = io_file_text(in, TEXT_MAX, &c->text, error);
    if (status != IO_OK) return status;
    c->size = in->size;
    c->nodes = malloc(most_values(c->text, c->size) * sizeof *c->nodes);
    if (!c->nodes) return io_no_memory(error, in->path);
    parser p = {.config = c, .scan = {.text = c->text, .size = c->size}};
    if (read_values(&p)) return sort_members(c, in->path, error);
    if (p.nomem) return io_no_memory(error, in->path);
    return io_fail(error, IO_E_FORMAT, in->path, "%s at byte %zu", p.scan.rule, p.scan.token);
}

/* Reads all of in, and closes it. */
static io_status read_config(io_file *in, cfg_file **config, io_error *error)
{
    cfg_file *c = calloc(1, sizeof *c);
    io_status status = c ? load(c, in, error) : io_no_memory(error, in->path);
    io_file_close(in);
    if (status == IO_OK)
        *config = c;
    else
        cfg_close(c);
    return status;
}

io_status cfg_open(const char *path, cfg_file **config, io_error *error)
{
    io_file in;
    *config = NULL;
    io_status status = io_file_open(&in, path, error);
    return status == IO_OK ? read_config(&in, config, error) : status;
}

io_status cfg_open_memory(const void *text, size_t size, cfg_file **config, io_error *error)
{
    io_file in;
    *config = NULL;
    io_status status = io_file_memory(&in, text, size, error);
    return status == IO_OK ? read_config(&in, config, error) : status;
}

void cfg_close(cfg_file *config)
{
    if (!config) return;
    free(config->text);
    free(config->nodes);
    free(config->members);
    free(config);
}

/* ---- looking up ------------------------------------------------------------------------------ */

/* Compares member m with the one of parent whose key is the n bytes at key. */
static int compare_key(const member *m, uint32_t parent, const char *key, size_t n)
{
    if (m->parent != parent) return m->parent < parent ? -1 : 1;
    int order = strncmp(m->key, key, n);
    return order != 0 ? order : m->key[n] != '\0';
}

/* The number of the first member that does not come before (parent, key). */
static size_t lower_bound(const cfg_file *c, uint32_t parent, const char *key, size_t n)
{
    size_t low = 0, high = c->member_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_key(&c->members[middle], parent, key, n) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The value at path; NULL if there is none. */
static const node *find(const cfg_file *c, const char *path)
{
    const node *at = &c->nodes[ROOT];
    while (*path) {
        size_t n = strcspn(path, ".");
        uint32_t parent = (uint32_t)(at - c->nodes);
        size_t i = lower_bound(c, parent, path, n);
        if (i == c->member_count || compare_key(&c->members[i], parent, path, n) != 0) return NULL;
        at = &c->nodes[c->members[i].node];
        path += n;
        if (*path == '.' && *++path == '\0') return NULL; /* ends in a dot */
    }
    return at;
}

/* Element i of the array at path, if it is there and the array holds no lists. */
static const node *find_element(const cfg_file *c, const char *path, size_t i)
{
    const node *array = find(c, path);
    if (!array || array->kind != IO_JSON_ARRAY || !array->flat || i >= array->value) return NULL;
    return array + 1 + i;
}

static const node *find_kind(const cfg_file *c, const char *path, io_json_kind kind)
{
    const node *n = find(c, path);
    return n && n->kind == kind ? n : NULL;
}

/* A number is read anew from the text. */
static io_json_value number_at(const cfg_file *c, const node *n)
{
    io_json s = {.text = c->text, .size = c->size, .at = n->value};
    io_json_value value;
    io_json_read(&s, &value); /* cannot fail where it did not before */
    return value;
}

static bool is_number(const node *n)
{
    return n && (n->kind == IO_JSON_INTEGER || n->kind == IO_JSON_REAL);
}

static bool get_integer(const cfg_file *c, const node *n, int64_t *value)
{
    if (!is_number(n)) return false;
    io_json_value number = number_at(c, n);
    return io_json_to_integer(&number, value);
}

static bool get_real(const cfg_file *c, const node *n, double *value)
{
    if (!is_number(n)) return false;
    io_json_value number = number_at(c, n);
    return io_json_to_real(&number, value);
}

static bool get_bool(const node *n, bool *value)
{
    if (!n || (n->kind != IO_JSON_FALSE && n->kind != IO_JSON_TRUE)) return false;
    *value = n->kind == IO_JSON_TRUE;
    return true;
}

/* A string's node has the place of its quote. */
static bool get_string(const cfg_file *c, const node *n, const char **value)
{
    if (!n || n->kind != IO_JSON_STRING) return false;
    *value = c->text + n->value + 1;
    return true;
}

cfg_kind cfg_what(const cfg_file *config, const char *path)
{
    static const cfg_kind kinds[] = {
        [IO_JSON_NULL] = CFG_NULL,   [IO_JSON_FALSE] = CFG_BOOL,
        [IO_JSON_TRUE] = CFG_BOOL,   [IO_JSON_INTEGER] = CFG_INTEGER,
        [IO_JSON_REAL] = CFG_REAL,   [IO_JSON_STRING] = CFG_STRING,
        [IO_JSON_ARRAY] = CFG_ARRAY, [IO_JSON_OBJECT] = CFG_OBJECT,
    };
    const node *n = find(config, path);
    return n ? kinds[n->kind] : CFG_ABSENT;
}

bool cfg_has(const cfg_file *config, const char *path)
{
    cfg_kind kind = cfg_what(config, path);
    return kind != CFG_ABSENT && kind != CFG_NULL;
}

bool cfg_integer(const cfg_file *config, const char *path, int64_t *value)
{
    return get_integer(config, find(config, path), value);
}

bool cfg_real(const cfg_file *config, const char *path, double *value)
{
    return get_real(config, find(config, path), value);
}

bool cfg_bool(const cfg_file *config, const char *path, bool *value)
{
    return get_bool(find(config, path), value);
}

bool cfg_string(const cfg_file *config, const char *path, const char **value)
{
    return get_string(config, find(config, path), value);
}

bool cfg_array(const cfg_file *config, const char *path, size_t *count)
{
    const node *n = find_kind(config, path, IO_JSON_ARRAY);
    if (n) *count = n->value;
    return n != NULL;
}

bool cfg_array_integer(const cfg_file *config, const char *path, size_t i, int64_t *value)
{
    return get_integer(config, find_element(config, path, i), value);
}

bool cfg_array_real(const cfg_file *config, const char *path, size_t i, double *value)
{
    return get_real(config, find_element(config, path, i), value);
}

bool cfg_array_bool(const cfg_file *config, const char *path, size_t i, bool *value)
{
    return get_bool(find_element(config, path, i), value);
}

bool cfg_array_string(const cfg_file *config, const char *path, size_t i, const char **value)
{
    return get_string(config, find_element(config, path, i), value);
}

bool cfg_object(const cfg_file *config, const char *path, size_t *count)
{
    const node *n = find_kind(config, path, IO_JSON_OBJECT);
    if (n) *count = n->value;
    return n != NULL;
}

bool cfg_member(const cfg_file *config, const char *path, size_t i, const char **name)
{
    const node *n = find_kind(config, path, IO_JSON_OBJECT);
    if (!n || i >= n->value) return false;
    size_t first = lower_bound(config, (uint32_t)(n - config->nodes), "", 0);
    *name = config->members[first + i].key;
    return true;
}
