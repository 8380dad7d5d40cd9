# SPDX-License-Identifier: Apache-2.0
# A thin layer over meson.  `make help` lists what there is.

BUILD ?= build
MESON_OPTIONS ?=
PYTHON := /usr/bin/python3

.PHONY: all build demo check check-unit check-func check-vm check-asan check-tsan check-fuzz \
        check-qemu lint format device guest qemu install clean distclean help deps

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

check: ## all tests, the real-VM ones included
	@scripts/check

check-unit check-func check-vm check-asan check-tsan check-fuzz check-qemu:
	@scripts/check $(@:check-%=%)

lint: ## clang-format, clang-tidy, shellcheck, pyflakes, codespell
	@scripts/lint

format: ## let clang-format rewrite the sources
	@scripts/lint --fix

device: ## the QEMU device as a shared object for the installed QEMU
	@scripts/build-device

qemu: ## a QEMU of the distribution's source with the device built in
	@scripts/build-qemu

install: build ## install into DESTDIR
	@meson install -C $(BUILD) --no-rebuild

clean: ## remove what was built, keep the cache
	rm -rf build build-test build-asan build-tsan build-fuzz

distclean: clean ## remove the cache too
	rm -rf .cache
