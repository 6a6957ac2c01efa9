#!/bin/sh
# Makes a Python environment and installs a requirements file into it; quick when it is already there.
# usage: peer_env.sh FOLDER REQUIREMENTS
set -eu
[ $# -eq 2 ] || { echo "usage: $0 FOLDER REQUIREMENTS" >&2; exit 2; }
cd "$(dirname "$0")/.."
folder=$1
# Debian's python3 makes environments only with python3-venv; other builds of Python have what it takes.
python3 -c 'import ensurepip, venv' 2>/dev/null || tools/install_deps.sh venv
# Without pip it is what a failed attempt left.
[ -x "$folder/bin/pip" ] || python3 -m venv --clear "$folder"
stamp="$folder/$(cksum <"$2" | tr ' ' '-').installed"
[ -f "$stamp" ] && exit 0
echo "installing the packages of $2 into $folder"
"$folder/bin/pip" install -q --disable-pip-version-check -r "$2" || {
  echo "could not install the packages of $2; run the command again when the package index can be reached" >&2
  exit 1
}
touch "$stamp"
