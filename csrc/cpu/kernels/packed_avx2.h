// Products of packed groups in 8 lanes (no include guard: included once, inside its target region).
// See packed_layout.h for the groups and packed_impl.h for who calls.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kPackedRows = 1;  // weight rows multiplied together: one fills the registers

inline Vf fold_lanes(Vf a, Vf b) {
  return vadd(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
}

// Sums of the 128-bit lanes of four vectors, [A B C D] in each lane.
inline Vf fold_four(const Vf* a, int64_t stride) {
  const __m256d ab = _mm256_castps_pd(fold_lanes(a[0], a[stride])),
                cd = _mm256_castps_pd(fold_lanes(a[2 * stride], a[3 * stride]));
  return vadd(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
              _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
}

// Lane sums of eight vectors that lie `stride` apart, in one fixed order.
inline void reduce8(const Vf* a, int64_t stride, float* out) {
  const Vf low = fold_four(a, stride), high = fold_four(a + 4 * stride, stride);
  vstore(out,
         vadd(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)));
}

inline __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// The scales of g blocks, one a lane.
template <int G>
inline __m256 pair_scales(const char* p) {
  if constexpr (G == 8) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else {
    uint64_t bits = 0;
    std::memcpy(&bits, p, 2 * G);
    const __m256 few = _mm256_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(bits)));
    constexpr int a = G == 1 ? 0 : 1;
    const __m256i block = G == 4 ? _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)
                                 : _mm256_setr_epi32(0, 0, 0, 0, a, a, a, a);
    return _mm256_permutevar8x32_ps(few, block);
  }
}

// Fifth bits of the words of nibbles beside them, at bits 0, 4, 8 and 12 of each 16-bit word: of
// 16 words that lie side by side (g = 8: for those from 16 on shifted by their vector's number; g =
// 4: for the second 16 shifted by 2).
template <int G>
inline __m256i fifth_words(const char* p) {
  if constexpr (G == 8) {
    return load_bytes(p);
  } else if constexpr (G == 4) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_set_m128i(_mm_srli_epi16(words, 1), words);
  } else {
    // Bits that come from a neighbour's word are not among the four.
    int64_t word = 0;
    std::memcpy(&word, p, 4 * G);
    return G == 2 ? _mm256_srlv_epi64(_mm256_set1_epi64x(word), _mm256_setr_epi64x(0, 1, 2, 3))
                  : _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int32_t>(word)),
                                      _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3));
  }
}

// Vectors of a group that are in registers at a time.
template <int G>
constexpr int kPart = 2 * G < 8 ? 2 * G : 8;

// Vectors [8 z, 8 z + kPart) of the codes of g blocks as int16, in the order of the places.
template <int G, int kBits>
inline void pair_codes(const char* p, int z, __m256i* q) {
  if constexpr (kBits == 8) {
    // Words of two bytes: the low ones are the first half of the places.
#pragma GCC unroll 4
    for (int w = 0; w < kPart<G> / 2; ++w) {
      const __m256i words = load_bytes(p + 128 * z + 32 * w);
      q[w] = _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
      q[kPart<G> / 2 + w] = _mm256_srai_epi16(words, 8);
    }
    return;
  }
  if constexpr (kBits == 5) {
    const __m256i nibble = _mm256_set1_epi8(15), place = _mm256_set1_epi8(16),
                  byte = _mm256_set1_epi16(255);
    __m256i bits = fifth_words<G>(p + 16 * G);
    if constexpr (G == 1) {
      const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      const __m256i two = _mm256_set_m128i(_mm_srli_epi16(words, 4), words);
      bits = _mm256_blend_epi32(_mm256_slli_epi16(bits, 4), bits, 0xf0);
      const __m256i codes =
          _mm256_or_si256(_mm256_and_si256(two, nibble), _mm256_and_si256(bits, place));
      q[0] = _mm256_and_si256(codes, byte);
      q[1] = _mm256_srli_epi16(codes, 8);
      return;
    }
    if (z == 1) bits = _mm256_srli_epi16(bits, 2);
    constexpr int kVectors = kPart<G> / 4;
#pragma GCC unroll 2
    for (int h = 0; h < kVectors; ++h) {
      constexpr int kStep = G == 4 ? 2 : 1;
      const __m256i words = load_bytes(p + 64 * z + 32 * h);
      const __m256i even =
          _mm256_or_si256(_mm256_and_si256(words, nibble),
                          _mm256_and_si256(_mm256_slli_epi16(bits, 4 - kStep * h), place));
      const __m256i odd =
          _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(words, 4), nibble),
                          _mm256_and_si256(_mm256_srli_epi16(bits, kStep * h), place));
      q[h] = _mm256_and_si256(even, byte);
      q[kVectors + h] = _mm256_and_si256(odd, byte);
      q[2 * kVectors + h] = _mm256_srli_epi16(even, 8);
      q[3 * kVectors + h] = _mm256_srli_epi16(odd, 8);
    }
    return;
  }
  const __m256i low = _mm256_set1_epi16(15);
  if constexpr (G >= 4) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i words = load_bytes(p + 64 * z + 32 * h);
      q[h] = _mm256_and_si256(words, low);
      q[2 + h] = _mm256_and_si256(_mm256_srli_epi16(words, 4), low);
      q[4 + h] = _mm256_and_si256(_mm256_srli_epi16(words, 8), low);
      q[6 + h] = _mm256_srli_epi16(words, 12);
    }
  } else if constexpr (G == 2) {
    const __m256i words = load_bytes(p);
    q[0] = _mm256_and_si256(words, low);
    q[1] = _mm256_and_si256(_mm256_srli_epi16(words, 4), low);
    q[2] = _mm256_and_si256(_mm256_srli_epi16(words, 8), low);
    q[3] = _mm256_srli_epi16(words, 12);
  } else {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    q[0] = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(words, 4), words), low);
    q[1] = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(words, 12), _mm_srli_epi16(words, 8)),
                            low);
  }
}

// acc[r][i] += <group of weight row r, group of x row i>, a lane each.
template <int kBits, bool kMin>
struct PairProducts {
  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    static_assert(R == 1);
    constexpr bool kOffset = kBits != 8;  // codes are unsigned
    Vf* const sums = acc[0];
    const Vf scale = pair_scales<G>(w[0]);
    Vf offset;
    if constexpr (kMin) {
      offset = pair_scales<G>(w[0] + 2 * G);
    } else {
      offset = vmul(scale, vset(-static_cast<float>(1 << (kBits - 1))));
    }
    for (int z = 0; z < (G == 8 ? 2 : 1); ++z) {
      __m256i q[kPart<G>];
      pair_codes<G, kBits>(w[0] + (kMin ? 4 : 2) * G, z, q);
      for (int64_t i = 0; i < x.n; ++i) {
        const __m256i* const xi = reinterpret_cast<const __m256i*>(x.codes + i * x.stride) + 8 * z;
        __m256i sum = _mm256_madd_epi16(q[0], xi[0]);
#pragma GCC unroll 8
        for (int c = 1; c < kPart<G>; ++c) sum = dot_pairs(sum, q[c], xi[c]);
        Vf a = vfma(_mm256_cvtepi32_ps(sum), scale, z == 0 ? x.begun(sums + i) : sums[i]);
        if (kOffset && z == 0) {
          a = vfma(vload(reinterpret_cast<const float*>(x.sums + i * x.stride)), offset, a);
        }
        sums[i] = a;
      }
    }
  }
};

inline float half_at(const char* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof(h));
  return _cvtsh_ss(h);
}

// Floats of 8 bytes.
inline __m256 wide8(uint64_t bytes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes))));
}

// Nibbles of a quads group as bytes.
inline void quad_nibbles(const char* p, __m256i* q) {
  const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    const __m256i bytes = load_bytes(p + 32 * y);
    q[y] = _mm256_and_si256(bytes, low);
    q[y + 4] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
  }
}

// Sums of quads of uint8 x int8, a lane each; int16 sums of `kFit` vectors do not overflow.
template <int kFit, int kStep, int kFrom>
inline __m256i dot_quads(const __m256i* q, const __m256i* x) {
  __m256i total = _mm256_setzero_si256();
#ifdef DYNASPEC_AVX_VNNI
#pragma GCC unroll 8
  for (int y = kFrom; y < 8; y += kStep) total = _mm256_dpbusd_avx_epi32(total, q[y], x[y]);
#else
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int y = kFrom; y < 8; y += kFit * kStep) {
    __m256i part = _mm256_maddubs_epi16(q[y], x[y]);
#pragma GCC unroll 8
    for (int t = 1; t < kFit; ++t) {
      part = _mm256_add_epi16(part, _mm256_maddubs_epi16(q[y + t * kStep], x[y + t * kStep]));
    }
    const __m256i whole = _mm256_madd_epi16(part, ones);
    total = y == kFrom ? whole : _mm256_add_epi32(total, whole);
  }
#endif
  return total;
}

// Scales and minima of q4_k and q5_k.
template <int kBits>
struct QuadMin {
  static void multiply(const char* w, const GroupOfX& x, Vf* acc) {
    uint64_t s;
    uint32_t m;
    std::memcpy(&s, w + 4, sizeof(s));
    std::memcpy(&m, w + 12, sizeof(m));
    const uint64_t high = (m & 0x0f0f0f0fu) | static_cast<uint64_t>(m >> 4 & 0x0f0f0f0fu) << 32;
    const uint64_t low = s >> 6 & 0x0303030303030303u;
    const Vf scale = vmul(wide8(s & 0x3f3f3f3f3f3f3f3fu), vset(half_at(w)));
    const Vf offset = vmul(wide8(low | high << 2), vset(-half_at(w + 2)));
    __m256i q[8];
    quad_nibbles(w + (kBits == 5 ? 48 : 16), q);
    if constexpr (kBits == 5) {
      const __m256i bits = load_bytes(w + 16), place = _mm256_set1_epi8(16);
#pragma GCC unroll 8
      for (int y = 0; y < 8; ++y) {
        const __m256i moved = y < 4   ? _mm256_slli_epi16(bits, 4 - y)
                              : y > 4 ? _mm256_srli_epi16(bits, y - 4)
                                      : bits;
        q[y] = _mm256_or_si256(q[y], _mm256_and_si256(moved, place));
      }
    }
    for (int64_t i = 0; i < x.n; ++i) {
      const __m256i* const xi = reinterpret_cast<const __m256i*>(x.codes + i * x.stride);
      const float* const sums = reinterpret_cast<const float*>(x.sums + i * x.stride) + 16;
      const __m256i sum = dot_quads<kBits == 5 ? 4 : 8, 1, 0>(q, xi);
      const Vf whole = vmul(_mm256_cvtepi32_ps(sum), vset(x.scale(i)));
      acc[i] = vfma(vload(sums), offset, vfma(whole, scale, x.begun(acc + i)));
    }
  }
};

struct Q4_K : QuadMin<4> {
  static constexpr int64_t kBytes = kBlockQ4_K.bytes;
};
struct Q5_K : QuadMin<5> {
  static constexpr int64_t kBytes = kBlockQ5_K.bytes;
};

struct Q6_K {
  static constexpr int64_t kBytes = kBlockQ6_K.bytes;

  static void multiply(const char* w, const GroupOfX& x, Vf* acc) {
    const Vf d = vset(half_at(w));
    Vf scale[2];
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      scale[s] = vmul(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
                             _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w + 2 + 8 * s)))));
    }
    __m256i q[8];
    quad_nibbles(w + 18, q);
    const __m256i mask = _mm256_set1_epi8(0x30);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i high = load_bytes(w + 146 + 32 * h);
      q[h] = _mm256_or_si256(q[h], _mm256_and_si256(_mm256_slli_epi16(high, 4), mask));
      q[2 + h] = _mm256_or_si256(q[2 + h], _mm256_and_si256(_mm256_slli_epi16(high, 2), mask));
      q[4 + h] = _mm256_or_si256(q[4 + h], _mm256_and_si256(high, mask));
      q[6 + h] = _mm256_or_si256(q[6 + h], _mm256_and_si256(_mm256_srli_epi16(high, 2), mask));
    }
    const Vf centre = vset(-32.0f);
    for (int64_t i = 0; i < x.n; ++i) {
      const __m256i* const xi = reinterpret_cast<const __m256i*>(x.codes + i * x.stride);
      const float* const sums = reinterpret_cast<const float*>(x.sums + i * x.stride);
      const Vf unit = vset(x.scale(i));
      // Sums of codes - 32: those of codes, less 32 times x's own, which carry the unit already.
      const Vf even =
          vfma(vload(sums), centre, vmul(_mm256_cvtepi32_ps(dot_quads<2, 2, 0>(q, xi)), unit));
      const Vf odd =
          vfma(vload(sums + 8), centre, vmul(_mm256_cvtepi32_ps(dot_quads<2, 2, 1>(q, xi)), unit));
      acc[i] = vfma(odd, scale[1], vfma(even, scale[0], x.begun(acc + i)));
    }
  }
};

template <class F>
struct QuadProducts {
  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    static_assert(R == 1);
    F::multiply(w[0], x, acc[0]);
  }
};

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
