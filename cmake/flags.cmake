# SPDX-License-Identifier: Apache-2.0
# flags.cmake - how every file of the project is compiled, tools and tests included.

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

# The order of every rounding is part of the definition (docs/numerics.md): the compiler must not fuse a product and a sum.
add_compile_options(-ffp-contract=off)

add_compile_options(-Wall -Wextra -Wconversion -Wshadow -Wvla -Wmissing-prototypes -Wstrict-prototypes)
if(MOE_WERROR)
    add_compile_options(-Werror)
endif()

add_compile_options(-fstack-protector-strong)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|i.86)$")
    add_compile_options(-fcf-protection)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
    add_compile_options(-mbranch-protection=standard)
endif()
add_link_options(-Wl,-z,relro,-z,now,-z,noexecstack)

set(moe_instrument "")
foreach(sanitizer ${MOE_SANITIZE})
    list(APPEND moe_instrument -fsanitize=${sanitizer})
endforeach()
if(MOE_SANITIZE)
    list(APPEND moe_instrument -fno-sanitize-recover=all -fno-omit-frame-pointer)
endif()
if(MOE_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
        message(FATAL_ERROR "MOE_FUZZ needs clang: cmake --preset fuzz, or -D CMAKE_C_COMPILER=clang")
    endif()
    list(APPEND moe_instrument -fsanitize=fuzzer-no-link)
endif()
if(MOE_COVERAGE)
    list(APPEND moe_instrument --coverage)
endif()

if(moe_instrument)
    add_compile_options(${moe_instrument})
    add_link_options(${moe_instrument})
else() # the sanitizers bring their own checks of the C library's calls
    add_compile_options($<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE> $<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=2>)
endif()
