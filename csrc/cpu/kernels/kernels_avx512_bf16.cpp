// The avx512_bf16 level. Only what stands in the target region may use its instructions, so every
// other header comes first.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/decoder_kernels.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/packed_layout.h"

#ifdef __clang__
#pragma clang attribute push(                                                               \
    __attribute__((                                                                         \
        target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")
#endif

#define DYNASPEC_LEVEL avx512_bf16
#define DYNASPEC_BF16_DOT 1
// clang-format off: each reads what stands before it
#include "cpu/kernels/vec_avx512.h"
#include "cpu/kernels/dot_rows_impl.h"
#include "cpu/kernels/kernels_impl.h"
#include "cpu/kernels/decoder_impl.h"
#include "cpu/kernels/packed_x.h"
#include "cpu/kernels/packed_x_vnni.h"
#include "cpu/kernels/packed_512.h"
#include "cpu/kernels/packed_vnni.h"
#include "cpu/kernels/packed_impl.h"
#include "cpu/kernels/table_impl.h"
// clang-format on

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
