#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# stage.sh BUILD STAGE - installs BUILD into STAGE, and into a DESTDIR, and checks that every file is in its place.
set -eu
build=$1 stage=$2
fail() { echo "stage.sh: $*" >&2; exit 1; }

rm -rf "$stage" "$stage.destdir"
cmake --install "$build" --prefix "$stage" >/dev/null
DESTDIR=$stage.destdir cmake --install "$build" --prefix /usr >/dev/null

for root in "$stage" "$stage.destdir/usr"; do
    for file in include/moe_tkg.h include/moe_tkg_io.h bin/moe-tkg share/man/man1/moe-tkg.1; do
        [ -f "$root/$file" ] || fail "$root/$file is missing"
    done
    pc=$(find "$root" -name moe_tkg.pc)
    [ -n "$pc" ] || fail "no moe_tkg.pc in $root"
    lib=$(dirname "$(dirname "$pc")")
    [ -f "$lib/cmake/moe_tkg/moe_tkgConfig.cmake" ] || fail "the CMake package is missing"
    for library in libmoe_tkg libmoe_tkg_io; do
        [ -f "$lib/pkgconfig/${library#lib}.pc" ] || fail "${library#lib}.pc is missing"
        [ -f "$lib/$library.a" ] || fail "$lib/$library.a is missing"
        soname=$(readelf -d "$lib/$library.so" | sed -n 's/.*Library soname: \[\(.*\)\]/\1/p')
        [ "$soname" = $library.so.0 ] || fail "soname is '$soname', not $library.so.0"
        [ -f "$lib/$soname" ] || fail "$lib/$soname is missing"
    done
done
grep -rlF "$build" "$stage" --include='*.pc' --include='*.cmake' --include='*.h' &&
    fail "the files above name the build directory"

version=$("$stage/bin/moe-tkg" --version)
grep -q "\"$version\"" "$stage/share/man/man1/moe-tkg.1" || fail "the man page is not that of $version"
