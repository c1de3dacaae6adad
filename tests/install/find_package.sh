#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# find_package.sh STAGE - builds example.c against the library installed in STAGE by find_package: as C and as C++, against
# the shared and the static library.
set -eu
stage=$1 build=$1.consumer
rm -rf "$build"
cmake -S "$(dirname "$0")" -B "$build" -DCMAKE_PREFIX_PATH="$stage" >/dev/null
cmake --build "$build" >/dev/null
for program in c_moe_tkg c_moe_tkg_static cxx_moe_tkg cxx_moe_tkg_static; do
    "$build/$program"
done
