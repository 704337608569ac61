# Every target that needs Python packages makes .venv first, with the versions of uv.lock.
PYTHON ?= python3
EXTRAS := --extra device --extra grpc --extra litert --extra host --extra coordinator --extra demo --extra sklearn --extra torch --extra openvino
BIN := .venv/bin
TOOLCHAINS ?= litert-quantizer onnx2tf vela qnn openvino rknn onnxruntime-1.18 onnxruntime-1.23 tflite-runtime arm64
UV := $(shell command -v uv 2>/dev/null)
# pyenv's shims hide an interpreter that is there from uv, so it is looked for by path first.
BOARD_PYTHON ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python3.10)),3.10)
SOURCES := $(shell git ls-files edgekit runtime converters device_profiles 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-torch toolchains perf-analyzer fuzz protocol check lint types layers bench deb deb-test systemd-test system-deps clean

help: ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: .venv/ready ## Install into .venv.
	@echo "edgekit is in $(BIN); '. $(BIN)/activate' puts it on the path of this shell"

demo: .venv/ready ## Tell the whole story on this machine: build, serve, fleet, rollout, round.
	$(BIN)/edgekit demo $(DEMO)

test: .venv/ready .venv-board/ready .venv-signing/ready ## Run the tests.
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-fast: .venv/ready ## Run the tests but those that take more than ten seconds.
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST)

test-torch: .venv/ready .venv-torch/ready ## Run the tests that need torch (a CPU wheel of 200 MB).
	EDGEKIT_TORCH_PYTHON=$(CURDIR)/.venv-torch/bin/python \
	  $(BIN)/pytest tests/converters/test_source_torch.py $(PYTEST)

toolchains: .venv/ready ## Install every tool chain that a build can drive (2.7 GB).
	$(BIN)/edgekit doctor $(foreach chain,$(TOOLCHAINS),--install $(chain))

perf-analyzer: .venv/ready ## Install Triton's load generator, which a test runs against the server.
	$(BIN)/python -m tests.runtime.perf_analyzer

check: lint types layers test ## Run everything that CI runs.

lint: .venv/ready ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready ## Check types.
	$(BIN)/mypy

layers: .venv/ready ## Check which package may import which.
	$(BIN)/lint-imports

bench: .venv/ready ## Measure the figures of the README.
	$(BIN)/python -m benchmarks

fuzz: .venv/ready ## Fuzz what reads strangers' bytes (atheris; FUZZ_SECONDS for each target).
	$(BIN)/python -m tests.fuzz.run --seconds $(or $(FUZZ_SECONDS),60)

protocol: ## Make the messages of gRPC anew from the protocol's description.
	cd runtime/edgekit_runtime/serving/grpc && uv run --no-project --with grpcio-tools==1.85.1 \
	  python -m grpc_tools.protoc -I proto --descriptor_set_out=inference.binpb --pyi_out=. inference.proto

deb: .venv/ready ## Make a Debian package for bookworm in dist/ (DEB_ARCH=amd64 or arm64).
	packaging/deb/build.sh $(or $(DEB_ARCH),$(shell dpkg --print-architecture)) dist

deb-test: deb ## Install the package in a clean Debian, serve from it, purge it (as root; DEB_ARCH=arm64: emulated).
	packaging/deb/test.sh dist $(BIN)/pytest

systemd-test: deb ## Boot a Debian with its systemd, install the package in it, try the service (as root).
	packaging/deb/test.sh dist $(BIN)/pytest systemd

system-deps: ## Install the Debian packages that some tests want.
	apt-get update -qq && apt-get install -y -qq --no-install-recommends mosquitto mosquitto-clients openssh-server qemu-user-static gcc libc6-dev systemd systemd-container debootstrap faketime

clean: ## Remove what the targets above made.
	rm -rf .venv .venv-board .venv-signing .venv-torch dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Without uv on the machine, pip brings it into .venv, so that both ways install what uv.lock says.
.venv/ready: pyproject.toml uv.lock
ifeq ($(UV),)
	@echo "installing into .venv: some 90 packages, about 700 MB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet "uv>=0.9,<1"
	@$(BIN)/uv sync --quiet --locked --inexact --python $(BIN)/python $(EXTRAS)
else
	@echo "installing into .venv: some 90 packages, about 700 MB"
	@$(UV) sync --quiet --locked --python "$(or $(UV_PYTHON),>=3.11)" $(EXTRAS)
endif
	@touch $@

# A board as it is: the oldest Python that ships on one (JetPack 6 has 3.10), the wheel that users
# get, the extra `device` at the versions of uv.lock, and nothing else.
.venv-board/ready: .venv/ready $(SOURCES)
	@UV="$(or $(UV),$(BIN)/uv)"; rm -rf .venv-board; \
	if ! "$$UV" venv --quiet --python "$(BOARD_PYTHON)" .venv-board; then \
	  echo "no Python 3.10 here: the tests of the board's environment will be skipped"; exit 0; \
	fi; \
	set -e; "$$UV" build --quiet --wheel --out-dir .venv-board/dist; \
	"$$UV" export --quiet --locked --no-default-groups --no-emit-project --extra device \
	  --output-file .venv-board/requirements.txt >/dev/null; \
	"$$UV" pip install --quiet --python .venv-board/bin/python \
	  -r .venv-board/requirements.txt .venv-board/dist/*.whl; \
	touch $@

# OpenSSF's verifier and its thirty-odd dependencies, apart from ours: the tests hold our
# signatures against it.
.venv-signing/ready: .venv/ready
	@set -e; UV="$(or $(UV),$(BIN)/uv)"; rm -rf .venv-signing; \
	"$$UV" venv --quiet --python $(BIN)/python .venv-signing; \
	"$$UV" pip install --quiet --python .venv-signing/bin/python \
	  model-signing==1.1.1 pyopenssl==26.4.0; \
	touch $@

# torch in an environment of its own; pip takes the CPU wheel where its index has one.
.venv-torch/ready:
	@rm -rf .venv-torch; $(PYTHON) -m venv .venv-torch
	@.venv-torch/bin/pip install --quiet torch==2.13.0 onnxscript==0.7.2 onnx==1.23.2
	@touch $@
