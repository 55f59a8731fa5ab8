// The portable level: no instruction set beyond the compiler's baseline.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/decoder_kernels.h"
#include "cpu/kernels.h"

#define DYNASPEC_LEVEL scalar
// clang-format off: each reads what stands before it
#include "cpu/vec_portable.h"
#include "cpu/dot_rows_impl.h"
#include "cpu/kernels_impl.h"
#include "cpu/decoder_impl.h"
#include "cpu/table_impl.h"
// clang-format on
