/* SPDX-License-Identifier: Apache-2.0 */
/* gguf_bytes.h - GGUF files as bytes, sound or not, for the tests of the reader. */
#ifndef MOE_TESTS_GGUF_BYTES_H
#define MOE_TESTS_GGUF_BYTES_H

#include "safetensors_bytes.h"

/* The file that a script of words puts together.  A word is a letter and its text:
 *
 *     B H W Q   an integer of 8, 16, 32, 64 bits; decimal, 0x..., or negative
 *     F G       a float of 32, 64 bits
 *     S         a string with its length before it;  T: the bytes alone
 *     X Y       so many bytes 'x', with their number before them as a string's length (X) or not (Y)
 *     P         zeros up to a multiple of that
 *     D         so many bytes 0, 1, 2, ...
 *     M         "GGUF", version 3 and the two counts: of tensors, and behind a comma of keys
 *     K         a string, and the type of its value behind an equals sign: Kgeneral.alignment=4
 *     V         a tensor: name, type, offset and dimensions, with commas between: Va,0,0,4,2
 *
 * In the text of S, T, K and V, \ and two hexadecimal digits are a byte.  A word that ends in *n
 * (not S, T, K) stands for n of it.  Fails the test if the script is wrong. */
file_bytes gguf_bytes(const char *script);

#endif
