#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# test_tool.sh TOOL - the command moe-tkg from outside: exit codes, messages, results, and files and outputs that misbehave.
#
# MOE_SHARED_DIR (../shared): where the whole set of golden cases may be; without it the set in tests/golden is all.
set -u
tool=$1
here=$(cd "$(dirname "$0")" && pwd)
golden=$here/golden/moe_tkg
shared=${MOE_SHARED_DIR:-$here/../../shared}
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
failures=0

# ---- a small harness -------------------------------------------------------------------------

failed() { # failed MESSAGE: counts, and shows the last command's output
    failures=$((failures + 1))
    echo "FAILED: $*" >&2
    head -n 5 "$tmp/out" "$tmp/err" >&2
}

expect() { # expect CODE COMMAND...: runs it, output to $tmp/out and $tmp/err
    code=$1
    shift
    "$@" >"$tmp/out" 2>"$tmp/err"
    got=$?
    [ "$got" = "$code" ] || failed "$* exits with $got, not $code"
}

out_has() { grep -q -- "$1" "$tmp/out" || failed "stdout lacks '$1'"; }
err_has() { grep -q -- "$1" "$tmp/err" || failed "stderr lacks '$1'"; }
out_lacks() { if grep -q -- "$1" "$tmp/out"; then failed "stdout has '$1'"; fi; }
silent() { [ ! -s "$tmp/$1" ] || failed "std$1 is not empty"; }
one_line() { [ "$(wc -l <"$tmp/err")" = 1 ] || failed "stderr is not one line"; }
last_line() { [ "$(tail -n 1 "$tmp/out")" = "$1" ] || failed "the last line is not '$1'"; }

usage() { # usage WORDS COMMAND...: a bad command line, answered by one line on stderr that has these words
    words=$1
    shift
    expect 2 "$@"
    silent out
    one_line
    err_has "$words"
    err_has '--help'
}

change() { # change FILE SED-SCRIPT: a copy of FILE with its header changed; prints its path
    changed=$tmp/$((changes = changes + 1)).safetensors
    LC_ALL=C sed "$2" "$1" >"$changed"
}
changes=0

bf16=$golden/bf16_sel_post_silu_odd_i33_t5.safetensors
mx=$golden/mxfp4_all_none_silu_i64_t1.safetensors
static=$golden/fp8static_bf16_sel_post_silu_k2_t3.safetensors

# ---- help, version, bad command lines --------------------------------------------------------

expect 0 "$tool" --version
out_has '^moe-tkg [0-9]*\.[0-9]*\.[0-9]*$'
expect 0 "$tool" --help
for command in demo verify run info; do
    out_has "^  $command "
done
for command in demo verify run info; do
    expect 0 "$tool" $command --help
    out_has "^usage: moe-tkg $command"
    out_has '^Example: moe-tkg'
    out_has '^Exit codes:'
    out_has '--json'
    silent err
    usage "moe-tkg $command: bad option '--frobnicate'" "$tool" $command --frobnicate
    usage "bad option '-x'" "$tool" $command -x
    usage "bad option '--json=1'" "$tool" $command --json=1
done
usage 'no command' "$tool"
usage 'no such command' "$tool" frobnicate
usage 'no FILE' "$tool" verify
usage 'needs a value' "$tool" verify --gate
usage '--gate loose' "$tool" verify --gate loose "$bf16"
usage '--act fp8' "$tool" verify --act fp8 "$bf16"
for number in -1 1025 x 1x '' ' 1' 99999999999999999999; do
    usage '--threads' "$tool" verify --threads "$number" "$bf16"
done
usage 'no-such-isa' "$tool" verify --isa no-such-isa "$bf16"
usage 'exactly one FILE' "$tool" verify --candidate "$bf16" "$bf16" "$mx"
usage 'needs one CASE' "$tool" run "$bf16"
usage 'needs one CASE' "$tool" run --out "$tmp/none"
usage 'takes no argument' "$tool" info x
usage 'takes no argument' "$tool" demo x
usage '--seed' "$tool" demo --seed -1
for list in 0 129 1,x ',' 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17; do
    usage '--tokens' "$tool" demo --tokens "$list"
done

# ---- verify: what passes ---------------------------------------------------------------------

cases=$(find "$golden" -name '*.safetensors' | wc -l)
for gate in strict upstream bound; do
    expect 0 "$tool" verify --gate $gate "$golden"/*.safetensors
    last_line "$cases passed, 0 failed"
    [ "$(grep -c "^ok  *[a-z0-9_]*  *error  *[0-9.e+-]*  $gate [0-9.e+-]*" "$tmp/out")" = "$cases" ] ||
        failed "not $cases lines of ok at --gate $gate"
    silent err
done
if [ -d "$shared/golden/moe_tkg" ]; then
    expect 0 "$tool" verify "$shared"/golden/moe_tkg/*.safetensors
    last_line "$(find "$shared/golden/moe_tkg" -name '*.safetensors' | wc -l) passed, 0 failed"
fi

# Tolerances that the file does not give come out the same by rule.
expect 0 "$tool" verify "$bf16" "$static" "$mx" "$golden/f32_sel_post_gelu_gateclamp_k1_t128.safetensors"
sed 's/ok  *[^ ]*//' "$tmp/out" >"$tmp/given"
set --
for file in "$bf16" "$static" "$mx" "$golden/f32_sel_post_gelu_gateclamp_k1_t128.safetensors"; do
    change "$file" 's/"rtol_strict"/"rtol_STRICT"/; s/"atol"/"ATOL"/'
    set -- "$@" "$changed"
done
expect 0 "$tool" verify "$@"
sed 's/ok  *[^ ]*//' "$tmp/out" | sed 's/^  *//' >"$tmp/by-rule"
sed 's/^  *//' "$tmp/given" | cmp -s - "$tmp/by-rule" || failed "tolerances by rule differ from the file's"

# ---- verify: what does not pass --------------------------------------------------------------

change "$bf16" 's/"silu"/"relu"/'
wrong=$changed
change "$bf16" 's/"POST_SCALE"/"PRE_SCALE" /'
refused=$changed
change "$bf16" 's/"silu"/"mish"/'
unknown=$changed
head -c 5000 "$bf16" >"$tmp/truncated.safetensors"
unreadable=$tmp/truncated.safetensors

expect 1 "$tool" verify "$wrong"
out_has '^FAIL .* error .* strict .* expected '
last_line '0 passed, 1 failed'
expect 3 "$tool" verify "$refused" "$wrong"
out_has '^REFUSED .*expert_affinities_scaling_mode'
last_line '0 passed, 2 failed'
expect 3 "$tool" verify "$unknown"
out_has '^REFUSED .*activation_fn = mish'
expect 2 "$tool" verify "$bf16" "$wrong" "$refused" "$unreadable"
out_has '^UNREADABLE '
last_line '1 passed, 3 failed'

is_unreadable() { # is_unreadable FILE [OPTION...]
    expect 2 "$tool" verify "$@"
    out_has '^UNREADABLE '
    last_line '0 passed, 1 failed'
    silent err
}
: >"$tmp/empty.safetensors"
mkfifo "$tmp/fifo.safetensors"
is_unreadable "$tmp/empty.safetensors"
is_unreadable "$tmp/fifo.safetensors"
is_unreadable "$tmp"
is_unreadable "$tmp/missing.safetensors"
is_unreadable /dev/null
is_unreadable -
for script in 's/"is_all_expert": *"0"/"is_all_expert":"2"/' 's/"atol": *"1e-05"/"atol":"1e-0x"/' \
    's/"hidden_input"/"hidden_inpuT"/' 's/"expert_down_weights"/"expert_down_WEIGHTS"/'; do
    change "$bf16" "$script"
    if cmp -s "$bf16" "$changed"; then failed "'$script' changes nothing"; fi
    is_unreadable "$changed"
done
change "$mx" 's/"mxfp4_x4"/"mxfp8_x4"/'
is_unreadable "$changed"

# Nothing is expected of a case that is judged by the oracle.
change "$bf16" 's/"expected"/"unwanted"/'
is_unreadable "$changed"
expect 0 "$tool" verify --gate bound "$changed"

# A name cannot drive the terminal.
cp "$unreadable" "$tmp/$(printf 'a\033[31m').safetensors"
expect 2 "$tool" verify "$tmp"/a*.safetensors
out_lacks "$(printf '\033')"

# ---- verify: modes ---------------------------------------------------------------------------

expect 0 "$tool" verify --act mxfp8 "$mx"
out_has ' strict '
expect 0 "$tool" verify --act exact "$mx"
out_has ' bound '
expect 0 "$tool" verify --act int8 "$mx"
out_has ' bound '
expect 0 "$tool" verify --act exact "$bf16"
out_has ' strict '
expect 3 "$tool" verify --act int8 "$bf16"
expect 3 "$tool" verify --act mxfp8 "$bf16"
out_has '^REFUSED .*act_mode'

# ---- JSON ------------------------------------------------------------------------------------

expect 3 "$tool" verify --json --threads 2 "$bf16" "$refused"
for key in cases file isa error limit message; do
    out_has "\"$key\": "
done
for pair in '"path": "raw"' '"threads": 2' '"act": "exact"' '"gate": "strict"' '"pass": true' '"pass": false' \
    '"refused": true' '"refused": false' '"error": null' '"passed": 1' '"failed": 1'; do
    out_has "$pair"
done
expect 0 "$tool" info --json
for key in version cpu isa caches threads build compiler; do
    out_has "\"$key\": "
done
expect 0 "$tool" info
out_has '^isa .* *scalar'

# ---- run and --candidate ---------------------------------------------------------------------

expect 0 "$tool" run "$bf16" --out "$tmp/one" --threads 1
silent out
silent err
expect 0 "$tool" run --threads 2 --json "$bf16" --out "$tmp/two"
out_has '"dtype": "bf16"'
cmp -s "$tmp/one" "$tmp/two" || failed 'the output depends on the number of threads'
if grep -q __metadata__ "$tmp/one"; then failed 'the output has metadata'; fi

expect 0 "$tool" verify --candidate "$tmp/one" "$bf16"
out_has '^ok '
out_has '^interval  *inside'
last_line '1 passed, 0 failed'
expect 0 "$tool" verify --json --gate bound --candidate "$tmp/one" "$bf16"
out_has '"interval": '
cp "$tmp/one" "$tmp/spoilt"
printf '\100\100' | dd of="$tmp/spoilt" bs=1 seek=$(($(wc -c <"$tmp/spoilt") - 2)) conv=notrunc 2>/dev/null
expect 1 "$tool" verify --candidate "$tmp/spoilt" "$bf16"
out_has '^FAIL '
out_has '^interval  *OUTSIDE'
expect 1 "$tool" verify --gate bound --candidate "$tmp/spoilt" "$bf16"
expect 2 "$tool" verify --candidate "$tmp/one" "$mx"
out_has '^UNREADABLE .*shape'
expect 2 "$tool" verify --candidate "$bf16" "$bf16"
out_has '^UNREADABLE .*output is missing'
expect 2 "$tool" verify --candidate "$tmp/missing" "$bf16"
expect 3 "$tool" verify --candidate "$tmp/one" "$refused"

mkdir "$tmp/folder"
echo kept >"$tmp/folder/kept"
expect 3 "$tool" run "$refused" --out "$tmp/folder/kept"
one_line
err_has 'refused: expert_affinities_scaling_mode'
expect 2 "$tool" run "$unreadable" --out "$tmp/folder/kept"
one_line
[ "$(cat "$tmp/folder/kept")" = kept ] || failed 'a failed run wrote its output'
expect 1 "$tool" run "$bf16" --out "$tmp/folder/none/x"
one_line
expect 1 "$tool" run "$bf16" --out "$tmp/folder"
expect 1 "$tool" run "$bf16" --out /dev/full
one_line
[ "$(ls -A "$tmp/folder")" = kept ] || failed 'a failed run left something behind'

# ---- a standard output that takes nothing ----------------------------------------------------

full() { "$@" >/dev/full; }
closed() { "$@" >&-; }
for way in full closed; do
    for command in --help --version info "info --json" "verify --help"; do
        # shellcheck disable=SC2086 # words, not one word
        expect 1 $way "$tool" $command
        one_line
        err_has 'could not write to standard output'
    done
    expect 1 $way "$tool" verify "$bf16" "$mx"
    expect 1 $way "$tool" verify --json "$bf16"
done
{
    sleep 1 # until the reader has gone
    "$tool" verify "$bf16" "$mx" 2>"$tmp/err"
    echo $? >"$tmp/out"
} | :
[ "$(cat "$tmp/out")" = 1 ] || failed 'a reader that went away is not exit code 1'
silent err

# ---- demo ------------------------------------------------------------------------------------

expect 0 "$tool" demo --tokens 1 --json
for pair in '"model": "gpt-oss-20b"' '"tokens": 1' '"experts": 4' '"pass": true'; do
    out_has "$pair"
done
silent err

[ "$failures" = 0 ] || echo "$failures failed" >&2
[ "$failures" = 0 ]
