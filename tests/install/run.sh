#!/bin/sh
# Installs a build into a scratch folder, builds the outside program against it and runs it. usage: run.sh BUILD SOURCE
set -eu
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cmake --install "$1" --prefix "$scratch/prefix" >/dev/null
cmake -S "$2/tests/install" -B "$scratch/build" -G Ninja -DCMAKE_PREFIX_PATH="$scratch/prefix" -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$scratch/build" >/dev/null
"$scratch/build/outside"
"$scratch/prefix/bin/croquis" codecs --list >/dev/null
echo "installed program runs"
