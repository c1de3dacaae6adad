/* SPDX-License-Identifier: Apache-2.0 */
/* layer_pieces.h - tensors of a matrix, of all experts: found, compared with the first, noted. */
#ifndef MOE_IO_LAYER_PIECES_H
#define MOE_IO_LAYER_PIECES_H

#include "io/layer.h"

/* The tensor with `suffix` behind the search's stem, of expert e. */
moe_status piece_find(const layer_search *search, const char *suffix, int64_t e, ck_tensor *t,
                      bool *found);

/* Whether t has these dimensions, behind that of the experts if it is of all. */
bool piece_fits(const layer_search *search, const ck_tensor *t, int rank, const int64_t *shape);

/* MOE_E_MODEL: it does not. */
moe_status piece_refuse_shape(const layer_search *search, const ck_tensor *t, int rank,
                              const int64_t *shape);

/* MOE_E_MODEL: there is no such tensor. */
moe_status piece_missing(const layer_search *search, const char *suffix, int64_t e);

/* Notes a piece whose first tensor t was checked: finds those of the other experts, which must be like
 * it, and makes `a` lie in it from its first byte. */
moe_status piece_add(const layer_search *search, const char *suffix, const ck_tensor *t,
                     layer_conversion conversion, layer_array *a);

/* The same for a pair of numbers that must be rows and k; there may be none. */
moe_status piece_add_shape(const layer_search *search, const char *suffix);

#endif
