// Warp matrix fragments (m16n16k16). The programming interface leaves open which lane holds which
// element; here lane l holds elements 8 l .. 8 l + 7 in row-major order.
#pragma once

#include "simt.h"
#include "simt_half.h"

namespace nvcuda {
namespace wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "the machine knows m16n16k16");
  static constexpr int num_elements = 8;
  T x[num_elements];
};

inline float element(float v) { return v; }
inline float element(__nv_bfloat16 v) { return __bfloat162float(v); }
inline float element(__half v) { return __half2float(v); }
inline int element(signed char v) { return v; }

template <typename T>
void check_matrix(const T* base, unsigned stride) {
  if (reinterpret_cast<uintptr_t>(base) % 32 || stride * sizeof(T) % 16)
    simt::fail("matrix at %p with a stride of %u elements is not aligned",
               static_cast<const void*>(base), stride);
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* base, unsigned stride) {
  check_matrix(base, stride);
  simt::exchange(simt::Collective::kMatrix, 0xffffffffu, reinterpret_cast<uint64_t>(base));
  for (int i = 0; i < 8; ++i) {
    const unsigned e = simt::lane() * 8 + i, row = e / 16, col = e % 16;
    f.x[i] = std::is_same<Layout, row_major>::value ? base[row * stride + col]
                                                    : base[col * stride + row];
  }
}
template <typename T>
void store_matrix_sync(T* base, const fragment<accumulator, 16, 16, 16, T>& f, unsigned stride,
                       layout_t layout) {
  check_matrix(base, stride);
  simt::exchange(simt::Collective::kMatrix, 0xffffffffu, reinterpret_cast<uint64_t>(base));
  for (int i = 0; i < 8; ++i) {
    const unsigned e = simt::lane() * 8 + i, row = e / 16, col = e % 16;
    base[layout == mem_row_major ? row * stride + col : col * stride + row] = f.x[i];
  }
}
template <typename Use, typename T, typename Layout>
void fill_fragment(fragment<Use, 16, 16, 16, T, Layout>& f, T value) {
  for (int i = 0; i < 8; ++i) f.x[i] = value;
}
template <typename T, typename Sum, typename LA, typename LB>
SIMT_NO_TRACE void mma_sync(fragment<accumulator, 16, 16, 16, Sum>& d,
                            const fragment<matrix_a, 16, 16, 16, T, LA>& a,
                            const fragment<matrix_b, 16, 16, 16, T, LB>& b,
                            const fragment<accumulator, 16, 16, 16, Sum>& c) {
  const T* lanes_a[32];
  const T* lanes_b[32];
  const uint64_t* p =
      simt::exchange(simt::Collective::kMatrix, 0xffffffffu, reinterpret_cast<uint64_t>(&a));
  for (int i = 0; i < 32; ++i)
    lanes_a[i] = reinterpret_cast<const fragment<matrix_a, 16, 16, 16, T, LA>*>(p[i])->x;
  p = simt::exchange(simt::Collective::kMatrix, 0xffffffffu, reinterpret_cast<uint64_t>(&b));
  for (int i = 0; i < 32; ++i)
    lanes_b[i] = reinterpret_cast<const fragment<matrix_b, 16, 16, 16, T, LB>*>(p[i])->x;
  Sum out[8];
  for (int i = 0; i < 8; ++i) {
    const unsigned e = simt::lane() * 8 + i, row = e / 16, col = e % 16;
    Sum sum = c.x[i];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned ea = row * 16 + k, eb = k * 16 + col;
      sum += element(lanes_a[ea / 8][ea % 8]) * element(lanes_b[eb / 8][eb % 8]);
    }
    out[i] = sum;
  }
  simt::exchange(simt::Collective::kMatrix, 0xffffffffu, 0);  // everybody has read
  for (int i = 0; i < 8; ++i) d.x[i] = out[i];
}

}  // namespace wmma
}  // namespace nvcuda
