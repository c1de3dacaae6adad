#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# find_package.sh STAGE - builds example.c and example_io.c against the libraries installed in STAGE by find_package: as C
# and as C++, against the shared and the static ones.
set -eu
stage=$1 build=$1.consumer
rm -rf "$build"
cmake -S "$(dirname "$0")" -B "$build" -DCMAKE_PREFIX_PATH="$stage" >/dev/null
cmake --build "$build" >/dev/null
for library in moe_tkg moe_tkg_static moe_tkg_io moe_tkg_io_static; do
    "$build/c_$library"
    "$build/cxx_$library"
done
