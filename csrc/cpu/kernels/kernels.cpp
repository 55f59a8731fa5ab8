// The table of the level in use.
#include "cpu/kernels/kernels.h"

#include "cpu/kernels/isa.h"

namespace dynaspec::cpu {

namespace scalar {
const Kernels& table();
}
#ifdef __x86_64__
namespace avx2 {
const Kernels& table();
}
#ifdef DYNASPEC_HAS_AVX_VNNI
namespace avx_vnni {
const Kernels& table();
}
#endif
namespace avx512 {
const Kernels& table();
}
namespace avx512_bf16 {
const Kernels& table();
}
#endif

namespace {

const Kernels& table_of(Level level) {
#ifdef __x86_64__
  switch (level) {
    case Level::kScalar:
      break;
    case Level::kAvx2:
      return avx2::table();
    case Level::kAvxVnni:
#ifdef DYNASPEC_HAS_AVX_VNNI
      return avx_vnni::table();
#else
      break;
#endif
    case Level::kAvx512:
      return avx512::table();
    case Level::kAvx512Bf16:
      return avx512_bf16::table();
  }
#endif
  return scalar::table();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = table_of(level());
  return chosen;
}

}  // namespace dynaspec::cpu
