// The portable level: no instruction set beyond the compiler's baseline.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/decoder_kernels.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/packed_layout.h"

#define DYNASPEC_LEVEL scalar
// clang-format off: each reads what stands before it
#include "cpu/kernels/vec_portable.h"
#include "cpu/kernels/dot_rows_impl.h"
#include "cpu/kernels/kernels_impl.h"
#include "cpu/kernels/decoder_impl.h"
#include "cpu/kernels/packed_x.h"
#include "cpu/kernels/packed_portable.h"
#include "cpu/kernels/packed_impl.h"
#include "cpu/kernels/table_impl.h"
// clang-format on
