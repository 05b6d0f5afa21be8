# Everything lives in .venv. If $(PYTHON) can already import torch, .venv borrows that torch
# through a .pth file (an environment's --system-site-packages would not reach the torch of
# another virtual environment); otherwise it gets its own. Nothing is installed outside .venv.
# The package is installed editable: the source tree and the installed package are the same
# files, so neither can shadow the other.
VENV := .venv
# The interpreter of an earlier make stays until another is given
ifndef PYTHON
PYTHON := $(or $(wildcard $(firstword $(shell cat $(VENV)/torch 2>/dev/null))),python3)
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The folders, one a line, in which $(PYTHON) finds torch and what torch needs
TORCH_FOLDERS := import sys, torch; from pathlib import Path; \
	print(*dict.fromkeys([p for p in sys.path if p.endswith("-packages")] \
	+ [str(Path(torch.__file__).parents[1])]), sep="\n")
SITE_FOLDER := import sysconfig; print(sysconfig.get_path("purelib"))
PYTHON_CHECK := import sys; sys.version_info >= (3, 10) or sys.exit("Python is " \
	+ sys.version.split()[0] + ", must be 3.10 or later: make PYTHON=/path/to/python")

# An interpreter, and its torch: where it lies and what it says of itself, without the second that
# an import takes. The files torch and built in .venv hold those that they were made with.
TORCH_FACTS := import importlib.util, pathlib, sys; spec = importlib.util.find_spec("torch"); \
	print(sys.executable, *[spec.origin, pathlib.Path(spec.origin).with_name("version.py") \
	.read_text()] if spec else ["no torch"])
# FORCE if the facts in file $(1) are no longer those of interpreter $(2)
outdated = $(shell [ ! -f $(1) ] || [ "$$($(2) -c '$(TORCH_FACTS)' 2>&1)" = "$$(cat $(1))" ] \
	|| echo FORCE)

# What the kernels compute; the other tests are about the choice of one or about Python
COMPUTED := $(addprefix tests/test_,accuracy.py cell.py dtypes.py gradients.py hypothesis.py lengths.py \
	recompute.py reset.py stack.py states.py)
EMULATED := $(COMPUTED) $(addprefix tests/test_,autotune.py check.py frozen_fragments.py \
	persistent.py refused_launches.py) \
	$(addprefix tests/emulator/test_,batches.py counts.py faults.py races.py sequence_tiles.py \
	without_clusters.py)

SANITIZED := $(COMPUTED) $(addprefix tests/test_,autocast.py cpu_kernels.py errors.py operators.py)
# But for two that want libgomp's threads
RACES := tests/test_cpu_kernels.py tests/test_accuracy.py \
	-k "not test_built_with_threads and not test_threads_share_the_work"

NATIVE := $(shell find csrc -type f ! -name '*.md' ! -path 'csrc/library/*')
LIBRARY := $(shell find csrc/library tests/library -name '*.h' -o -name '*.c' -o -name '*.cpp')

# The C library needs no torch and no .venv
CMAKE := $(or $(shell command -v cmake),build/tools/bin/cmake)

.PHONY: demo test fuzz emulate sass sanitize test-modes processors torches wheels build bench lint format clean FORCE
.PHONY: library library-fuzz

demo: build  # ARGS="--device cpu --task classifier" and so on
	$(BIN)/python -m fused_lstm demo $(ARGS)

test: build  # ARGS="-k packed" and so on
	$(BIN)/python -m pytest tests $(ARGS)

fuzz: build  # 10,000 whole configurations against the reference
	FUSED_LSTM_FUZZ=10000 $(BIN)/python -m pytest tests/test_hypothesis.py $(ARGS)

# The allocator fills what it hands out: memory that no kernel has written is not zero by luck
emulate: build  # the CUDA sources, compiled for the host, through the tests of their results
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/emulator/build.py build/emulated
	cd build/emulated && PYTHONPATH=. FUSED_LSTM_EMULATED=1 MALLOC_PERTURB_=1 \
		../../$(BIN)/python -m pytest $(EMULATED:%=../../%) $(ARGS)

# nvdisasm is the toolkit's, or else the wheel's. ARGS="--no-limits --only 'H 768'" and so on
sass: build  # the persistent kernels' machine code, against the limits of a step; needs nvcc
	command -v nvdisasm >/dev/null || $(PIP) install --quiet "nvidia-cuda-nvdisasm>=13,<14"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/emulator/build.py build/emulated
	PYTHONPATH=tests $(BIN)/python -m machine_code $(ARGS)

# The CPU path, the emulated CUDA path and the C library under AddressSanitizer and UBSan, the CPU's
# threads and the library's under ThreadSanitizer
sanitize: build
	PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/python tests/sanitizers/run.py address build/address $(SANITIZED) $(ARGS)
	PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/python tests/sanitizers/run.py emulated build/emulated-address \
		tests/test_persistent.py $(ARGS)
	PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/python tests/sanitizers/run.py thread build/thread $(RACES) $(ARGS)
	FUSED_LSTM_SANITIZE=1 $(BIN)/python -m pytest tests/test_library.py -k test_sanitizers

# The two plugins lie apart: where pytest-randomly is installed, it shuffles every run
test-modes: build  # the suite on one and two processors, each instruction set, shuffled, in parallel
	$(PIP) install --quiet --upgrade --no-deps --target build/plugins \
		"pytest-randomly>=3.15,<5" "pytest-xdist>=3.5,<4" "execnet>=2,<3"
	PYTHONPATH=$(CURDIR)/build/plugins $(BIN)/python tests/modes.py $(ARGS)

processors: build  # emulated: Nehalem to Skylake without AVX-512, aarch64; takes 7 GB
	$(BIN)/python tests/processors/run.py build/processors $(ARGS)

torches:  # builds and tests on each torch of .ci/requirements-torch.txt; ARGS="2.11.0" for one
	PYTHON=$(PYTHON) .ci/torches $(ARGS)

wheels:  # for each of them into dist/, with an index for pip
	PYTHON=$(PYTHON) .ci/wheels $(ARGS)

library: $(CMAKE)  # libfused_lstm, shared and static, in build/library
	$(CMAKE) -S csrc/library -B build/library
	$(CMAKE) --build build/library --parallel $(or $(MAX_JOBS),2)
	@strip -o build/library/stripped build/library/libfused_lstm.so
	@echo "build/library/libfused_lstm.so: $$(wc -c < build/library/stripped) bytes, stripped"

build/tools/bin/cmake:
	python3 -m venv build/tools
	build/tools/bin/pip --disable-pip-version-check install --quiet "cmake>=3.20"

# By libFuzzer where there is clang, else by mutations alone
RUNS := 2000000
library-fuzz: $(CMAKE)  # the loader of the C library, by files that are nearly right
	CMAKE=$(CMAKE) tests/library/fuzz $(RUNS)

build: $(VENV)/built

bench: build  # ARGS="--quick" and so on
	$(BIN)/python -m pytest benchmarks -q $(ARGS)

# Words that CONTRIBUTING's glossary has another for
PRIVATE := walks?|walked|streamed|contestants?|whoever|nobody|wanted|hidden_before|hidden_0|cell_0|take_step|is_fresh|is_live
SPELLED := csrc fused_lstm/*.py fused_lstm/demo/*.py tests benchmarks README.md CONTRIBUTING.md .ci setup.py

lint: $(VENV)/tools
	! git grep -nE '(^|[^.[:alnum:]_])($(PRIVATE))($$|[^[:alnum:]_])' -- $(SPELLED)
	$(BIN)/clang-format --dry-run -Werror $(NATIVE) $(LIBRARY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/tools
	$(BIN)/clang-format -i $(NATIVE) $(LIBRARY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  # leaves .venv, for torch is large
	rm -rf build dist *.egg-info fused_lstm/_C.*.so fused_lstm/_build.py $(VENV)/built $(VENV)/tools
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/torch: $(call outdated,$(VENV)/torch,$(PYTHON))
	@$(PYTHON) -c '$(PYTHON_CHECK)'
	$(PYTHON) -m venv --clear $(VENV)
	@if folders=$$($(PYTHON) -c '$(TORCH_FOLDERS)' 2>/dev/null); then \
		echo "Using the torch that $(PYTHON) imports"; \
		echo "$$folders" > "$$($(BIN)/python -c '$(SITE_FOLDER)')/torch.pth"; \
		$(PIP) uninstall -qq --yes setuptools; \
	else \
		$(PIP) install torch==2.13.0; \
	fi
	$(PIP) install --quiet "setuptools>=77" ninja
	@$(PYTHON) -c '$(TORCH_FACTS)' > $@

$(VENV)/built: $(VENV)/torch setup.py pyproject.toml $(NATIVE) \
		$(call outdated,$(VENV)/built,$(BIN)/python)
	@echo "Building fused_lstm (the first time this takes minutes)"
	@$(PIP) install --quiet --no-build-isolation --editable ".[test]"
	@$(BIN)/python -c '$(TORCH_FACTS)' > $@

$(VENV)/tools: $(VENV)/built
	$(PIP) install --quiet --no-build-isolation --editable ".[dev]"
	@touch $@
