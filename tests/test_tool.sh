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

container() { # container FILE HEADER: a safetensors file without its data
    # shellcheck disable=SC2059 # the format is the bytes
    printf "$(printf '\\%03o\\%03o\\000\\000\\000\\000\\000\\000' $((${#2} % 256)) $((${#2} / 256)))" >"$1"
    printf '%s' "$2" >>"$1"
}

put() { # put FILE BYTES N: N times these bytes, as printf has them, to the end of FILE
    # shellcheck disable=SC2059 # the format is the bytes
    for _ in $(seq "$3"); do printf "$2"; done >>"$1"
}

tiny() { # tiny FILE METADATA TENSORS: a case of f32, T = 1, H = 2, I = 1, in need of 8 numbers and what TENSORS are
    container "$1" '{"__metadata__":{"is_all_expert":"1","activation_fn":"relu"'"$2"'},
"hidden_input":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
"expert_gate_up_weights":{"dtype":"F32","shape":[1,2,2,1],"data_offsets":[8,24]},
"expert_down_weights":{"dtype":"F32","shape":[1,1,2],"data_offsets":[24,32]}'"$3}"
}

bf16=$golden/bf16_sel_post_silu_odd_i33_t5.safetensors
mx=$golden/mxfp4_all_none_silu_i64_t1.safetensors
static=$golden/fp8static_bf16_sel_post_silu_k2_t3.safetensors

# ---- help, version, bad command lines --------------------------------------------------------

expect 0 "$tool" --version
out_has '^moe-tkg [0-9]*\.[0-9]*\.[0-9]*$'
expect 0 "$tool" --help
for command in bench demo verify run inspect pack info; do
    out_has "^  $command "
done
for command in bench demo verify run inspect pack info; do
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
usage 'FILE is empty' "$tool" verify "$bf16" ''
usage 'CASE is empty' "$tool" run '' --out x
usage 'PATH is empty' "$tool" inspect --json ''
usage 'PATH is empty' "$tool" pack '' --out x
usage "option '--out' needs a value" "$tool" pack x --out ''
usage "option '--model' needs a value" "$tool" bench --model= --layer 0
usage "option '--gate' needs a value" "$tool" verify --gate '' "$bf16"
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
usage 'takes no argument' "$tool" bench x
for path in both none ''; do
    usage '--path' "$tool" verify --path "$path" "$bf16"
    usage '--path' "$tool" run --path "$path" "$bf16" --out "$tmp/none"
done
usage '--seed' "$tool" demo --seed -1
for list in 0 129 1,x ',' '' '1,,2' ',1' '1,' 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17; do
    usage '--tokens' "$tool" demo --tokens "$list"
done
for list in 0 129 1,x ',' '' '1,,2' ',1' '1,' -1 "$(seq -s , 40)"; do
    usage '--tokens' "$tool" bench --tokens "$list"
done

# ---- verify: what passes ---------------------------------------------------------------------

cases=$(find "$golden" -name '*.safetensors' | wc -l)
for gate in strict upstream bound; do
    expect 0 "$tool" verify --gate $gate "$golden"/*.safetensors
    last_line "$cases passed, 0 failed"
    [ "$(grep -c "^ok  *[a-z0-9_]*  *error  *[0-9.e+-]*  $gate [0-9.e+-]*  both$" "$tmp/out")" = "$cases" ] ||
        failed "not $cases lines of ok at --gate $gate"
    silent err
done
for path in raw packed; do
    expect 0 "$tool" verify --path $path "$golden"/*.safetensors
    last_line "$cases passed, 0 failed"
    [ "$(grep -c "^ok .*  $path$" "$tmp/out")" = "$cases" ] || failed "not $cases lines of ok with --path $path"
    expect 0 "$tool" verify --json --path $path "$bf16"
    out_has "\"path\": \"$path\""
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
expect 1 "$tool" verify --path packed "$wrong"
out_has '^FAIL .* packed '
expect 3 "$tool" verify --path packed "$refused"
out_has '^REFUSED .*expert_affinities_scaling_mode'
expect 3 "$tool" verify "$unknown"
out_has '^REFUSED .*  activation_fn = mish: not one the operator takes$'
out_lacks 999
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
for script in 's/"is_all_expert": *"0"/"is_all_expert":"x"/' 's/"atol": *"1e-05"/"atol":"1e-0x"/' \
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

# The shape of what is expected counts, not only its size.
one='\000\000\200\077' # 1.0
tiny "$tmp/shape" '' ',"expected":{"dtype":"F32","shape":[2],"data_offsets":[32,40]}'
put "$tmp/shape" "$one" 10
is_unreadable "$tmp/shape"
out_has 'expected has not the shape'
expect 0 "$tool" verify --gate bound "$tmp/shape"

# An integer that is no flag, or no layout, is the operator's to refuse.
for flag in mask_unselected_experts output_in_sbuf is_all_expert_dynamic skip_invalid_experts; do
    tiny "$tmp/flag" ",\"$flag\":\"2\"" ''
    put "$tmp/flag" "$one" 8
    expect 3 "$tool" verify --gate bound "$tmp/flag"
    out_has "^REFUSED .*$flag = 2: must be 0 or 1"
done
tiny "$tmp/flag" ',"input_in_sbuf":"2"' ''
put "$tmp/flag" "$one" 8
expect 3 "$tool" verify --gate bound "$tmp/flag"
out_has '^REFUSED .*layout = 2'

# What has no finite bound is not judged, and does not pass.
tiny "$tmp/huge" '' ''
put "$tmp/huge" '\377\377\177\177' 8
expect 1 "$tool" verify --gate bound "$tmp/huge"
out_has '^FAIL .*2 of 2 cells not judged: no finite bound$'
expect 0 "$tool" run "$tmp/huge" --out "$tmp/huge-output"
expect 1 "$tool" verify --gate bound --candidate "$tmp/huge-output" "$tmp/huge"
out_has '^interval  *NOT JUDGED.*2 of 2 cells not judged: no finite bound$'
expect 1 "$tool" verify --json --gate bound "$tmp/huge"
out_has '"unbounded": 2'
out_has '"between": 0'

# A sparse file that claims gigabytes is answered without reading them.
container "$tmp/sparse" '{"__metadata__":{"is_all_expert":"1"},
"hidden_input":{"dtype":"BF16","shape":[1,8589934592],"data_offsets":[0,17179869184]}}'
if truncate -s $(($(wc -c <"$tmp/sparse") + 17179869184)) "$tmp/sparse" 2>"$tmp/err"; then
    expect 2 timeout 10 "$tool" verify "$tmp/sparse"
    out_has '^UNREADABLE .*expert_gate_up_weights is missing'
fi
container "$tmp/sparse" '{"__metadata__":{"is_all_expert":"1"},
"hidden_input":{"dtype":"BF16","shape":[1,2199023255552],"data_offsets":[0,4398046511104]},
"expert_gate_up_weights":{"dtype":"BF16","shape":[1,2,2,1],"data_offsets":[4398046511104,4398046511112]},
"expert_down_weights":{"dtype":"BF16","shape":[1,1,2],"data_offsets":[4398046511112,4398046511116]}}'
if truncate -s $(($(wc -c <"$tmp/sparse") + 4398046511116)) "$tmp/sparse" 2>"$tmp/err"; then
    expect 3 timeout 10 "$tool" verify "$tmp/sparse"
    out_has '^REFUSED .*expert_gate_up_weights'
fi
rm -f "$tmp/sparse"

# A name cannot drive the terminal, nor turn its text; what is only foreign stays.
cp "$unreadable" "$tmp/$(printf 'a\033[31m').safetensors"
expect 2 "$tool" verify "$tmp"/a*.safetensors
out_lacks "$(printf '\033')"
printf 'b?-?-?-?-?-?-\303\251-\360\237\230\200' >"$tmp/harmless"
name=$(printf 'b\302\205-\342\200\256-\342\201\247-\233-\300-\177-\303\251-\360\237\230\200')
if cp "$unreadable" "$tmp/$name.safetensors" 2>"$tmp/err"; then
    expect 2 "$tool" verify "$tmp/$name.safetensors"
    for bytes in '\302\205' '\342\200\256' '\342\201\247' '\233' '\205' '\177' '\300'; do
        # shellcheck disable=SC2059 # the format is the bytes
        if LC_ALL=C grep -q "$(printf "$bytes")" "$tmp/out"; then failed "stdout has the bytes $bytes"; fi
    done
    LC_ALL=C grep -q "^UNREADABLE $(cat "$tmp/harmless") " "$tmp/out" || failed 'the name is not as it should be'
    expect 2 "$tool" run "$tmp/$name.safetensors" --out "$tmp/none"
    if LC_ALL=C grep -q "$(printf '\205')" "$tmp/err"; then failed 'stderr has a C1 control'; fi
    expect 2 "$tool" verify --json "$tmp/$name.safetensors"
    if LC_ALL=C grep -q "$(printf '[\200-\377]')" "$tmp/out"; then failed 'the JSON is not ASCII'; fi
fi

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
for pair in '"path": "both"' '"path": "raw"' '"threads": 2' '"act": "exact"' '"gate": "strict"' '"pass": true' '"pass": false' \
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
for path in raw packed; do
    expect 0 "$tool" run --path $path --json "$bf16" --out "$tmp/two"
    out_has "\"path\": \"$path\""
    cmp -s "$tmp/one" "$tmp/two" || failed "the output depends on --path $path"
done
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
expect 1 "$tool" verify --candidate "$tmp/one" "$mx"
out_has '^FAIL .*shape'
expect 2 "$tool" verify --candidate "$bf16" "$bf16"
out_has '^UNREADABLE .*output is missing'
expect 2 "$tool" verify --candidate "$tmp/missing" "$bf16"

# 2 * 2 * 1 = 4: a candidate of float64 is judged, one of integers is wrong.
tiny "$tmp/four" '' ',"expected":{"dtype":"F32","shape":[1,2],"data_offsets":[32,40]}'
put "$tmp/four" "$one" 8
put "$tmp/four" '\000\000\200\100' 2
container "$tmp/f64" '{"output":{"dtype":"F64","shape":[1,2],"data_offsets":[0,16]}}'
cp "$tmp/f64" "$tmp/f64-wrong"
put "$tmp/f64" '\000\000\000\000\000\000\020\100' 2
put "$tmp/f64-wrong" '\000\000\000\000\000\001\020\100' 2
expect 0 "$tool" verify "$tmp/four"
for gate in tight bound; do
    expect 0 "$tool" verify --gate $gate --candidate "$tmp/f64" "$tmp/four"
    out_has '^interval  *inside'
    expect 1 "$tool" verify --gate $gate --candidate "$tmp/f64-wrong" "$tmp/four"
    out_has '^interval  *OUTSIDE'
done
container "$tmp/i32" '{"output":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]}}'
put "$tmp/i32" '\004\000\000\000' 2
expect 1 "$tool" verify --candidate "$tmp/i32" "$tmp/four"
out_has '^FAIL .*output is I32: must be BF16, F16, F32 or F64'
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

limited() { # limited COMMAND...: with files of at most 1 KiB, whatever the unit of this shell's ulimit is
    (ulimit -f 1 && "$@")
}
expect 1 limited "$tool" run "$golden/f32_sel_post_gelu_gateclamp_k1_t128.safetensors" --out "$tmp/folder/large"
sed -i '/^libgcov/d' "$tmp/err" # a coverage build cannot write its own files either
one_line
err_has 'cannot be written: File too large'
expect 1 limited "$tool" run "$golden/f32_sel_post_gelu_gateclamp_k1_t128.safetensors" --out "$tmp/folder/kept"
[ "$(cat "$tmp/folder/kept")" = kept ] || failed 'a run past the file-size limit wrote its output'
[ "$(ls -A "$tmp/folder")" = kept ] || failed 'a failed run left something behind'

# A pipe: refused where nobody reads, else the output.
mkfifo "$tmp/pipe"
expect 1 timeout 20 "$tool" run "$bf16" --out "$tmp/pipe"
one_line
err_has 'nothing reads from it'
exec 3<>"$tmp/pipe"
expect 0 timeout 20 "$tool" run "$bf16" --out "$tmp/pipe"
head -c "$(wc -c <"$tmp/one")" <&3 | cmp -s - "$tmp/one" || failed 'the output in a pipe is another'
exec 3<&-

# With --json, failures are results too.
run_fails() { # run_fails CODE REFUSED UNREADABLE MESSAGE CASE OUT
    expect "$1" "$tool" run --json "$5" --out "$6"
    one_line
    for pair in '"file": "' '"pass": false' "\"refused\": $2" "\"unreadable\": $3" "\"message\": \".*$4"; do
        out_has "$pair"
    done
}
run_fails 3 true false 'refused: expert_affinities_scaling_mode' "$refused" "$tmp/none"
run_fails 3 true false 'refused: activation_fn = mish: not one the operator takes' "$unknown" "$tmp/none"
run_fails 2 false true 'truncated' "$unreadable" "$tmp/none"
run_fails 1 false false 'cannot be written' "$bf16" "$tmp/folder/none/x"
[ ! -e "$tmp/none" ] || failed 'a failed run wrote its output'
expect 0 "$tool" run --json "$bf16" --out "$tmp/two"
out_has '"pass": true'
out_has '"message": ""'

# ---- bench -----------------------------------------------------------------------------------

bench() { # bench CODE OPTION...: a run on next to nothing
    code=$1
    shift
    expect "$code" "$tool" bench --working-set 256K --repetitions 2 "$@"
}

sound() { # sound H I K ROWS: the JSON's results agree with each other
    awk -v H="$1" -v I="$2" -v K="$3" -v rows="$4" '
        function near(a, b) { return a > 0.999 * b && a < 1.001 * b }
        /"results": \[/ { inside = 1 }
        inside && /": / { gsub(/[",]/, ""); v[substr($1, 1, length($1) - 1)] = $2 }
        inside && /^    \}/ {
            n++
            macs = v["tokens"] * K * 3 * H * I
            read = v["bytes"] / v["read_ceiling_gbps"] / 1000
            dot = macs / v["compute_ceiling_gmacs"] / 1000
            if (!near(v["limit_us"], read > dot ? read : dot)) bad = bad " limit"
            if (!near(v["gbps"], v["bytes"] / v["median_us"] / 1000)) bad = bad " gbps"
            if (!near(v["gmacs"], macs / v["median_us"] / 1000)) bad = bad " gmacs"
            if (!(v["roofline"] > 0)) bad = bad " roofline"
            if (!(v["min_us"] > 0 && v["min_us"] <= v["median_us"] && v["median_us"] <= v["p95_us"])) bad = bad " times"
            if (v["experts_read"] < K || v["experts_read"] > v["tokens"] * K) bad = bad " experts_read"
            if (v["read_ceiling_best_gbps"] < v["read_ceiling_gbps"]) bad = bad " best"
        }
        END { if (n != rows) bad = bad " rows"; if (bad) print bad; exit bad != "" }' "$tmp/out" >"$tmp/bad" ||
        failed "results that do not agree:$(cat "$tmp/bad")"
}

bench 0 --shape 64,32,4,2 --tokens 1,3 --json
for key in machine cpu cores llc_bytes kernel compiler version isa huge_pages results shape weights act threads tokens \
    experts_read median_us min_us p95_us bytes gbps gmacs read_ceiling_gbps read_ceiling_best_gbps \
    compute_ceiling_gmacs limit_us roofline pack_gbps routing seed repetitions; do
    out_has "\"$key\": "
done
sound 64 32 2 2
silent err
bench 0 --shape 64,32,4,2 --tokens 1,3
out_has '^| weights .* roofline |$'
[ "$(grep -c '^| bf16  *|  *[13] |.* % |$' "$tmp/out")" = 2 ] || failed 'not two lines of bf16'
out_has 'the weights are not cold'
silent err

# Every format in every mode that it has; E is what --experts leaves.
all=bf16,bf16-lossless,f16,fp8,fp8-static,mxfp8,mxfp4
integers=mxfp4,nvfp4,int4-g32,int4-g64,int4-g128,q8_0,q4_0,q4_k,q5_k,q6_k
bench 0 --shape gpt-oss-20b --experts 4 --weights mxfp4 --tokens 2 --json --repetitions 1
out_has '"E": 4'
sound 2880 2880 4 1
bench 0 --shape 96,64,5,2 --weights $all --tokens 2 --json
sound 96 64 2 7
for weights in bf16 bf16-lossless fp16 fp8-row fp8-static mxfp8 mxfp4; do
    out_has "\"weights\": \"$weights\""
done
bench 0 --shape 256,512,3,2 --weights $integers,fp8-channel,fp8-block --tokens 1,3 --json
sound 256 512 2 24
bench 0 --shape 256,512,3,2 --weights $integers --act int8 --tokens 2 --json
sound 256 512 2 10
for weights in fp8-channel fp8-block $(echo $integers | tr , ' '); do
    bench 0 --shape 256,256,2,1 --weights $weights --json --tokens 1
    out_has "\"weights\": \"$weights\""
done
bench 0 --shape 96,64,5,2 --weights mxfp4,mxfp8 --act mxfp8 --tokens 1,128 --json
sound 96 64 2 4
bench 0 --shape 96,64,5,2 --weights mxfp4 --act int8 --json --threads 1
out_has '"act": "int8"'
out_has '"threads": 1'
bench 0 --shape 65,33,3,3 --weights bf16,fp16,fp8-row,fp8-static --tokens 5 --json
sound 65 33 3 4
for act in mxfp8 int8; do
    for weights in bf16 bf16-lossless fp16 fp8-row fp8-static fp8-channel fp8-block; do
        usage "$weights: --act $act needs" "$tool" bench --weights $weights --act $act
    done
done
usage 'q4_k: --act mxfp8 needs' "$tool" bench --shape 256,256,2,1 --weights q4_k --act mxfp8
usage 'mxfp8: --act int8 needs 4-bit or integer weights' "$tool" bench --weights mxfp4,mxfp8 --act int8
usage 'mxfp4: needs H and I in multiples of 32' "$tool" bench --shape 64,33,4,2 --weights mxfp4
usage 'nvfp4: needs H and I in multiples of 16' "$tool" bench --shape 64,24,4,2 --weights nvfp4
usage 'int4-g64: needs H and I in multiples of 64' "$tool" bench --shape 96,64,4,2 --weights int4-g64
usage 'q6_k: needs H and I in multiples of 256' "$tool" bench --weights q6_k
usage 'bf16 twice' "$tool" bench --weights bf16,bf16
for list in mxfp5 '' 'bf16,' ',bf16' BF16; do
    usage '--weights' "$tool" bench --weights "$list"
done
for isa in $("$tool" info | sed -n 's/^isa *//p'); do
    bench 0 --shape 64,32,4,2 --tokens 4 --isa "$isa" --json --weights bf16,mxfp4
    out_has "\"isa\": \"$isa\""
done

# Shapes.
expect 0 "$tool" bench --list-shapes
for shape in gpt-oss-20b gpt-oss-120b mixtral-8x7b qwen3-30b-a3b deepseek-v3 'nemotron.*not supported'; do
    out_has "^| $shape"
done
expect 0 "$tool" bench --list-shapes --json
out_has '"name": "gemma-4-26b-a4b"'
out_has '"supported": false'
bench 0 --shape Granite_3.1-1B-A400M --experts 8 --tokens 1 --json --repetitions 1
out_has '"shape": "granite-3.1-1b-a400m"'
usage 'no such shape; near it: gpt-oss-20b, gpt-oss-120b' "$tool" bench --shape gpt-oss
usage "option '--shape' needs a value" "$tool" bench --shape ''
usage 'relu2, no gate' "$tool" bench --shape nemotron-3-nano-30b-a3b
usage 'K = 5 must be at most E = 4' "$tool" bench --shape 64,32,4,5
usage 'four numbers' "$tool" bench --shape 64,32,4
usage 'H must be 1 to' "$tool" bench --shape 0,32,4,2
usage '--experts 3: must be 4 (K) to 32 (E)' "$tool" bench --experts 3
usage '--experts 33: must be 4 (K) to 32 (E)' "$tool" bench --experts 33
usage '--experts 0' "$tool" bench --experts 0
for n in 0 -1 x 100001; do
    usage '--repetitions' "$tool" bench --repetitions $n
done
for n in 0 1K 2000G 1.5G 64k G '' 99999999999999999999; do
    usage '--working-set' "$tool" bench --working-set "$n"
done
usage '--seed' "$tool" bench --seed -1
usage '--act fp8' "$tool" bench --act fp8

# Memory that cannot be had.
bench 1 --shape 1048576,1048576,16384,1
one_line
err_has 'GB of memory, and .* GB are free: --experts N'

# Routing.
for routing in uniform zipf one; do
    bench 0 --shape 64,32,8,2 --routing $routing --tokens 16 --json
    out_has "\"routing\": \"$routing\""
done
out_has '"experts_read": 2.0'
printf '# a comment\n0 1\n\n2,3\n' >"$tmp/routing"
bench 0 --shape 64,32,8,2 --routing file --routing-file "$tmp/routing" --tokens 1,2,9 --json
sound 64 32 2 3
out_has '"experts_read": 4.0'
printf '0 1\n0 8\n' >"$tmp/routing"
usage 'routing: line 2: expert 8: must be 0 to 7' "$tool" bench --shape 64,32,8,2 --routing-file "$tmp/routing"
printf '0 1 2\n' >"$tmp/routing"
usage 'line 1: 3 experts: must be K = 2' "$tool" bench --shape 64,32,8,2 --routing-file "$tmp/routing"
usage 'cannot be opened' "$tool" bench --routing-file "$tmp/missing"
usage '--routing loose' "$tool" bench --routing loose
usage '--routing file needs --routing-file' "$tool" bench --routing file
usage '--routing-file needs --routing file' "$tool" bench --routing zipf --routing-file "$tmp/routing"

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
    expect 1 $way "$tool" bench --list-shapes
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
for pair in '"model": "gpt-oss-20b"' '"tokens": 1' '"experts": 4' '"between": 0' '"unbounded": 0' '"pass": true'; do
    out_has "$pair"
done
out_has '"roofline": '
silent err
for act in mxfp8 int8; do
    expect 0 "$tool" demo --tokens 2 --json --act $act
    out_has "\"act\": \"$act\""
    out_has '"pass": true'
done

[ "$failures" = 0 ] || echo "$failures failed" >&2
[ "$failures" = 0 ]
