#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# pkgconfig.sh STAGE - builds example.c against the library installed in STAGE by pkg-config: as C and as C++, against the
# shared and the static library.  CC and CXX choose the compilers.
set -eu
stage=$1
PKG_CONFIG_PATH=$(dirname "$(find "$stage" -name moe_tkg.pc)")
lib=$(dirname "$PKG_CONFIG_PATH")
export PKG_CONFIG_PATH
cd "$(dirname "$0")"

warnings='-Wall -Wextra -Wshadow -Wconversion -Werror -pedantic'
cflags=$(pkg-config --cflags moe_tkg)
shared=$(pkg-config --libs moe_tkg)
static=$(pkg-config --static --libs moe_tkg | sed 's/-lmoe_tkg/-Wl,-Bstatic -lmoe_tkg -Wl,-Bdynamic/')
# shellcheck disable=SC2086 # lists of flags
for link in "$shared" "$static"; do
    "${CC:-cc}" -std=c11 $warnings $cflags example.c $link -o "$stage/example"
    LD_LIBRARY_PATH=$lib "$stage/example"
    "${CXX:-c++}" -std=c++11 $warnings $cflags -x c++ example.c -x none $link -o "$stage/example"
    LD_LIBRARY_PATH=$lib "$stage/example"
done
