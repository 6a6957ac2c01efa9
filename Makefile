# make demo    installs what is missing, builds, and runs a language model with a compressed KV cache
# make test    installs, builds, runs the tests (unit, slow and structure)
# make build   installs and builds
# make bench   the benchmarks behind docs/results
# make peer    compares with transformers, tokenizers, gguf (installs them into build/peers, about 1.5 GB)
# Options: BUILD=folder  JOBS=n  PRESET=release|asan|tsan
PRESET ?= release
BUILD ?= build/$(PRESET)
JOBS ?= $(shell nproc)

.PHONY: all build demo test unit peer bench deps format lint fuzz install clean
all: build

deps:
	@tools/install_deps.sh build

build: deps
	@tools/build.sh "$(PRESET)" "$(BUILD)" "$(JOBS)"

demo: deps
	@CROQUIS_DEV=OFF tools/build.sh "$(PRESET)" "$(BUILD)" "$(JOBS)" croquis
	@"$(BUILD)/apps/croquis" demo

test: build
	@tools/test.sh "$(BUILD)" "$(JOBS)"

unit: build
	@tools/test.sh "$(BUILD)" "$(JOBS)" -L unit

peer: build
	@tools/peer_env.sh build/peers tests/peer/requirements.txt
	@ctest --test-dir "$(BUILD)" -L peer --output-on-failure

bench: build
	@bench/run.sh "$(BUILD)"

fuzz:
	@tools/install_deps.sh fuzz
	@tools/fuzz.sh 20

format:
	@tools/install_deps.sh lint
	@git ls-files '*.cc' '*.h' | xargs clang-format-14 -i

lint: build
	@tools/install_deps.sh lint
	@tools/lint.sh "$(BUILD)"

install: build
	@cmake --install "$(BUILD)"

clean:
	rm -rf build
