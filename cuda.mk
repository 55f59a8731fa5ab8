# Proofs of the CUDA path on a machine without a GPU (docs/internals/cuda.md). Included by the Makefile.
#
# cuda-check       every kernel file by nvcc alone for six targets, resource report checked; then the full check where
#                  DYNASPEC_CUDA_VENV names an environment (made there if missing, 5 GB)
# triton-check     the Triton kernels in Triton's interpreter, then compiled for sm_80, 90 and 120 (needs Triton; no GPU)
# cuda-check-full  the whole extension against a CUDA build of PyTorch, imported, traced on fake CUDA tensors, and the
#                  decode loop on a pretended GPU
PYTHON ?= python
CUDA_JOBS ?= 2

.PHONY: cuda-check cuda-compile cuda-check-full triton-check

cuda-check: cuda-compile
	@if [ -n "$(DYNASPEC_CUDA_VENV)" ]; then $(MAKE) --no-print-directory cuda-check-full; \
	else echo "cuda-check: DYNASPEC_CUDA_VENV is not set; the extension is not built against a CUDA PyTorch (skipped)"; fi

cuda-compile:
	$(PYTHON) tools/cuda_check/compile.py --jobs $(CUDA_JOBS)

cuda-check-full:
	$(PYTHON) tools/cuda_check/build.py --jobs $(CUDA_JOBS)

triton-check:
	TRITON_INTERPRET=1 $(PYTHON) -m pytest -q tests/device/test_triton.py
	PYTHONPATH=. $(PYTHON) tools/cuda_check/triton_kernels.py
