#!/bin/sh
# The measurements behind docs/results: one JSON file each, in bench-results/ of the build folder, and the tables on the terminal.
# usage: run.sh BUILD    TEXT=file|folder chooses the evaluation text (default: the bundled one).
set -eu
cd "$(dirname "$0")/.."
build=$1
croquis="$build/apps/croquis"
out="$build/bench-results"
mkdir -p "$out"
both() {  # NAME ARGS...: the table for people, the object for machines, from two runs
  name=$1; shift
  echo "== croquis $*"
  "$croquis" "$@"
  "$croquis" "$@" --json > "$out/$name.json"
}
both codecs codecs
both encode bench encode
both attention bench attention --n 32768 --heads 32 --kv-heads 8 --head-dim 128 --threads 2
text=${TEXT:-$(ls models/texts/*.txt | head -1)}
eden="--kv eden:bits=5 --kv k=eden:bits=5,v=eden:bits=4 --kv eden:bits=4 --kv k=eden:bits=4,v=eden:bits=3 --kv eden:bits=3 --kv eden:bits=2"
ggml="--kv q8_0:hadamard=1 --kv q5_0:hadamard=1 --kv q4_1:hadamard=1 --kv q4_0:hadamard=1 --kv q4_0"
for ctx in 1024 2048; do
  # shellcheck disable=SC2086
  both "eval-$ctx" eval models/croquis-4m "$text" --ctx "$ctx" $ggml $eden --plot "$out/eval-$ctx.svg"
done
echo "results: $out"
