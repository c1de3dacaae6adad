#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# check_readme.sh README STAGE - builds README's C example, as the README says to, against the library installed in STAGE,
# and compares what it prints with the README.
# shellcheck disable=SC2016
set -eu
readme=$(realpath "$1") stage=$2
PKG_CONFIG_PATH=$(dirname "$(find "$stage" -name moe_tkg.pc)")
export PKG_CONFIG_PATH
LD_LIBRARY_PATH=$(dirname "$PKG_CONFIG_PATH")
export LD_LIBRARY_PATH

mkdir -p "$stage/readme"
cd "$stage/readme"
sed -n '/^```c$/,/^```$/{/^```/d;p;}' "$readme" >example.c
[ -s example.c ] || { echo "no C example in $readme" >&2; exit 1; }
# shellcheck disable=SC2046 # a list of flags
cc example.c $(pkg-config --cflags --libs moe_tkg)
want=$(sed -n 's/^It prints `\([^`]*\)`.*/\1/p' "$readme")
got=$(./a.out)
[ "$got" = "$want" ] || { echo "the example prints '$got', the README says '$want'" >&2; exit 1; }
