// The avx_vnni level: avx2's kernels with VNNI's VEX form, which adds up products in one
// instruction. Results are avx2's to the bit. Only what stands in the target region may use its
// instructions, so every other header comes first.
#include "cpu/kernels/isa.h"

#ifdef DYNASPEC_HAS_AVX_VNNI
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/decoder_kernels.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/packed_layout.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#define DYNASPEC_LEVEL avx_vnni
#define DYNASPEC_AVX_VNNI 1

// clang-format off: each reads what stands before it
#include "cpu/kernels/vec_avx2.h"
#include "cpu/kernels/dot_rows_impl.h"
#include "cpu/kernels/kernels_impl.h"
#include "cpu/kernels/decoder_impl.h"
#include "cpu/kernels/packed_x.h"
#include "cpu/kernels/packed_avx2.h"
#include "cpu/kernels/packed_impl.h"
#include "cpu/kernels/table_impl.h"
// clang-format on

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
