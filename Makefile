# SPDX-License-Identifier: Apache-2.0
# A thin layer over meson.  `make help` lists what there is.

BUILD ?= build
MESON_OPTIONS ?=
PYTHON := /usr/bin/python3

.PHONY: all build demo bench bench-vms check check-unit check-func check-vm check-asan check-tsan check-model \
        check-fuzz check-qemu check-xen check-xen-full check-sanitizers docs-scheduling docs-tuning gpu-check gpu-bundle bench-gpu soak soak-kills lint format device guest-module kernels examples qemu install clean distclean help deps

all: build

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | expand -t 14

deps: ## install the packages that building needs
	@scripts/deps install build test

$(BUILD)/build.ninja:
	@scripts/deps install build test
	@meson setup $(MESON_OPTIONS) $(BUILD) >$(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log

build: $(BUILD)/build.ninja ## build the programs into build/
	@ninja -C $(BUILD) --quiet

demo: ## three real VMs, one GPU queue: watch the order
	@scripts/demo

bench: ## how fast the channels are; writes build/bench.json
	@scripts/bench

bench-vms: ## how fairly real VMs share; writes build/bench-vms.json
	@scripts/bench-vms

bench-gpu: ## a GPU through sessions, beside the same GPU by itself
	@scripts/bench-gpu

check: ## all tests, the real-VM ones included
	@scripts/check

check-unit check-func check-vm check-asan check-tsan check-model check-fuzz check-qemu check-xen check-xen-full check-sanitizers:
	@scripts/check $(@:check-%=%)

soak: ## 30 real VMs, load and faults; DURATION=1800 seconds
	@scripts/soak --duration "$(or $(DURATION),1800)"

soak-kills: ## restarts and hostile guests, ten times as long
	@scripts/soak-kills

docs-scheduling: $(BUILD)/build.ninja ## the tables and plots of docs/scheduling.md anew
	@ninja -C $(BUILD) --quiet src/sim/vgpu-sim
	@scripts/scheduling-doc $(BUILD)

docs-tuning: build ## the tables and plots of docs/performance-tuning.md anew
	@scripts/tuning-doc --build $(BUILD) --write

gpu-check: ## what only a real GPU can tell
	@scripts/gpu-check.sh

gpu-bundle: ## the programs with all they need, for a bare GPU machine
	@scripts/gpu-bundle

lint: ## clang-format, clang-tidy, shellcheck, pyflakes, codespell
	@scripts/lint

format: ## let clang-format rewrite the sources
	@scripts/lint --fix

device: ## the QEMU device as a shared object for the installed QEMU
	@scripts/build-device

guest-module: ## the guests' kernel module, for Debian's kernels
	@scripts/build-guest-module

examples: $(BUILD)/build.ninja ## programs with kernels of their own, into build/examples/
	@ninja -C $(BUILD) --quiet examples

kernels: ## the kernels' PTX anew, where CUDA's compiler is
	@scripts/kernels

qemu: ## a QEMU of the distribution's source with the device built in
	@scripts/build-qemu

install: build ## install into DESTDIR
	@meson install -C $(BUILD) --no-rebuild

clean: ## remove what was built, keep the cache
	rm -rf build build-test build-asan build-tsan build-fuzz

distclean: clean ## remove the cache too
	rm -rf .cache
