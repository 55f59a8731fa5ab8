#include "cpu/kernels/formats.h"

#include "cpu/kernels/packed_layout.h"

namespace dynaspec::cpu {
namespace {

constexpr FormatInfo dense(const char* name, int64_t bytes, UnpackRow unpack) {
  return {name, 1, bytes, nullptr, unpack};
}

constexpr FormatInfo blocks(const char* name, BlockShape shape, PackBlocks pack, UnpackRow unpack) {
  return {name, shape.values, shape.bytes, pack, unpack};
}

// In the order of Format. An int8 row needs the scale beside it.
constexpr FormatInfo kFormats[kNumFormats] = {
    dense("f32", 4, unpack_f32),
    dense("bf16", 2, unpack_bf16),
    dense("f16", 2, unpack_f16),
    dense("int8", 1, nullptr),
    blocks("q8_0", kBlockQ8_0, pack_q8_0, unpack_q8_0),
    blocks("q4_0", kBlockQ4_0, pack_q4_0, unpack_q4_0),
    blocks("q4_1", kBlockQ4_1, pack_q4_1, unpack_q4_1),
    blocks("q5_0", kBlockQ5_0, pack_q5_0, unpack_q5_0),
    blocks("q5_1", kBlockQ5_1, pack_q5_1, unpack_q5_1),
    blocks("q4_k", kBlockQ4_K, pack_q4_k, unpack_q4_k),
    blocks("q5_k", kBlockQ5_K, pack_q5_k, unpack_q5_k),
    blocks("q6_k", kBlockQ6_K, pack_q6_k, unpack_q6_k),
};

}  // namespace

const FormatInfo& info(Format format) { return kFormats[static_cast<int>(format)]; }

}  // namespace dynaspec::cpu
