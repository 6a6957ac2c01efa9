#!/bin/sh
# Builds the fuzzers and runs each for a number of seconds from its corpus. usage: fuzz.sh SECONDS [TARGET...]
set -eu
cd "$(dirname "$0")/.."
seconds=$1; shift
build=build/fuzz
[ -f $build/build.ninja ] || cmake --preset fuzz --log-level=WARNING >/dev/null
targets=${*:-$(ls tests/fuzz/fuzz_*.cc | sed 's/.*fuzz_\(.*\)\.cc/\1/')}
# shellcheck disable=SC2086
cmake --build $build --target $(for t in $targets; do echo "fuzz_$t"; done) >$build/build.log ||
  { grep -v '^\[' $build/build.log | head -60; echo "the fuzzers do not build"; exit 1; }
for t in $targets; do
  work=$build/corpus/$t
  mkdir -p "$work"
  echo "fuzz $t: $seconds s"
  $build/tests/fuzz/fuzz_"$t" -max_total_time="$seconds" -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len=65536 -timeout=20 \
    -artifact_prefix="$build/" "$work" "tests/fuzz/corpus/$t" >"$build/fuzz_$t.log" 2>&1 ||
    { tail -60 "$build/fuzz_$t.log"; echo "fuzz $t failed: the input is the crash-, oom- or timeout- file named above"; exit 1; }
  grep -E "^Done" "$build/fuzz_$t.log" || true
done
echo "fuzzers: no failures"
