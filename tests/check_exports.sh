#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# check_exports.sh LIBRARY.SO LIBRARY.A HEADER - what the libraries give to and take from a process that loads them: libmoe_tkg,
# or libmoe_tkg_io, which needs it and may write files.
set -eu
export LC_ALL=C
so=$1 archive=$2 header=$3 bad=0
case $header in
*_io.h) version=MOE_IO_0 may_need='libmoe_tkg\.so\.0' may_import=write some='moe_model_open moe_layer_args moe_io_last_error' ;;
*) version=MOE_0 may_need='libm\.so\.6' may_import='' some='moe_tkg moe_tkg_output moe_last_error moe_version' ;;
esac
fail() { echo "$*" >&2; bad=1; }
none() { # none WHAT LINES: fails with WHAT if there are any LINES
    [ -z "$2" ] || fail "$1: $(echo "$2" | tr '\n' ' ')"
}

exported=$(nm -D --defined-only --format=posix "$so" | sed 's/[ @].*//' | sort -u)
for symbol in $some; do
    echo "$exported" | grep -qx "$symbol" || fail "$symbol is not exported"
done
none "exported, and not of the API" "$(echo "$exported" | grep -v -e '^moe_' -e "^$version\$" || true)"

# The header declares exactly what is exported.
declared=$(sed -n 's/^MOE_API [^(]*[ *]\(moe_[a-z0-9_]*\)(.*/\1/p' "$header" | sort)
[ "$declared" = "$(echo "$exported" | grep '^moe_')" ] ||
    fail "the header declares: $declared; exported are: $exported"

# It never prints, ends the process or changes what the process shares.
imported=$(nm -D --undefined-only --format=posix "$so" | sed 's/[ @].*//' | grep -vx "${may_import:-none}" | sort -u)
none "imported" "$(echo "$imported" | grep -xE \
    '_?exit|_Exit|quick_exit|abort|__assert_fail|f?puts|f?putc|putchar|v?d?f?printf|__v?f?printf_chk|perror|stdout|stderr|write|signal|sigaction|system|exec.*|dlopen|srand|rand|setenv|putenv|setlocale|atexit|on_exit' || true)"

# In a static link everything global of the objects is visible: the prefix keeps it apart.
none "global in $archive, outside the prefix" "$(nm -g --defined-only --format=posix "$archive" 2>/dev/null | sed -n 's/ [A-Z] .*//p' |
    grep -v '^moe_' || true)"

none "needed" "$(readelf -d "$so" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' |
    grep -vE "^(libc\.so\.6|libm\.so\.6|$may_need|libpthread\.so\.0|ld-linux.*|libgcc_s\.so\.1)\$" || true)"

# No code at load time that changes the floating-point state (-ffast-math at link time adds crtfastmath.o).
none "at load time" "$(nm "$so" | grep -E 'set_fast_math|crtfastmath' || true)"

dynamic=$(readelf -dW "$so") segments=$(readelf -lW "$so")
echo "$dynamic" | grep -q 'BIND_NOW\|FLAGS_1.*NOW' || fail "not linked with -z now"
echo "$segments" | grep -q GNU_RELRO || fail "no RELRO"
echo "$segments" | grep 'GNU_STACK' | grep -q 'RW ' || fail "executable stack"
none "text relocations" "$(echo "$dynamic" | grep TEXTREL || true)"
exit $bad
