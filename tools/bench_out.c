/* SPDX-License-Identifier: Apache-2.0 */
/* bench_out.c - prints what was measured.
 *
 * Owns the names: keys of the JSON stay what they are, since others read them.  Computes nothing
 * but units. */
#include "bench_out.h"

#include "case.h"

#include <stdio.h>

static const char *activation_words(const bench_plan *p, char text[CLI_MODEL_WORDS])
{
    if (p->model)
        cli_model_activation_words(&p->layer, text);
    else
        snprintf(text, CLI_MODEL_WORDS, "%s", shape_activation_name(p->shape.activation));
    return text;
}

/* ---- the table ----------------------------------------------------------------------------- */

void bench_print_head(const bench *b)
{
    const shape *s = &b->plan.shape;
    char cpu[256], huge[32], activation[CLI_MODEL_WORDS];
    machine_cpu(cpu, sizeof cpu);
    machine_huge_pages(huge, sizeof huge);
    printf("%s: H %lld, I %lld, E %lld, K %lld, %s%s; act %s, routing %s\n", s->name,
           (long long)s->H, (long long)s->I, (long long)s->E, (long long)s->K,
           activation_words(&b->plan, activation), s->bias ? ", biases" : "",
           case_act_name(b->plan.act), route_name(b->plan.routing));
    printf("moe-tkg %s, isa %s, %zu threads%s; ", moe_version(), moe_context_isa(b->crew.context),
           team_size(b->crew.team), b->crew.pinned ? ", pinned" : "");
    cli_print_text(cpu);
    printf(", %.0f MiB last-level cache, huge pages: %s\n\n", (double)b->crew.llc / (1 << 20),
           huge);
}

void bench_print_rows(const bench *b)
{
    const bench_plan *p = &b->plan;
    puts("| weights       |   T | experts | median us |    min us |    p95 us |     MB |  GB/s |"
         "  read | GMAC/s |  dot |  limit us | roofline |");
    puts("|:--------------|----:|--------:|----------:|----------:|----------:|-------:|------:|"
         "------:|-------:|-----:|----------:|---------:|");
    for (size_t f = 0; f < p->n_formats; f++)
        for (size_t t = 0; t < p->n_tokens; t++) {
            bench_row r = bench_row_of(b, f, t);
            printf(
                "| %-13s | %3zu | %7.1f | %9.1f | %9.1f | %9.1f | %6.1f | %5.1f | %5.1f | %6.1f | "
                "%4.0f | %9.1f | %6.1f %% |\n",
                r.weights, r.tokens, r.experts_read, r.median_us, r.min_us, r.p95_us,
                1e-6 * r.bytes, r.gbps, r.read_ceiling_gbps, r.gmacs, r.compute_ceiling, r.limit_us,
                100 * r.roofline);
        }
}

void bench_print_foot(const bench *b)
{
    const bench_plan *p = &b->plan;
    printf("\nread, dot: the machine's ceilings, probed beside the calls: GB/s read from memory "
           "(best of\nthe run %.1f), GMAC/s of ",
           b->reader.best);
    for (size_t f = 0, shown = 0; f < p->n_formats; f++) {
        bool again = false;
        for (size_t g = 0; g < f; g++) again = again || b->dot[g] == b->dot[f];
        if (!again) printf("%s%s", shown++ ? " and " : "", b->dot[f]->name);
    }
    printf(" from registers.\nlimit: bytes / read or products / dot, the larger.  roofline: the "
           "median of limit / time, each\ncall's own.  %zu calls a line, each with new routing and "
           "cold weights.\n",
           p->repetitions);
    for (size_t f = 0; f < p->n_formats; f++) {
        const bench_layer *l = &b->layer[f];
        printf("%s: %zu x %.1f MB packed, %.1f MB an expert; %s took %.2f s, %.1f GB/s of "
               "source\n",
               l->weights, l->copies, 1e-6 * (double)l->info.bytes,
               1e-6 * (double)l->info.expert_bytes, p->model ? "loading" : "packing",
               l->pack_seconds, 1e-9 * l->source_bytes / l->pack_seconds);
    }
    if (b->working_set < 4 * b->crew.llc)
        puts("The working set is below 4 times the last-level cache: the weights are not cold.");
    if (!b->crew.pinned)
        puts(team_size(b->crew.team) > b->crew.cpus
                 ? "More threads than CPUs: they are not pinned, and wait for each other."
                 : "The threads could not be pinned.");
}

/* ---- JSON ---------------------------------------------------------------------------------- */

json_t *bench_row_json(const bench *b, const bench_row *r)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:I, s:f, s:o, s:o, s:o, s:I, s:o, s:o, s:o, s:o, "
                     "s:o, s:o, s:o}",
                     "shape", b->plan.shape.name,                                //
                     "weights", r->weights,                                      //
                     "act", case_act_name(b->plan.act),                          //
                     "isa", moe_context_isa(b->crew.context),                    //
                     "threads", (int)team_size(b->crew.team),                    //
                     "tokens", (json_int_t)r->tokens,                            //
                     "experts_read", r->experts_read,                            //
                     "median_us", cli_json_real(r->median_us),                   //
                     "min_us", cli_json_real(r->min_us),                         //
                     "p95_us", cli_json_real(r->p95_us),                         //
                     "bytes", (json_int_t)(r->bytes + 0.5),                      //
                     "gbps", cli_json_real(r->gbps),                             //
                     "gmacs", cli_json_real(r->gmacs),                           //
                     "read_ceiling_gbps", cli_json_real(r->read_ceiling_gbps),   //
                     "read_ceiling_best_gbps", cli_json_real(b->reader.best),    //
                     "compute_ceiling_gmacs", cli_json_real(r->compute_ceiling), //
                     "limit_us", cli_json_real(r->limit_us),                     //
                     "roofline", cli_json_real(r->roofline));
}

json_t *bench_machine_json(const bench *b)
{
    char cpu[256], kernel[256], huge[32];
    machine_cpu(cpu, sizeof cpu);
    machine_kernel(kernel, sizeof kernel);
    machine_huge_pages(huge, sizeof huge);
    json_t *isa = json_array();
    for (size_t i = 0; moe_isa_level(i); i++)
        json_array_append_new(isa, json_string(moe_isa_level(i)));
    return json_pack("{s:o, s:I, s:I, s:o, s:s, s:s, s:o, s:s, s:b, s:b}", //
                     "cpu", cli_json_text(cpu),                            //
                     "cores", (json_int_t)b->crew.cpus,                    //
                     "llc_bytes", (json_int_t)b->crew.llc,                 //
                     "kernel", cli_json_text(kernel),                      //
                     "compiler", MACHINE_COMPILER,                         //
                     "version", moe_version(),                             //
                     "isa", isa,                                           //
                     "huge_pages", huge,                                   //
                     "huge_pages_granted", b->reader.huge_pages,           //
                     "pinned", b->crew.pinned);
}

static json_t *layer_json(const bench *b, size_t f)
{
    const bench_layer *l = &b->layer[f];
    return json_pack("{s:s, s:I, s:I, s:I, s:f, s:o, s:s}",                                //
                     "weights", l->weights,                                                //
                     "copies", (json_int_t)l->copies,                                      //
                     "bytes", (json_int_t)l->info.bytes,                                   //
                     "expert_bytes", (json_int_t)l->info.expert_bytes,                     //
                     "pack_seconds", l->pack_seconds,                                      //
                     "pack_gbps", cli_json_real(1e-9 * l->source_bytes / l->pack_seconds), //
                     "dot", b->dot[f]->name);
}

static json_t *shape_json(const shape *s, const char *activation)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:s, s:b}", //
                     "name", s->name,                       //
                     "H", (json_int_t)s->H,                 //
                     "I", (json_int_t)s->I,                 //
                     "E", (json_int_t)s->E,                 //
                     "K", (json_int_t)s->K,                 //
                     "activation", activation,              //
                     "bias", s->bias);
}

static json_t *model_json(const bench_plan *p)
{
    if (!p->model) return json_null();
    return json_pack("{s:o, s:o}", "path", cli_json_text(p->model_path), "layer",
                     cli_model_layer_json(&p->layer));
}

json_t *bench_json(const bench *b)
{
    const bench_plan *p = &b->plan;
    char activation[CLI_MODEL_WORDS];
    json_t *results = json_array(), *layers = json_array();
    for (size_t f = 0; f < p->n_formats; f++) {
        json_array_append_new(layers, layer_json(b, f));
        for (size_t t = 0; t < p->n_tokens; t++) {
            bench_row r = bench_row_of(b, f, t);
            json_array_append_new(results, bench_row_json(b, &r));
        }
    }
    return json_pack("{s:o, s:o, s:o, s:s, s:I, s:I, s:I, s:o, s:o}",                 //
                     "machine", bench_machine_json(b),                                //
                     "model", model_json(p),                                          //
                     "shape", shape_json(&p->shape, activation_words(p, activation)), //
                     "routing", route_name(p->routing),                               //
                     "seed", (json_int_t)p->seed,                                     //
                     "repetitions", (json_int_t)p->repetitions,                       //
                     "working_set_bytes", (json_int_t)b->working_set,                 //
                     "layers", layers,                                                //
                     "results", results);
}

/* ---- shapes -------------------------------------------------------------------------------- */

void bench_print_shapes(void)
{
    shape s;
    const char *aliases;
    puts("| shape                   |    H |     I |   E |  K | activation            | MXFP4 MB a "
         "token | also         |");
    puts("|:------------------------|-----:|------:|----:|---:|:----------------------|-----------"
         "------:|:-------------|");
    for (size_t i = 0; shape_at(i, &s, &aliases); i++)
        printf("| %-23s | %4lld | %5lld | %3lld | %2lld | %-21s | %16.1f | %s%s |\n", s.name,
               (long long)s.H, (long long)s.I, (long long)s.E, (long long)s.K,
               shape_activation_name(s.activation), 1e-6 * bench_macs(&s, 1) * 17 / 32, aliases,
               shape_is_supported(&s) ? "" : "not supported");
}

json_t *bench_shapes_json(void)
{
    shape s;
    const char *aliases;
    json_t *list = json_array();
    for (size_t i = 0; shape_at(i, &s, &aliases); i++) {
        json_t *o = shape_json(&s, shape_activation_name(s.activation));
        json_object_set_new(o, "aliases", json_string(aliases));
        json_object_set_new(o, "supported", json_boolean(shape_is_supported(&s)));
        json_array_append_new(list, o);
    }
    return json_pack("{s:o}", "shapes", list);
}
