#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# check_readme.sh README STAGE - builds README's C examples, as the README says to, against the library installed in STAGE,
# with the path of a small model as its argument, and compares what each prints with the README: the lines between backquotes in the sentence "It prints ..." after it.
# shellcheck disable=SC2016
set -eu
readme=$(realpath "$1") stage=$2 model=$(realpath fixtures/gpt_oss_mxfp4)
PKG_CONFIG_PATH=$(dirname "$(find "$stage" -name moe_tkg.pc)")
export PKG_CONFIG_PATH
LD_LIBRARY_PATH=$(dirname "$PKG_CONFIG_PATH")
export LD_LIBRARY_PATH

mkdir -p "$stage/readme"
cd "$stage/readme"
examples=$(grep -c '^```c$' "$readme") || { echo "no C example in $readme" >&2; exit 1; }
sentences=$(grep -c '^It prints ' "$readme") || true
[ "$sentences" = "$examples" ] || { echo "$examples C examples, and $sentences times 'It prints'" >&2; exit 1; }

for n in $(seq "$examples"); do
    awk -v n="$n" '/^```c$/ { inside = ++block == n; next } /^```$/ { inside = 0 } inside' "$readme" >example.c
    if grep -q moe_tkg_io.h example.c; then library=moe_tkg_io; else library=moe_tkg; fi
    # shellcheck disable=SC2046 # a list of flags
    cc example.c $(pkg-config --cflags --libs $library)
    want=$(sed -n 's/^It prints \(`[^.]*`\)\..*/\1/p' "$readme" | sed -n "${n}p" | grep -o '`[^`]*`' | tr -d '`')
    got=$(./a.out "$model")
    [ "$got" = "$want" ] || { echo "example $n prints '$got', the README says '$want'" >&2; exit 1; }
done
