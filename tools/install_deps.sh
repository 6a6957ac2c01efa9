#!/bin/sh
# Installs the Debian packages a purpose needs, if any is missing: as root, or through sudo; else it names them.
# usage: install_deps.sh build|fuzz|lint|venv
set -eu
case "${1:-build}" in
  build) want="g++ cmake make ninja-build pkg-config git ca-certificates xz-utils libdnnl-dev libeigen3-dev librandom123-dev
               libsentencepiece-dev libpcre2-dev libicu-dev zlib1g-dev libcairo2-dev nlohmann-json3-dev libcli11-dev libfmt-dev
               libgtest-dev python3" ;;
  fuzz)  want="clang-14 libclang-rt-14-dev" ;;
  lint)  want="clang-format-14 clang-tidy-14" ;;
  venv)  want="python3-venv" ;;
  *) echo "usage: $0 build|fuzz|lint|venv" >&2; exit 2 ;;
esac
missing=""
for p in $want; do
  case "$(dpkg-query -W -f '${Status}' "$p" 2>/dev/null || true)" in
    "install ok installed") ;;
    *) # A command that is there already, however it came, need not come from a package.
       case "$p" in
         g++|cmake|make|git|python3) command -v "$p" >/dev/null 2>&1 && continue ;;
         ninja-build) command -v ninja >/dev/null 2>&1 && continue ;;
       esac
       missing="$missing $p" ;;
  esac
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then sudo=""
elif command -v sudo >/dev/null 2>&1; then sudo="sudo"
else
  echo "Croquis needs these Debian packages, and this user may not install them:" >&2
  echo "  apt-get install$missing" >&2
  exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
}
