#!/bin/sh
# Configures once and builds. usage: build.sh PRESET FOLDER JOBS [TARGET...]
set -eu
preset=$1; build=$2; jobs=$3; shift 3
cd "$(dirname "$0")/.."
[ -f "$build/build.ninja" ] && grep -q "CROQUIS_DEV:BOOL=${CROQUIS_DEV:-ON}" "$build/CMakeCache.txt" 2>/dev/null ||
  cmake --preset "$preset" -B "$build" -DCROQUIS_DEV="${CROQUIS_DEV:-ON}" --log-level=WARNING
[ $# -gt 0 ] && targets="--target $*" || targets=""
# shellcheck disable=SC2086
cmake --build "$build" -j "$jobs" $targets
