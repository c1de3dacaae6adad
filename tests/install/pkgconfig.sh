#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# pkgconfig.sh STAGE - builds example.c and example_io.c against the libraries installed in STAGE by pkg-config: as C and
# as C++, against the shared and the static ones.  CC and CXX choose the compilers.
set -eu
stage=$1
PKG_CONFIG_PATH=$(dirname "$(find "$stage" -name moe_tkg.pc)")
lib=$(dirname "$PKG_CONFIG_PATH")
export PKG_CONFIG_PATH
cd "$(dirname "$0")"

warnings='-Wall -Wextra -Wshadow -Wconversion -Werror -pedantic'
both() { # both EXAMPLE MODULE LIBRARIES: with MODULE's shared libraries, and with its LIBRARIES from archives
    cflags=$(pkg-config --cflags "$2")
    shared=$(pkg-config --libs "$2")
    static=$(pkg-config --static --libs "$2")
    for library in $3; do
        static=$(echo "$static" | sed "s/-l$library\\b/-Wl,-Bstatic -l$library -Wl,-Bdynamic/")
    done
    # shellcheck disable=SC2086 # lists of flags
    for link in "$shared" "$static"; do
        "${CC:-cc}" -std=c11 $warnings $cflags "$1" $link -o "$stage/example"
        LD_LIBRARY_PATH=$lib "$stage/example"
        "${CXX:-c++}" -std=c++11 $warnings $cflags -x c++ "$1" -x none $link -o "$stage/example"
        LD_LIBRARY_PATH=$lib "$stage/example"
    done
}
both example.c moe_tkg moe_tkg
both example_io.c moe_tkg_io "moe_tkg_io moe_tkg"
