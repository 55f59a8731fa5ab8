// The formats of weights: what does not depend on the processor. FormatKernels has what does.
#pragma once

#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/packed_rows.h"

namespace dynaspec::cpu {

struct FormatInfo {
  const char* name;
  int64_t values, bytes;  // of a block; a row of k values is k / values blocks
  PackBlocks pack;        // nullptr: rows are stored as they are multiplied
  UnpackRow unpack;

  bool fits(int64_t k) const { return k % values == 0; }
  int64_t row_bytes(int64_t k) const { return k / values * bytes; }
};

const FormatInfo& info(Format format);

}  // namespace dynaspec::cpu
