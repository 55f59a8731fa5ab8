# Developer targets. Everything that a user needs is `pip install .`.
PYTHON ?= python
CPP_FILES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
# The sanitizer's runtime, and libstdc++ behind it: it looks up the functions that throw when it starts.
ASAN := $(foreach lib,libasan.so libstdc++.so.6,$(shell $(CXX) -print-file-name=$(lib) 2>/dev/null))
FUZZ_SECONDS ?= 600

.PHONY: build style check test docs fuzz sanitize

build:  ## compile the extension in place
	$(PYTHON) setup.py build_ext --inplace

style:  ## format everything
	ruff check --fix .
	ruff format .
	$(PYTHON) tools/wrap_docs.py
	clang-format -i $(CPP_FILES)

check:  ## what continuous integration checks
	ruff check .
	ruff format --check .
	mypy
	mypy examples/tree_package/dynaspec_comb.py examples/parts_package/dynaspec_parts
	$(PYTHON) tools/wrap_docs.py --check
	clang-format --dry-run --Werror $(CPP_FILES)

test:
	$(PYTHON) -m pytest

docs:  ## write the pages that are made from the code
	$(PYTHON) -m tests.cli.help_text
	$(PYTHON) -m tests.docs.python_reference

fuzz:  ## random shapes, budgets, offsets and ids against the references for FUZZ_SECONDS
	DYNASPEC_FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTHON) -m pytest -q -m slow tests/kernels/test_fuzz.py

# The kernels' tests with an extension built for AddressSanitizer and UBSan, in a copy of the tree. Leaks are not looked
# for: the interpreter's own would drown them.
sanitize:
	rm -rf build/sanitize && mkdir -p build/sanitize
	git ls-files -z | xargs -0 cp --parents -t build/sanitize
	cd build/sanitize && DYNASPEC_SANITIZE=1 DYNASPEC_BUILD=cpu $(PYTHON) setup.py -q build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$(ASAN)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  DYNASPEC_FUZZ_SECONDS=60 PYTHONPATH=$(CURDIR)/build/sanitize \
	  $(PYTHON) -m pytest -q -m "not model" tests/kernels

-include cuda.mk
