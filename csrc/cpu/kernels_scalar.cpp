// The portable level: no instruction set beyond the compiler's baseline.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

#define DYNASPEC_LEVEL scalar
#include "cpu/kernels_impl.h"
#include "cpu/vec_portable.h"
