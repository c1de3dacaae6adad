# SPDX-License-Identifier: Apache-2.0
# isa.cmake - the kernels: a file for each instruction set of the processor that is compiled for.
#
# Its compiler flags go to that file and to nothing else; src/cpu.c chooses at run time.

function(moe_isa level)
    target_sources(moe_objects PRIVATE src/isa/${level}.c)
    set_source_files_properties(src/isa/${level}.c PROPERTIES COMPILE_OPTIONS "${ARGN}")
endfunction()

moe_isa(scalar)

# gcc's analyzer takes minutes and gigabytes for unrolled vector loops; scalar.c has their contract.
if(CMAKE_C_FLAGS MATCHES "-fanalyzer")
    set(unanalyzed -fno-analyzer)
    # It also knows no shifts of vectors (gcc 12: "shift by count 8 >= precision of type 3") and loses what is in them.
    set_source_files_properties(src/pack_bf12.c src/pack_blocks.c src/pack_matrix.c src/pack_words.c
        PROPERTIES COMPILE_OPTIONS -fno-analyzer)
    # Nor does it see that the first n of a list are written, or that a list frees what it took.
    set_source_files_properties(src/router.c PROPERTIES COMPILE_OPTIONS -Wno-analyzer-use-of-uninitialized-value)
    set_source_files_properties(src/io/checkpoint_files.c src/io/layer_pieces.c
        PROPERTIES COMPILE_OPTIONS -Wno-analyzer-malloc-leak)
endif()
# So do the places of variables for a debugger.
if(CMAKE_C_COMPILER_ID STREQUAL GNU)
    list(APPEND unanalyzed -fno-var-tracking)
endif()
# A sanitizer takes minutes for each of the widest; avx2 has the same loops, and tests/test_kernels.c guard pages.
if(MOE_SANITIZE)
    set(unsanitized -fno-sanitize=all)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    set(avx2 -mavx2 -mfma -mf16c)
    set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
    set(avx512vnni ${avx512} -mavx512vnni -mavx512vbmi -mavx512vbmi2)
    set(avx512bf16 ${avx512vnni} -mavx512bf16)
    moe_isa(avx2 ${avx2} ${unanalyzed})
    foreach(level avx512 avx512vnni avx512bf16)
        moe_isa(${level} ${${level}} ${unanalyzed} ${unsanitized})
    endforeach()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    if(CMAKE_C_COMPILER_ID STREQUAL GNU) # it else moves loads so far up that sums go to the stack
        set(in_order -fno-schedule-insns)
    endif()
    moe_isa(neon -march=armv8-a ${in_order} ${unanalyzed})
    moe_isa(neon_dotprod -march=armv8.2-a+dotprod ${in_order} ${unanalyzed})
    moe_isa(neon_i8mm -march=armv8.2-a+dotprod+i8mm ${in_order} ${unanalyzed})
endif()
