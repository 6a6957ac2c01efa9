#!/bin/sh
# Runs the tests of a build and closes with a line "N passed, N failed". usage: test.sh FOLDER JOBS [ctest options]
set -u
build=$1; jobs=$2; shift 2
log="$build/test.log"
ctest --test-dir "$build" -j "$jobs" --output-on-failure --no-tests=error -LE peer "$@" 2>&1 | tee "$log"
passed=$(grep -cE '^ *[0-9]+/[0-9]+ Test +#[0-9]+: .* Passed ' "$log")
failed=$(grep -cE '^ *[0-9]+/[0-9]+ Test +#[0-9]+: .*(\*\*\*|Failed|Timeout|Not Run)' "$log")
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
