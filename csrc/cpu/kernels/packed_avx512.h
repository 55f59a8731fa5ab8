// Products of packed groups in 16 lanes without VNNI (no include guard: included once, inside its
// target region). See packed_layout.h for the groups and packed_impl.h for who calls.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

inline __m512i dot_pairs(__m512i acc, __m512i w, __m512i x) {
  return _mm512_add_epi32(acc, _mm512_madd_epi16(w, x));
}

// Bit of the fifth-bit words that vector u of a group needs in each of its 32 places.
template <int G>
struct FifthBit {
  uint16_t of[G][32];
  constexpr FifthBit() : of{} {
    for (int u = 0; u < G; ++u) {
      for (int q = 0; q < 32; ++q) of[u][q] = static_cast<uint16_t>(1u << fifth_bit(G, 32 * u + q));
    }
  }
};
template <int G>
constexpr FifthBit<G> kFifthBit;

// The codes of g blocks as int16, in the order of the places.
template <int G, int kBits>
inline void pair_codes(const char* p, __m512i* q) {
  if constexpr (kBits == 8) {
    // Words of two bytes: the low ones are the first half of the places.
    if constexpr (G == 1) {
      const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      const __m256i low = _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
      q[0] = _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_srai_epi16(words, 8), 1);
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < G / 2; ++v) {
        constexpr int kApart = G == 2 ? 1 : 2;
        const __m512i words = _mm512_loadu_si512(p + 64 * v);
        const int at = v / kApart * 2 * kApart + v % kApart;
        q[at] = _mm512_srai_epi16(_mm512_slli_epi16(words, 8), 8);
        q[at + kApart] = _mm512_srai_epi16(words, 8);
      }
    }
    return;
  }
  const __m512i low = _mm512_set1_epi16(15);
  if constexpr (G >= 4) {
#pragma GCC unroll 2
    for (int z = 0; z < G / 4; ++z) {
      const __m512i words = _mm512_loadu_si512(p + 64 * z);
      q[4 * z] = _mm512_and_si512(words, low);
      q[4 * z + 1] = _mm512_and_si512(_mm512_srli_epi16(words, 4), low);
      q[4 * z + 2] = _mm512_and_si512(_mm512_srli_epi16(words, 8), low);
      q[4 * z + 3] = _mm512_srli_epi16(words, 12);
    }
  } else if constexpr (G == 2) {
    const __m512i words =
        _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i by = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    q[0] = _mm512_and_si512(_mm512_srlv_epi16(words, by), low);
    q[1] =
        _mm512_and_si512(_mm512_srlv_epi16(words, _mm512_add_epi16(by, _mm512_set1_epi16(8))), low);
  } else {
    const __m512i words =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i by =
        _mm512_setr_epi32(0, 0, 0, 0, 0x40004, 0x40004, 0x40004, 0x40004, 0x80008, 0x80008, 0x80008,
                          0x80008, 0xc000c, 0xc000c, 0xc000c, 0xc000c);
    q[0] = _mm512_and_si512(_mm512_srlv_epi16(words, by), low);
  }
  if constexpr (kBits == 5) {
    const __m512i bits = fifth_words<G>(p + 16 * G);
#pragma GCC unroll 8
    for (int u = 0; u < G; ++u) {
      const __mmask32 set = _mm512_test_epi16_mask(bits, _mm512_loadu_si512(kFifthBit<G>.of[u]));
      q[u] = _mm512_mask_add_epi16(q[u], set, q[u], _mm512_set1_epi16(16));
    }
  }
}

// acc[r][i] += <group of weight row r, group of x row i>, a lane each.
template <int kBits, bool kMin>
struct PairProducts {
  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    constexpr bool kOffset = kBits != 8;  // codes are unsigned
    __m512i q[R][G];
    Vf scale[R], offset[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      scale[r] = pair_scales<G>(w[r]);
      if constexpr (kMin) {
        offset[r] = pair_scales<G>(w[r] + 2 * G);
      } else {
        offset[r] = vmul(scale[r], vset(-static_cast<float>(1 << (kBits - 1))));
      }
      pair_codes<G, kBits>(w[r] + (kMin ? 4 : 2) * G, q[r]);
    }
    for (int64_t i = 0; i < x.n; ++i) {
      const __m512i* const xi = reinterpret_cast<const __m512i*>(x.codes + i * x.stride);
      __m512i sum[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[r] = _mm512_madd_epi16(q[r][0], xi[0]);
#pragma GCC unroll 8
      for (int u = 1; u < G; ++u) {
        const __m512i xu = xi[u];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) sum[r] = dot_pairs(sum[r], q[r][u], xu);
      }
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        Vf a = vfma(_mm512_cvtepi32_ps(sum[r]), scale[r], x.begun(acc[r] + i));
        if constexpr (kOffset) {
          a = vfma(vload(reinterpret_cast<const float*>(x.sums + i * x.stride)), offset[r], a);
        }
        acc[r][i] = a;
      }
    }
  }
};
// Floats of 8 bytes, twice.
inline Vf wide8(uint64_t bytes) {
  return _mm512_broadcast_f32x8(
      _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)))));
}

template <int kBits>
struct QuadMin {
  static constexpr int64_t kBytes = kBits == 5 ? kBlockQ5_K.bytes : kBlockQ4_K.bytes;

  static void codes(const char* p, __m512i* q, Vf* scale, Vf* offset) {
    const MinBytes bytes(p);
    *scale = vmul(wide8(bytes.scale), vset(half_at(p)));
    *offset = vmul(wide8(bytes.min), vset(-half_at(p + 2)));
    quad_nibbles(p + (kBits == 5 ? 48 : 16), q);
    if constexpr (kBits == 5) quad_fifths(p + 16, q);
  }
};
using Q4_K = QuadMin<4>;
using Q5_K = QuadMin<5>;

struct Q6_K {
  static constexpr int64_t kBytes = kBlockQ6_K.bytes;

  static void codes(const char* p, __m512i* q, Vf* scale, Vf* offset) {
    *scale = upper_scales(p);
    *offset = vmul(*scale, vset(-32.0f));
    quad_nibbles(p + 18, q);
    quad_upper(p + 146, q);
  }
};

template <class F>
struct QuadProducts {
  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    __m512i q[R][4];
    Vf scale[R], offset[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) F::codes(w[r], q[r], &scale[r], &offset[r]);
    for (int64_t i = 0; i < x.n; ++i) {
      const __m512i* const xi = reinterpret_cast<const __m512i*>(x.codes + i * x.stride);
      __m512i sum[R];
      // Two products of 63 x 127 a lane, twice, fit int16; no more.
      const __m512i ones = _mm512_set1_epi16(1);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const __m512i a = _mm512_add_epi16(_mm512_maddubs_epi16(q[r][0], xi[0]),
                                           _mm512_maddubs_epi16(q[r][1], xi[1]));
        const __m512i b = _mm512_add_epi16(_mm512_maddubs_epi16(q[r][2], xi[2]),
                                           _mm512_maddubs_epi16(q[r][3], xi[3]));
        sum[r] = _mm512_add_epi32(_mm512_madd_epi16(a, ones), _mm512_madd_epi16(b, ones));
      }
      const Vf unit = vset(x.scale(i));
      const Vf sums = vload(reinterpret_cast<const float*>(x.sums + i * x.stride));
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const Vf whole = vmul(_mm512_cvtepi32_ps(sum[r]), unit);
        acc[r][i] = vfma(sums, offset[r], vfma(whole, scale[r], x.begun(acc[r] + i)));
      }
    }
  }
};

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
