// Scales and bits of packed groups in 16 lanes, for packed_avx512.h and packed_vnni.h (no include
// guard: included once a level, inside its target region).
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kPackedRows = 2;  // weight rows multiplied together: each load of x serves both

inline __m256i load_half(const char* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// [A.low + A.high | B.low + B.high], put together as they are loaded.
inline Vf fold_halves(const float* a, const float* b) {
  const Vf low =
      _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_load_ps(a)), _mm256_load_ps(b), 1);
  const Vf high =
      _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_load_ps(a + 8)), _mm256_load_ps(b + 8), 1);
  return vadd(low, high);
}

inline Vf fold_quarters(Vf x, Vf y) {
  return vadd(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}

// Lane sums of eight vectors that lie `stride` apart, in one fixed order: 8 shuffles.
inline void reduce8(const Vf* a, int64_t stride, float* out) {
  const float* const p = reinterpret_cast<const float*>(a);
  const int64_t to = stride * kWidth;
  const Vf low = fold_quarters(fold_halves(p, p + to), fold_halves(p + 2 * to, p + 3 * to));
  const Vf high =
      fold_quarters(fold_halves(p + 4 * to, p + 5 * to), fold_halves(p + 6 * to, p + 7 * to));
  const Vf pairs = vadd(_mm512_unpacklo_ps(low, high), _mm512_unpackhi_ps(low, high));
  const Vf sums = vadd(pairs, _mm512_permute_ps(pairs, 0x4e));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13);
  _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums)));
}

// The scales of g blocks, one a lane.
template <int G>
inline __m512 pair_scales(const char* p) {
  if constexpr (G == 8) {
    return _mm512_broadcast_f32x8(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  } else {
    uint64_t bits = 0;
    std::memcpy(&bits, p, 2 * G);
    const __m512 few =
        _mm512_castps256_ps512(_mm256_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(bits))));
    constexpr int a = G == 1 ? 0 : 1;
    const __m512i block = G == 4
                              ? _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1, 2, 2, 3, 3)
                              : _mm512_setr_epi32(0, 0, 0, 0, a, a, a, a, 0, 0, 0, 0, a, a, a, a);
    return _mm512_permutexvar_ps(block, few);
  }
}

// The words of fifth bits of g blocks, repeated.
template <int G>
inline __m512i fifth_words(const char* p) {
  if constexpr (G == 8) {
    return _mm512_broadcast_i64x4(load_half(p));
  } else if constexpr (G == 4) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else {
    int64_t word = 0;
    std::memcpy(&word, p, 4 * G);
    return G == 2 ? _mm512_set1_epi64(word) : _mm512_set1_epi32(static_cast<int32_t>(word));
  }
}

inline float half_at(const char* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof(h));
  return _cvtsh_ss(h);
}

// The 8 scales and 8 minima of a q4_k or q5_k group, a byte each.
struct MinBytes {
  uint64_t scale, min;

  explicit MinBytes(const char* p) {
    uint64_t s;
    uint32_t m;
    std::memcpy(&s, p + 4, sizeof(s));
    std::memcpy(&m, p + 12, sizeof(m));
    const uint64_t high = (m & 0x0f0f0f0fu) | static_cast<uint64_t>(m >> 4 & 0x0f0f0f0fu) << 32;
    scale = s & 0x3f3f3f3f3f3f3f3fu;
    min = (s >> 6 & 0x0303030303030303u) | high << 2;
  }
};

// Nibbles of a quads group as bytes.
inline void quad_nibbles(const char* p, __m512i* q) {
  const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 2
  for (int z = 0; z < 2; ++z) {
    const __m512i bytes = _mm512_loadu_si512(p + 64 * z);
    q[z] = _mm512_and_si512(bytes, low);
    q[z + 2] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
  }
}

// Adds the fifth bits of a q5_k group.
inline void quad_fifths(const char* p, __m512i* q) {
  const __m512i bits = _mm512_broadcast_i64x4(load_half(p));
#pragma GCC unroll 4
  for (int u = 0; u < 4; ++u) {
    const __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8(static_cast<char>(1 << (2 * u))),
                                           _mm256_set1_epi8(static_cast<char>(2 << (2 * u))), 1);
    q[u] = _mm512_mask_add_epi8(q[u], _mm512_test_epi8_mask(bits, bit), q[u], _mm512_set1_epi8(16));
  }
}

// Adds the upper two bits of a q6_k group.
inline void quad_upper(const char* p, __m512i* q) {
  const __m512i high = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(0x30);
  // a | (b & c)
  q[0] = _mm512_ternarylogic_epi32(q[0], _mm512_slli_epi16(high, 4), mask, 0xf8);
  q[1] = _mm512_ternarylogic_epi32(q[1], _mm512_slli_epi16(high, 2), mask, 0xf8);
  q[2] = _mm512_ternarylogic_epi32(q[2], high, mask, 0xf8);
  q[3] = _mm512_ternarylogic_epi32(q[3], _mm512_srli_epi16(high, 2), mask, 0xf8);
}

// Scales of a q6_k group: of even y, then of odd y.
inline Vf upper_scales(const char* p) {
  const __m512i scales =
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2)));
  return vmul(_mm512_cvtepi32_ps(scales), vset(half_at(p)));
}

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
