# SPDX-License-Identifier: Apache-2.0
# xxhash.cmake - finds the header of xxHash, whose checksums packed layers have; nothing of it is linked.

find_path(XXHASH_INCLUDE_DIR xxhash.h)
mark_as_advanced(XXHASH_INCLUDE_DIR)
if(NOT XXHASH_INCLUDE_DIR)
    message(FATAL_ERROR "Packed layers need the header of xxHash, which is not here.\n"
        "  Install it:                      apt-get install libxxhash-dev\n"
        "  or build the library by itself:  cmake -D MOE_BUILD_IO=OFF ...")
endif()
target_include_directories(moe_io_objects SYSTEM PRIVATE ${XXHASH_INCLUDE_DIR})
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    target_sources(moe_io_objects PRIVATE src/io/hash_avx2.c)
    set_source_files_properties(src/io/hash_avx2.c PROPERTIES COMPILE_OPTIONS -mavx2)
endif()
