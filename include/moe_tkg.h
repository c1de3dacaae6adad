/* SPDX-License-Identifier: Apache-2.0 */
/* moe_tkg.h - the Mixture-of-Experts block of a decoder layer, for token generation, in one C
 * call.
 *
 * For one expert e and one token's hidden row x (H values):
 *
 *     g = x . Wgate[e]      u = x . Wup[e]                 (I values each)
 *     g *= gate scale       u *= up scale                  (only with weight scales per row)
 *     g += gate bias        u += up bias
 *     g = max(min(g, gate upper), gate lower)              (each limit only if given; likewise u)
 *     m = act(g) * u
 *     y = m . Wdown[e];  y *= down scale;  y += down bias  (H values)
 *
 * and an output row is the sum of y over the token's experts, times the token's affinity for
 * each if asked.
 *
 *     #include <moe_tkg.h>
 *
 *     moe_tensor hidden = moe_tensor_2d(x, MOE_BF16, T, H);
 *     moe_tensor gate_up = moe_tensor_nd(w1, MOE_BF16, 4, (int64_t[]){E, H, 2, I});
 *     moe_tensor down = moe_tensor_nd(w2, MOE_BF16, 3, (int64_t[]){E, I, H});
 *     moe_tensor index = moe_tensor_2d(ids, MOE_I32, T, K);
 *     moe_tkg_args args = moe_tkg_args_init();
 *     args.hidden_input = &hidden;
 *     args.expert_gate_up_weights = &gate_up;
 *     args.expert_down_weights = &down;
 *     args.expert_index = &index;
 *     if (moe_tkg(NULL, &args, output, output_bytes) != MOE_OK) puts(moe_last_error());
 *
 * Symbols: T tokens, H hidden size, I intermediate size, K experts per token, E_L experts whose
 * weights are here (dimension 0 of the weights), E experts that expert_affinities has columns
 * for; nH = H / 512, nI = ceil(I / 512); I_p partitions of the MX down weights.
 * docs/operator.md gives the layouts in full, docs/numerics.md every rounding.
 *
 * The same bits: an output row depends on its token's hidden, index and affinity rows, on the
 * weights and their format and on the numerics mode, and on nothing else: not on T, the other
 * tokens, the number of threads, alignment, or the caller's floating-point environment (which
 * every call leaves as it found it).
 *
 * Errors: every function that can fail returns a moe_status, and moe_last_error() then says, for
 * the calling thread, which argument has which value and what the limit is.  A call that fails
 * has written nothing to its output.  The library never prints, exits or aborts.
 *
 * Threads: any number of threads may call moe_tkg at once, with one context or several. */
#ifndef MOE_TKG_H
#define MOE_TKG_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MOE_VERSION_MAJOR  0
#define MOE_VERSION_MINOR  1
#define MOE_VERSION_PATCH  0
#define MOE_VERSION_NUMBER (MOE_VERSION_MAJOR * 10000 + MOE_VERSION_MINOR * 100 + MOE_VERSION_PATCH)

#if defined(_WIN32)
#define MOE_API
#else
#define MOE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---------------------------------------------------------------------------------- */

typedef enum moe_status {
    MOE_OK = 0,
    MOE_E_NULL_ARG, /* a required pointer or parameter is missing */
    MOE_E_ABI,      /* struct_size, or experts, are of no version that this library knows */
    MOE_E_BAD_ENUM, /* an enumerator or a 0/1 flag is out of range */
    MOE_E_VALUE,    /* a scalar has no usable value (a NaN limit, block_size 0, 10,000 threads) */
    MOE_E_DIM,   /* a dimension is zero or negative where that has no meaning, or a rank is wrong */
    MOE_E_SHAPE, /* shapes of two tensors do not fit together */
    MOE_E_DTYPE, /* a tensor has an element type that its parameter does not take */
    MOE_E_LAYOUT, /* a tensor has a layout that its parameter does not take */
    /* parameters that are legal one by one and not together; the message names the rule */
    MOE_E_UNSUPPORTED,
    MOE_E_OVERFLOW,     /* a size does not fit in size_t, or the output buffer is too small */
    MOE_E_EXPERT_INDEX, /* an expert_index outside [0, E_L) */
    MOE_E_RANK_RANGE,   /* rank_id selects affinity columns outside [0, E) */
    MOE_E_ALIGN,        /* a pointer or a stride is not aligned to its element */
    /* the output overlaps an input (output == hidden_input is fine if both have as many bytes) */
    MOE_E_ALIAS,
    MOE_E_NOMEM, /* memory ran out; nothing is lost, the call can be repeated */
    MOE_E_ISA,   /* an ISA level that this machine or this build does not have */
    MOE_E_BUSY,  /* the context or the experts are in use by another thread */
    /* of moe_tkg_io.h, and of callbacks that read or write for this library */
    MOE_E_OPEN,   /* a file cannot be opened, or is of no kind that is read */
    MOE_E_READ,   /* reading failed or came up short */
    MOE_E_WRITE,  /* writing failed; nothing is left behind under the name */
    MOE_E_FORMAT, /* no sound file: the message names the rule and the offset */
    MOE_E_MODEL,  /* a sound file that is no model, or no layer, of a kind that is known here */
    MOE_E_STALE   /* packed experts of another layout, or of other weights than asked for */
} moe_status;

/* "MOE_E_SHAPE" etc.; "unknown moe_status" for anything else.  Never NULL. */
MOE_API const char *moe_status_name(moe_status status);

/* What went wrong in this thread's last call that failed: one line, such as "expert_index[3][1]
 * = 37: must be in [0, 32)".  "" if none failed.  Never NULL; valid until this thread's next
 * call. */
MOE_API const char *moe_last_error(void);

/* The library's version at run time, "0.1.0" and MOE_VERSION_NUMBER; compare with the macros at
 * compile time. */
MOE_API const char *moe_version(void);
MOE_API int moe_version_number(void);

/* ---- tensors --------------------------------------------------------------------------------- */

typedef enum moe_dtype {
    MOE_DTYPE_NONE = 0, /* not given */
    MOE_BF16,
    MOE_F16,
    MOE_F32,
    MOE_E4M3_IEEE, /* fp8, exponent 15 = inf and NaN, largest finite 240 */
    MOE_E4M3FN,    /* fp8, no inf, NaN = 0x7F and 0xFF, largest 448 */
    MOE_E8M0,      /* a scale byte s: 2^(s-127); 255 = NaN */
    MOE_MXFP4_X4,  /* 16-bit word of four e2m1 codes, position 0 in the lowest 4 bits */
    MOE_MXFP8_X4,  /* 32-bit word of four e4m3fn codes, position 0 in the lowest 8 bits */
    MOE_I32,
    MOE_U32,
    MOE_I64,
    MOE_E2M1_X2, /* a byte of two e2m1 codes, the first k in the low 4 bits: OCP MXFP4 */
    MOE_INT4_X2, /* a byte of two codes c of the integer c - 8, the first k in the low 4 bits */
    /* Blocks of neighbouring k with their own scales, as GGUF files have them: weights of a
     * moe_matrix only, element = block, without alignment. */
    MOE_Q8_0,       /* 32 k in 34 bytes: 8-bit integers, an f16 scale */
    MOE_Q4_0,       /* 32 k in 18 bytes: 4-bit integers, an f16 scale */
    MOE_Q4_K,       /* 256 k in 144 bytes: 4 bits, scale and minimum for each 32 */
    MOE_Q5_K,       /* 256 k in 176 bytes: 5 bits, likewise */
    MOE_Q6_K,       /* 256 k in 210 bytes: 6 bits, a scale for each 16 */
    MOE_GGML_MXFP4, /* 32 k in 17 bytes: e2m1, an e8m0 scale */
    MOE_GGML_NVFP4, /* 64 k in 36 bytes: e2m1, an unsigned e4m3 scale for each 16 */
    MOE_DTYPE_COUNT
} moe_dtype;

/* Where a tensor's elements lie.  HBM: row-major in the shape's order.  SBUF: the permuted
 * layouts of the operator, for hidden_input and the output only:
 *     plain          [128, T, H/128]  element (p, t, j) is h = p * (H/128) + j;
 *                                     with MX weights h = j * 128 + p
 *     pre-quantised  [128, H/512, T]  of MXFP8 words: position q of word (p, n, t) is
 *                                     h = q * (H/4) + n * 128 + p */
typedef enum moe_layout { MOE_LAYOUT_HBM = 0, MOE_LAYOUT_SBUF = 1 } moe_layout;

enum { MOE_MAX_RANK = 5 };

/* Describes memory that the caller owns and keeps unchanged during the call.  data: aligned to
 * one element (2 bytes for MXFP4_X4, 4 for MXFP8_X4); may be NULL when T = 0 (the
 * weights' too).  shape: in
 * elements, x4 words counted as one; dimensions past rank are not read. */
typedef struct moe_tensor {
    const void *data;
    moe_dtype dtype;
    moe_layout layout;
    int32_t rank;
    int64_t shape[MOE_MAX_RANK];
} moe_tensor;

/* Bytes of one element of dtype; 0 for MOE_DTYPE_NONE and for anything that is no dtype. */
MOE_API size_t moe_dtype_size(moe_dtype dtype);

/* How many k one element of dtype holds: 2 for MOE_INT4_X2, 32 for MOE_Q8_0, 4 for x4 words, ...;
 * 0 for anything that is no dtype. */
MOE_API size_t moe_dtype_k(moe_dtype dtype);
MOE_API const char *moe_dtype_name(
    moe_dtype dtype); /* "bf16", "mxfp4_x4", ...; "unknown" if none.  Never NULL. */

/* ---- parameters ------------------------------------------------------------------------------ */

typedef enum moe_affinity_scale {
    MOE_NO_SCALE = 0,
    MOE_POST_SCALE = 1,
    MOE_PRE_SCALE = 2,         /* of the operator's interface; refused */
    MOE_PRE_SCALE_DELAYED = 3, /* of the operator's interface; refused */
    /* Beyond the operator: the affinity multiplies an expert's input (Llama-4): the gate and up sums,
     * before their scales and biases; what experts give is then added as it is.  Affinities are
     * those of MOE_POST_SCALE, and so is what is left out. */
    MOE_INPUT_SCALE = 4
} moe_affinity_scale;

typedef enum moe_activation {
    MOE_SILU = 0,      /* g / (1 + exp(-g)) */
    MOE_GELU = 1,      /* 0.5 g (1 + erf(g / sqrt 2)) */
    MOE_GELU_TANH = 2, /* 0.5 g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) */
    MOE_SWISH = 3,     /* g / (1 + exp(-1.702 g)) */
    MOE_RELU = 4,      /* max(g, 0) */
    /* g / (1 + exp(-alpha g)), and (u + up_offset) in place of u: swiglu_alpha, swiglu_up_offset */
    MOE_SWIGLU = 5,
    MOE_RELU2 = 6 /* max(g, 0)^2 */
} moe_activation;

/* What the hidden input and the intermediate are rounded to before the products
 * (docs/numerics.md). */
typedef enum moe_act_mode {
    /* MXFP8 with MX weights in the operator's layouts, EXACT otherwise: the operator's own definition */
    MOE_ACT_DEFAULT = 0,
    MOE_ACT_EXACT, /* not quantised.  All weights */
    MOE_ACT_MXFP8, /* quantised to MXFP8 in the weights' blocks.  MXFP4 and MXFP8 weights */
    MOE_ACT_INT8   /* quantised to int8 in blocks of 32.  MXFP4, NVFP4 and integer weights */
} moe_act_mode;

/* An optional number: 0 is a value, so "given" is said apart. */
typedef struct moe_optional_float {
    int32_t given; /* 0 or 1 */
    float value;
} moe_optional_float;

typedef struct moe_optional_int {
    int32_t given; /* 0 or 1 */
    int64_t value;
} moe_optional_int;

typedef struct moe_experts moe_experts; /* packed experts: see below */

/* The operator's parameters by their names.  Make one with moe_tkg_args_init(): everything
 * optional is then "not given".  A NULL tensor is "not given".  A line "MX" is the shape where
 * the weights are MXFP4_X4 or MXFP8_X4. */
typedef struct moe_tkg_args {
    size_t struct_size; /* sizeof(moe_tkg_args) */

    /* [T, H] or [B, S, H] (T = B * S) HBM, or SBUF: bf16, f16, f32.  Pre-quantised: SBUF, MXFP8_X4,
     * with hidden_input_scale.  Required. */
    const moe_tensor *hidden_input;
    /* [E_L, H, 2, I], gate at index 0 of the third dimension and up at 1: bf16, f16, f32, e4m3.
     * MX [E_L, 128, 2, nH, I]
     * Required without experts. */
    const moe_tensor *expert_gate_up_weights;
    /* [E_L, I, H]: may differ in dtype from gate/up, but is MX if and only if gate/up is.
     * MX [E_L, I_p, nI, H]
     * Required without experts. */
    const moe_tensor *expert_down_weights;
    /* [T, E]: bf16, f16, f32.  Required with POST_SCALE (unless expert_affinities_eager is given),
     * else not read. */
    const moe_tensor *expert_affinities;
    /* [T, K]: i32, u32, i64.  Selective: the experts that run, each in [0, E_L).  All-expert: read
     * only to mask (global numbers, any value), may be NULL without. */
    const moe_tensor *expert_index;
    int32_t is_all_expert; /* 1: every expert for every token; 0: selective, T <= 128 */

    /* [1, 1]: i32, u32, i64.  Required in all-expert mode with POST_SCALE, else not read: local
     * expert e has affinity column rank_id * E_L + e. */
    const moe_tensor *rank_id;
    /* [E_L, 2, I]: bf16, f16, f32.
     * MX [E_L, I_p, 2, nI, 4] */
    const moe_tensor *expert_gate_up_bias;
    /* [E_L, H]: bf16, f16, f32. */
    const moe_tensor *expert_down_bias;
    /* f32 [E_L, 2, I] (per row) or [E_L, 2, 1] (static); both weight scales or neither.
     * MX e8m0 [E_L, 16, 2, nH, I], required */
    const moe_tensor *expert_gate_up_weights_scale;
    /* f32 [E_L, H] or [E_L, 1].
     * MX e8m0 [E_L, I_p / 8, nI, H], required */
    const moe_tensor *expert_down_weights_scale;
    /* MX e8m0 [128, nH, T], block b of 8 partitions at partition 32 * (b / 4) + b % 4: only in
     * all-expert mode, and then hidden_input is pre-quantised. */
    const moe_tensor *hidden_input_scale;
    const moe_tensor *gate_up_input_scale; /* of the operator's interface; refused if given */
    const moe_tensor *down_input_scale;    /* of the operator's interface; refused if given */

    /* 1: an expert that expert_index[t] does not name has affinity 0 for token t.  All-expert
     * with POST_SCALE only; without effect otherwise. */
    int32_t mask_unselected_experts;
    /* [T, K]: bf16, f16, f32.  Selective with POST_SCALE: used in place of
     * expert_affinities[t][expert_index[t][k]].  Refused in all-expert mode. */
    const moe_tensor *expert_affinities_eager;
    moe_affinity_scale expert_affinities_scaling_mode;
    moe_activation activation_fn;
    /* bf16, f16, f32; MOE_DTYPE_NONE: hidden_input's, bf16 if that is pre-quantised */
    moe_dtype output_dtype;
    moe_optional_float gate_clamp_upper_limit;
    moe_optional_float gate_clamp_lower_limit;
    moe_optional_float up_clamp_upper_limit;
    moe_optional_float up_clamp_lower_limit;
    /* 1: output [128, T, H/128] in hidden_input's SBUF layout; needs hidden_input in SBUF */
    int32_t output_in_sbuf;
    /* 1: skip (token, expert) pairs without affinity.  All-expert only.  The result is that of
     * 0: this library skips them always. */
    int32_t is_all_expert_dynamic;
    /* Checked against the operator's rule if given (docs/operator.md), chosen by the library if
     * not; no effect on the result. */
    moe_optional_int block_size;

    /* ---- beyond the operator ----------------------------------------------------------------- */

    moe_act_mode act_mode;
    /* Both required with MOE_SWIGLU, refused with every other activation.  Finite. */
    moe_optional_float swiglu_alpha;
    moe_optional_float swiglu_up_offset;
    /* act(g) = min(act(g), limit): the limit that some models put behind the activation instead of
     * before it (gate_clamp_upper_limit). */
    moe_optional_float act_clamp_upper_limit;
    /* 1: in selective mode a slot whose index is outside [0, E_L) contributes nothing instead of
     * being an error.  All-expert mode has no such slots: without effect there. */
    int32_t skip_invalid_experts;
    /* Packed experts in place of the two weights, their scales and their biases, which must then
     * all be NULL.  Kept by the caller until the call returns. */
    const moe_experts *experts;
} moe_tkg_args;

static inline moe_tkg_args moe_tkg_args_init(void)
{
    moe_tkg_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    return args;
}

static inline moe_tensor moe_tensor_2d(const void *data, moe_dtype dtype, int64_t d0, int64_t d1)
{
    moe_tensor t;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.dtype = dtype;
    t.rank = 2;
    t.shape[0] = d0;
    t.shape[1] = d1;
    return t;
}

static inline moe_tensor moe_tensor_nd(const void *data, moe_dtype dtype, int32_t rank,
                                       const int64_t *shape)
{
    moe_tensor t;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.dtype = dtype;
    t.rank = rank;
    for (int32_t i = 0; i < rank && i < MOE_MAX_RANK; i++) t.shape[i] = shape[i];
    return t;
}

static inline moe_optional_float moe_given_float(float value)
{
    moe_optional_float o;
    o.given = 1;
    o.value = value;
    return o;
}

static inline moe_optional_int moe_given_int(int64_t value)
{
    moe_optional_int o;
    o.given = 1;
    o.value = value;
    return o;
}

/* ---- context --------------------------------------------------------------------------------- */

/* Threads and working memory that calls reuse.  May be shared by any number of threads: calls on
 * one context run at the same time, one of them on the context's threads and the others each on
 * its caller's alone. */
typedef struct moe_context moe_context;

typedef struct moe_context_options {
    size_t struct_size; /* sizeof(moe_context_options) */
    /* Threads that work on one call, the caller's included: 1 to 1024, or 0 for MOE_NUM_THREADS
     * of the environment or, without that, as many as the affinity mask and the cgroup quota
     * of the process allow.  Fewer are used if the system does not give them;
     * moe_context_threads() says how many.  Those beyond the processors of the process stay asleep,
     * and no thread is woken for a call that would be over sooner.  A thread without work spins for
     * some 50 us before it sleeps. */
    int32_t threads;
    /* The highest ISA level to use, by name (moe_isa_level), or NULL for MOE_ISA of the
     * environment or, without that, the best of this machine. */
    const char *isa;
    /* Memory for the context and its calls; both or neither.  Called from any thread.  alignment
     * is a power of two. */
    void *(*allocate)(size_t bytes, size_t alignment, void *user);
    void (*release)(void *block, size_t bytes, void *user);
    void *user;
    /* Threads of the caller's own to run on, or NULL.  If given, the context makes no threads, and
     * `threads` is how many the caller's pool has.  Each loop of a call is one
     *
     *     parallel_for(body, arg, n, parallel_user)        2 <= n <= threads
     *
     * which runs body(arg, i) for every i < n, each once, on any threads at any time and order,
     * the calling one included, and returns when all have returned: an OpenMP `parallel for`, say.
     * A body evens its work out with those that run beside it, does not block, and sets and
     * restores its thread's floating-point environment.  parallel_for is called from the thread
     * that calls moe_tkg, by one call on the context at a time (a second that comes meanwhile runs
     * on its caller's thread alone), and must not throw, jump out or call this context.  The
     * library never keeps body or arg beyond the loop, nor frees parallel_user. */
    void (*parallel_for)(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user);
    void *parallel_user;
} moe_context_options;

static inline moe_context_options moe_context_options_init(void)
{
    moe_context_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    return options;
}

/* Makes a context in *context (NULL on failure).  options NULL: all defaults. */
MOE_API moe_status moe_context_create(const moe_context_options *options, moe_context **context);

/* Ends the context's threads and frees it.  MOE_E_BUSY, and nothing happens, while a call is
 * running on it.  NULL is fine.  Using a context after it was destroyed is undefined.  After a
 * fork the child may destroy or go on using its copy; its calls then run on their caller's
 * thread. */
MOE_API moe_status moe_context_destroy(moe_context *context);

MOE_API int32_t moe_context_threads(const moe_context *context); /* 1 for NULL */
MOE_API const char *moe_context_isa(
    const moe_context *context); /* the level in use; for NULL the machine's best */

/* The ISA levels that this machine and this build have, weakest first: i = 0, 1, ...; NULL past
 * the last. */
MOE_API const char *moe_isa_level(size_t i);

/* ---- packed experts -------------------------------------------------------------------------- */

/* An array that every expert has one of: [rows, columns], or [rows] (columns 1).  All strides are
 * in bytes, multiples of the element (blocks: any) and not negative, and may be anything that stays
 * inside the caller's memory: fused, interleaved and transposed tensors are strides.  0 repeats an expert, or
 * the one value of an array [rows]; between rows or columns of a matrix it is refused. */
typedef struct moe_array {
    moe_dtype dtype;            /* MOE_DTYPE_NONE: not given */
    const void *data;           /* of expert 0; expert e is expert_stride * e bytes further, ... */
    const void *const *experts; /* ... or, with data NULL, E_L pointers, one for each expert */
    int64_t expert_stride;      /* read only with data */
    int64_t row_stride;         /* 0 for an array [rows]: one value for all rows */
    int64_t column_stride;      /* the element's size where columns are neighbours; X2: 1 */
} moe_array;

/* A weight matrix [rows, k] of every expert: y[row] = sum over k of x[k] w[row][k].
 *
 *   weights                         scale                            scale_k, scale_rows
 *   bf16, f16, f32, e4m3_ieee,      none, or bf16, f16, f32 [rows]:  0, 0
 *   e4m3fn                          times the row's sum
 *   e4m3fn                          e8m0 [rows, k / 32]              32 (or 0), 0
 *   e4m3fn                          bf16, f16, f32                   128, 1 or more
 *                                   [ceil(rows / scale_rows), ceil(k / 128)]
 *   e2m1_x2 (a row is k / 2 bytes)  e8m0 [rows, k / 32]              32 (or 0), 0
 *   e2m1_x2                         e4m3fn [rows, k / 16] (NVFP4)    16, 0
 *   int4_x2 (k / 2 bytes)           bf16, f16 [rows, k / scale_k]    32, 64 or 128, 0
 *   blocks (MOE_Q8_0, ...)          none: they hold their own        0, 0
 *
 * k is a multiple of 32 (NVFP4: 16) with e2m1_x2, of scale_k with int4_x2, of a block's k with
 * blocks. */
typedef struct moe_matrix {
    moe_array weights;
    moe_array scale;
    moe_array bias; /* [rows]: bf16, f16, f32 */
    moe_array
        row_scale; /* [rows]: bf16, f16, f32, times the row's sum; only beside scales of blocks */
    int32_t scale_k, scale_rows;
} moe_matrix;

typedef enum moe_packing {
    MOE_PACK_PLAIN = 0,
    /* bf16 weights in about 12 bits each, without any loss: the same bits come out.  A panel that
     * would not get smaller stays as it is.  bf16 weights only. */
    MOE_PACK_LOSSLESS = 1
} moe_packing;

/* The weights of one layer, in either of two descriptions.  Make one with moe_experts_args_init(). */
typedef struct moe_experts_args {
    size_t struct_size; /* sizeof(moe_experts_args) */

    /* As checkpoints have them.  gate and up [I, H], down [H, I]; gate and up are of one dtype with
     * one kind of scale, and have scales and biases both or neither; down may differ.  gate not
     * given (weights.dtype MOE_DTYPE_NONE): experts without one, m = act(u). */
    int64_t E_L, H, I; /* with the operator's tensors 0: these say it */
    moe_matrix gate, up, down;

    /* For weights that are not in memory all at once.  If given, data and experts of all arrays are
     * NULL, and before experts first .. first + count - 1 (count at most fetch_count) are read,
     * fetch is called on the calling thread and says in *part, which holds a copy of these arguments
     * with E_L = count, where they are until the next call: data or experts, and strides.
     * A status other than MOE_OK ends the packing with it.  Called once for each expert, in order;
     * twice with MOE_PACK_LOSSLESS. */
    moe_status (*fetch)(void *fetch_user, int64_t first, int64_t count,
                        struct moe_experts_args *part);
    void *fetch_user;
    int64_t fetch_count;

    /* Or the operator's own, by their names and in the shapes of moe_tkg_args; gate.weights.dtype,
     * up's and down's are then MOE_DTYPE_NONE. */
    const moe_tensor *expert_gate_up_weights;
    const moe_tensor *expert_down_weights;
    const moe_tensor *expert_gate_up_bias;
    const moe_tensor *expert_down_bias;
    const moe_tensor *expert_gate_up_weights_scale;
    const moe_tensor *expert_down_weights_scale;

    moe_packing packing;
} moe_experts_args;

static inline moe_experts_args moe_experts_args_init(void)
{
    moe_experts_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    return args;
}

/* Dense [E_L, rows, columns] of one tensor: columns in k, moe_dtype_k of them an element.  Strides
 * that do not fit wrap around; no array of such a size is accepted. */
static inline moe_array moe_array_dense(const void *data, moe_dtype dtype, int64_t rows,
                                        int64_t columns)
{
    moe_array a;
    memset(&a, 0, sizeof a);
    a.dtype = dtype;
    a.data = data;
    a.column_stride = (int64_t)moe_dtype_size(dtype);
    const int64_t k = (int64_t)moe_dtype_k(dtype); /* of an element */
    a.row_stride = (int64_t)((uint64_t)(k > 1 ? columns / k : columns) * (uint64_t)a.column_stride);
    a.expert_stride = (int64_t)((uint64_t)rows * (uint64_t)a.row_stride);
    return a;
}

/* Bytes that moe_experts_create would take for these arguments: exactly.  With MOE_PACK_LOSSLESS
 * the weights are read, on context's threads; else no data pointer is followed, and all may be
 * NULL. */
MOE_API moe_status moe_experts_bytes(moe_context *context, const moe_experts_args *args,
                                     size_t *bytes);

/* Packs the experts of a layer into *experts (NULL on failure), on context's threads and with its
 * own allocator, if it has one, else on mapped pages, huge ones where the system gives them.
 * context NULL: on the calling thread alone.
 * The sources may be freed afterwards; beside the result nothing of their size is allocated.
 * The result never changes, serves any number of threads, contexts and ISA levels at once, and
 * needs no context to live on (an own allocator must).
 *
 * With experts from the operator's tensors a call gives the bits of the call with these tensors.
 * With row-major MX weights a block is 32 consecutive k, MOE_ACT_DEFAULT is MOE_ACT_EXACT, and
 * hidden_input is in HBM. */
MOE_API moe_status moe_experts_create(moe_context *context, const moe_experts_args *args,
                                      moe_experts **experts);

/* Frees.  MOE_E_BUSY, and nothing happens, while a call uses them.  NULL is fine.  Use after that
 * is undefined.  After a fork the child may go on using its copy, and destroy it unless a call used
 * them at the fork: that never ends there. */
MOE_API moe_status moe_experts_destroy(moe_experts *experts);

/* What is packed. */
typedef struct moe_experts_info {
    size_t struct_size; /* in: sizeof(moe_experts_info) */
    int64_t E_L, H, I;
    moe_dtype gate_up, down; /* of the weights' elements, as they were given */
    int32_t has_gate;        /* 0: experts without a gate matrix */
    moe_packing packing;
    size_t bytes; /* in all */
    /* that a call reads for one expert: weights, scales, biases; the mean of all experts */
    size_t expert_bytes;
} moe_experts_info;

MOE_API moe_status moe_experts_describe(const moe_experts *experts, moe_experts_info *info);

/* Packed experts as bytes of a layout that only this library reads: for a cache of packed layers.
 * write is called with one piece after another, read asked for them in the same order and sizes of
 * its own choosing; a status other than MOE_OK ends the call with it.  The bytes hold neither
 * pointers nor padding of any value but 0, and are the same for the same experts.
 *
 * moe_experts_read believes nothing: an image that this library would not have written, of whatever
 * origin, is refused (MOE_E_STALE: of another layout or version; MOE_E_FORMAT: damaged) before a
 * call could read outside it.  It takes no more than bytes, how many there are, says. */
MOE_API moe_status moe_experts_write(const moe_experts *experts,
                                     moe_status (*write)(void *user, const void *data,
                                                         size_t bytes),
                                     void *user);
MOE_API moe_status moe_experts_read(moe_context *context,
                                    moe_status (*read)(void *user, void *data, size_t bytes),
                                    void *user, size_t bytes, moe_experts **experts);

/* ---- the operator ---------------------------------------------------------------------------- */

/* Computes the block.  context: NULL runs on the calling thread alone with the machine's best
 * ISA level, whatever the environment says, and allocates for this call.  output: output_bytes
 * bytes, at least what moe_tkg_output() says, aligned to one element; untouched on error; may be
 * hidden_input's memory itself if both have as many bytes.  NULL is fine when T = 0.
 *
 * Cost: each expert that runs is read once.  Without packed experts its weights are packed first,
 * in every call, which takes several times as long as the rest at small T.  Scratch, kept by a
 * context: for that about 64 MB of packed experts (one at least); 8 bytes or
 * less for each of T * H; for each of T * K rows (in all-expert mode T * E_L, at most 512) 4 * H
 * bytes, and for at most 512 of them 4 * (H + I) or less; 24 to 64 for each of T * K (T * E_L).
 * The calling thread cannot be cancelled inside. */
MOE_API moe_status moe_tkg(moe_context *context, const moe_tkg_args *args, void *output,
                           size_t output_bytes);

/* moe_tkg on threads that are the caller's already: each of nth of them calls it, with its own ith
 * = 0 to nth - 1 and otherwise equal arguments, as a custom operator of ggml is called.  No
 * barrier is needed before or after.  The context's own threads are neither used nor woken (make
 * it with threads = 1); nth may be 1, exceed the context's threads, and differ from call to call.
 *
 *     void op(int ith, int nth, void *layer) { moe_tkg_part(context, ith, nth, args, y, bytes); }
 *
 * Thread 0 checks and runs the call, and the others work on its loops.  All return the same
 * status, each with moe_last_error() of its own, and none before all nth have come and the output
 * is complete (or, on error, untouched).  Until the last returns, args, tensors and output belong
 * to the call.  Threads that wait spin for some 50 us and then sleep.
 *
 * MOE_E_NULL_ARG if context is NULL, MOE_E_VALUE if ith or nth is out of range (nth: 1 to 1024),
 * at once and without waiting for others; then all that moe_tkg returns.
 *
 * Threads: on one context, one such call after another: a part of the next may begin as soon as
 * any part of this one has returned.  Calls of moe_tkg on the context may run beside it.
 * Undefined: parts that disagree about nth or args, two with the same ith, fewer than nth (those
 * that came wait for the rest). */
MOE_API moe_status moe_tkg_part(moe_context *context, int32_t ith, int32_t nth,
                                const moe_tkg_args *args, void *output, size_t output_bytes);

/* What moe_tkg would write for these arguments: dtype, layout, rank and shape in *output (data
 * NULL), its bytes in *bytes. Reads no tensor's data (data pointers may be NULL) and makes every
 * check of moe_tkg that needs none. */
MOE_API moe_status moe_tkg_output(const moe_tkg_args *args, moe_tensor *output, size_t *bytes);

/* ---- the router ------------------------------------------------------------------------------ */

typedef enum moe_router_score {
    MOE_SCORE_SOFTMAX = 0,      /* over all E */
    MOE_SCORE_TOPK_SOFTMAX = 1, /* over the K that were chosen by their logits; the rest 0 */
    MOE_SCORE_SIGMOID = 2,
    MOE_SCORE_SQRT_SOFTPLUS = 3 /* sqrt(log(1 + exp(logit))) */
} moe_router_score;

/* What groups of experts are ranked by. */
typedef enum moe_group_rank {
    MOE_GROUP_TWO_BEST = 0, /* the sum of their two best experts (DeepSeek-V3) */
    MOE_GROUP_BEST = 1      /* their best expert (DeepSeek-V2) */
} moe_group_rank;

/* For each token t: logits = weights . x[t] + bias, scores of them, the K experts with the largest
 * score + selection_bias (without one the largest logits, which come in the same order; ties: the
 * lowest index first; NaN last), and their weights: score, without that bias, divided by the sum
 * of the K if normalize, times scale.  With groups the experts are neighbours in n_group groups of
 * E / n_group, and only those of the topk_group best groups are chosen from: a group's rank is its
 * best or the sum of its two best (score + selection_bias; with TOPK_SOFTMAX logits).
 * docs/numerics.md has every rounding.  Make one with moe_router_args_init(). */
typedef struct moe_router_args {
    size_t struct_size;       /* sizeof(moe_router_args) */
    const moe_tensor *x;      /* [T, H] or [B, S, H], HBM: bf16, f16, f32 */
    int64_t E;                /* at most 4096 */
    int64_t K;                /* 1 to min(E, 128) */
    moe_array weights;        /* [E, H]: bf16, f16, f32; strides say how it lies */
    moe_array bias;           /* [E]: bf16, f16, f32, or none */
    moe_array selection_bias; /* [E]: bf16, f16, f32, or none; not with TOPK_SOFTMAX */
    moe_router_score score;
    int32_t normalize;           /* 1: divide by the sum of the K; no effect with TOPK_SOFTMAX */
    float normalize_epsilon;     /* added to that sum: 1e-20 in DeepSeek-V3; 0 or more */
    float scale;                 /* times the weights: 1 for none */
    int32_t n_group, topk_group; /* 0, 0 (or 1, 1): no groups */
    moe_group_rank group_rank;
} moe_router_args;

static inline moe_router_args moe_router_args_init(void)
{
    moe_router_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.scale = 1.0f;
    return args;
}

/* Where the results go: T * K or T * E values of the caller's memory each; NULL: not wanted. */
typedef struct moe_router_output {
    int32_t *index;    /* [T, K], in descending order of what they were chosen by */
    float *weights;    /* [T, K] */
    float *logits;     /* [T, E] */
    float *affinities; /* [T, E]: the weights at the chosen, 0 elsewhere */
    float *scores;     /* [T, E]: of all experts, neither normalised nor scaled; TOPK_SOFTMAX: as
                        * affinities */
} moe_router_output;

/* Routes T tokens (any T) on context's threads; NULL: on the calling one.  Outputs must not overlap
 * inputs; untouched on error. */
MOE_API moe_status moe_router_topk(moe_context *context, const moe_router_args *args,
                                   const moe_router_output *output);

/* ---- the block ------------------------------------------------------------------------------- */

/* RMSNorm, router, experts, shared expert: a layer's block in one call.  Each part but the experts
 * is optional.  Make one with moe_block_args_init().
 *
 *     n[t] = x[t] / sqrt(sum(x[t]^2) / norm_H + norm_epsilon) * gamma, rounded to x's dtype
 *     index, weights = router(n);  out[t] = sum of the experts' rows + g * shared(n[t])
 *     g = sigmoid(shared_gate . n[t]), 1 without shared_gate */
typedef struct moe_block_args {
    size_t struct_size; /* sizeof(moe_block_args) */

    /* hidden_input (here x) in HBM, the weights or experts, activation, limits, output_dtype,
     * act_mode, block_size, ...: as for moe_tkg.  is_all_expert = 1: local experts
     * rank_id * E_L .. of the router's E, masked to the chosen ones.  Else the E of the router are
     * the E_L here, or more with skip_invalid_experts.  expert_index, the affinities and
     * mask_unselected_experts are not given: the router makes them.  NO_SCALE counts as POST_SCALE. */
    moe_tkg_args experts;

    moe_array gamma; /* [H]: bf16, f16, f32; MOE_DTYPE_NONE: no norm */
    float norm_epsilon;
    int64_t norm_H; /* what the sum of squares is divided by; 0: H */

    moe_router_args router; /* x is not given: it is n */

    /* Packed with E_L = 1 and the same H, any I and format; NULL: none.  Its activation and limits
     * are those of experts; its output is not scaled. */
    const moe_experts *shared;
    moe_array shared_gate; /* [H]: bf16, f16, f32; MOE_DTYPE_NONE: none */

    /* Also wanted: [T, E] of the router, or NULL. */
    moe_router_output routed;
} moe_block_args;

static inline moe_block_args moe_block_args_init(void)
{
    moe_block_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.experts = moe_tkg_args_init();
    args.router = moe_router_args_init();
    return args;
}

/* output: [T, H] of experts.output_dtype, or hidden_input's type; may be hidden_input's memory if
 * both have as many bytes.  Errors and threads: as moe_tkg, T too.  Scratch: that of the two calls
 * on experts, and 2 to 16 bytes for each of T * H. */
MOE_API moe_status moe_block(moe_context *context, const moe_block_args *args, void *output,
                             size_t output_bytes);

#ifdef __cplusplus
}
#endif
#endif
