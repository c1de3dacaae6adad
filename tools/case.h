/* SPDX-License-Identifier: Apache-2.0 */
/* case.h - one call of the operator as a file: safetensors, tensors by parameter name, scalars
 * in the metadata. */
#ifndef MOE_CASE_H
#define MOE_CASE_H

#include "io/safetensors.h"
#include <moe_tkg.h>

enum { CASE_MAX_TENSORS = 14 };

/* What a name that no enumeration of the operator has becomes, so that the operator refuses it
 * by its parameter. */
enum { CASE_FOREIGN = 999 };

typedef struct moe_case {
    moe_tkg_args args; /* points into this structure, which therefore must stay where it is */
    moe_tensor tensor[CASE_MAX_TENSORS];
    void *data[CASE_MAX_TENSORS]; /* 64-byte aligned copies, owned */
    size_t bytes[CASE_MAX_TENSORS];
    /* NULL if the file has none, or was not read; same element order as the output tensor. */
    float *expected;
    size_t expected_count;
    int expected_rank;
    int64_t expected_shape[ST_MAX_RANK];
    double atol, rtol_tight, rtol_strict, rtol_upstream; /* NaN if the file does not say */
    /* What first became CASE_FOREIGN, as the file says it: "activation_fn = mish"; else "". */
    char foreign[128];
} moe_case;

/* Reads path into *c, which the caller frees with case_free whatever is returned.  IO_OK:
 * c->args are what the file says, sensible or not: judging them is the operator's business.
 * Of a call that moe_tkg_output refuses, whatever act_mode says, no data is read: a file that
 * claims gigabytes is refused at once.  All data pointers are NULL then.
 * Otherwise the file is unreadable and error says why: no sound container, a number or flag that
 * does not parse, a required tensor missing, an element size that disagrees. */
io_status case_load(const char *path, moe_case *c, io_error *error);
io_status case_load_memory(const void *bytes, size_t size, moe_case *c, io_error *error);
void case_free(moe_case *c);

/* "exact" -> MOE_ACT_EXACT etc.; false if text names no mode.  And back; "unknown" if it is no
 * mode. */
bool case_act_from_name(const char *text, moe_act_mode *mode);
const char *case_act_name(moe_act_mode mode);

/* The mode that args compute in: act_mode with MOE_ACT_DEFAULT resolved. */
moe_act_mode case_act_in_use(const moe_tkg_args *args);

/* Whether the weights are MX; they are given, as in every case that loaded. */
bool case_is_mx(const moe_tkg_args *args);

/* Whether the tensor expected has the shape of *output. */
bool case_expects_shape(const moe_case *c, const moe_tensor *output);

/* Why the operator just refused the case with status: its own message; but of a name that became
 * CASE_FOREIGN the name, since the file says nothing of our number. */
void case_refusal(const moe_case *c, moe_status status, char *text, size_t size);

/* Computes args into *output, whose data the caller frees with free() (NULL on failure). */
moe_status case_compute(moe_context *context, const moe_tkg_args *args, moe_tensor *output,
                        size_t *bytes);

#endif
