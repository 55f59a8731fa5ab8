// Products of packed groups in 16 lanes (no include guard: included once a level, inside its target
// region). See packed_layout.h for the groups and packed_impl.h for who calls.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kPackedRows = 2;  // weight rows multiplied together: each load of x serves both

#ifdef DYNASPEC_BF16_DOT
// acc + quads of uint8 x int8 products. In assembly, since GCC 12 gives the intrinsic's result a
// register of its own (vec_avx512.h).
inline __m512i dot_quads(__m512i acc, __m512i w, const __m512i& x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "vm"(x));
  return acc;
}
#else
inline __m512i dot_pairs(__m512i acc, __m512i w, __m512i x) {
  return _mm512_add_epi32(acc, _mm512_madd_epi16(w, x));
}
#endif

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
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  } else if constexpr (G == 4) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else {
    int64_t word = 0;
    std::memcpy(&word, p, 4 * G);
    return G == 2 ? _mm512_set1_epi64(word) : _mm512_set1_epi32(static_cast<int32_t>(word));
  }
}

#ifdef DYNASPEC_BF16_DOT
// Vectors of bytes of g blocks.
template <int G>
constexpr int kByteVectors = G < 2 ? 1 : G / 2;

// Bit of its byte of the fifth-bit words that each byte of a group's vectors needs.
template <int G>
struct FifthBit {
  uint8_t of[kByteVectors<G>][64];
  constexpr FifthBit() : of{} {
    for (int byte = 0; byte < 32 * G; ++byte) {
      const int side = side_words(G), half = byte / (2 * side), q = byte % (2 * side) / 2;
      const int place = 4 * side * (half / 2) + side * (half % 2 + 2 * (byte % 2)) + q;
      of[byte / 64][byte % 64] = static_cast<uint8_t>(1u << (fifth_bit(G, place) % 8));
    }
  }
};
template <int G>
constexpr FifthBit<G> kFifthBit;

// The codes of g blocks as bytes without a sign (q8_0: plus 128), in the order of PairBytesX.
template <int G, int kBits>
inline void pair_bytes(const char* p, __m512i* q) {
  if constexpr (kBits == 8) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    if constexpr (G == 1) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      q[0] = _mm512_zextsi256_si512(_mm256_xor_si256(half, _mm512_castsi512_si256(sign)));
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < G / 2; ++v) {
        q[v] = _mm512_xor_si512(_mm512_loadu_si512(p + 64 * v), sign);
      }
    }
    return;
  }
  const __m512i low = _mm512_set1_epi8(15);
  if constexpr (G >= 4) {
#pragma GCC unroll 2
    for (int z = 0; z < G / 4; ++z) {
      const __m512i words = _mm512_loadu_si512(p + 64 * z);
      q[2 * z] = _mm512_and_si512(words, low);
      q[2 * z + 1] = _mm512_and_si512(_mm512_srli_epi16(words, 4), low);
    }
  } else if constexpr (G == 2) {
    const __m512i words =
        _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i by = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    q[0] = _mm512_and_si512(_mm512_srlv_epi16(words, by), low);
  } else {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(words, 4), words);
    q[0] = _mm512_zextsi256_si512(_mm256_and_si256(both, _mm512_castsi512_si256(low)));
  }
  if constexpr (kBits == 5) {
    const __m512i bits = fifth_words<G>(p + 16 * G);
#pragma GCC unroll 4
    for (int v = 0; v < kByteVectors<G>; ++v) {
      const __mmask64 set = _mm512_test_epi8_mask(bits, _mm512_loadu_si512(kFifthBit<G>.of[v]));
      q[v] = _mm512_mask_add_epi8(q[v], set, q[v], _mm512_set1_epi8(16));
    }
  }
}

// acc[r][i] += <group of weight row r, group of x row i>, a lane each.
template <int kBits, bool kMin>
struct PairProducts {
  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    constexpr int kVectors = kByteVectors<G>;
    __m512i q[R][kVectors];
    Vf scale[R], offset[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      scale[r] = pair_scales<G>(w[r]);
      if constexpr (kMin) {
        offset[r] = pair_scales<G>(w[r] + 2 * G);
      } else {
        offset[r] = vmul(scale[r], vset(-static_cast<float>(1 << (kBits - 1))));
      }
      pair_bytes<G, kBits>(w[r] + (kMin ? 4 : 2) * G, q[r]);
    }
    for (int64_t i = 0; i < x.n; ++i) {
      const __m512i* const xi = reinterpret_cast<const __m512i*>(x.codes + i * x.stride);
      const char* const facts = x.sums + i * x.stride;
      // q8_0's codes are 128 too large: its sums begin with what that adds, taken off.
      const __m512i from =
          kBits == 8 ? _mm512_load_si512(facts + PairBytesX::kExcess) : _mm512_setzero_si512();
      const Vf unit = _mm512_broadcast_f32x8(
          _mm256_load_ps(reinterpret_cast<const float*>(facts + PairBytesX::kUnits)));
      __m512i sum[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[r] = from;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m512i xv = xi[v];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) sum[r] = dot_quads(sum[r], q[r][v], xv);
      }
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        Vf a = vfma(vmul(_mm512_cvtepi32_ps(sum[r]), unit), scale[r], x.begun(acc[r] + i));
        if constexpr (kBits != 8) {
          a = vfma(vload(reinterpret_cast<const float*>(facts)), offset[r], a);
        }
        acc[r][i] = a;
      }
    }
  }
};
#else
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
#endif

inline float half_at(const char* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof(h));
  return _cvtsh_ss(h);
}

// Floats of 8 bytes.
inline __m256 wide8(uint64_t bytes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes))));
}

// Scales and minima of q4_k and q5_k: d * scale and -dmin * min of 8 blocks.
struct MinHead {
  __m256 scale, offset;

  explicit MinHead(const char* p) {
    uint64_t s;
    uint32_t m;
    std::memcpy(&s, p + 4, sizeof(s));
    std::memcpy(&m, p + 12, sizeof(m));
    const uint64_t high = (m & 0x0f0f0f0fu) | static_cast<uint64_t>(m >> 4 & 0x0f0f0f0fu) << 32;
    const uint64_t low = s >> 6 & 0x0303030303030303u;
    scale = _mm256_mul_ps(wide8(s & 0x3f3f3f3f3f3f3f3fu), _mm256_set1_ps(half_at(p)));
    offset = _mm256_mul_ps(wide8(low | high << 2), _mm256_set1_ps(-half_at(p + 2)));
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

struct Q4_K {
  static constexpr int64_t kBytes = kBlockQ4_K.bytes;

  static void codes(const char* p, __m512i* q, Vf* scale, Vf* offset) {
    const MinHead head(p);
    *scale = _mm512_broadcast_f32x8(head.scale);
    *offset = _mm512_broadcast_f32x8(head.offset);
    quad_nibbles(p + 16, q);
  }
};

struct Q5_K {
  static constexpr int64_t kBytes = kBlockQ5_K.bytes;

  static void codes(const char* p, __m512i* q, Vf* scale, Vf* offset) {
    const MinHead head(p);
    *scale = _mm512_broadcast_f32x8(head.scale);
    *offset = _mm512_broadcast_f32x8(head.offset);
    quad_nibbles(p + 48, q);
    const __m512i bits =
        _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)));
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8(static_cast<char>(1 << (2 * u))),
                                             _mm256_set1_epi8(static_cast<char>(2 << (2 * u))), 1);
      q[u] =
          _mm512_mask_add_epi8(q[u], _mm512_test_epi8_mask(bits, bit), q[u], _mm512_set1_epi8(16));
    }
  }
};

struct Q6_K {
  static constexpr int64_t kBytes = kBlockQ6_K.bytes;

  static void codes(const char* p, __m512i* q, Vf* scale, Vf* offset) {
    const __m512i scales =
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2)));
    *scale = vmul(_mm512_cvtepi32_ps(scales), vset(half_at(p)));
    *offset = vmul(*scale, vset(-32.0f));
    quad_nibbles(p + 18, q);
    const __m512i high = _mm512_loadu_si512(p + 146), mask = _mm512_set1_epi8(0x30);
    // a | (b & c)
    q[0] = _mm512_ternarylogic_epi32(q[0], _mm512_slli_epi16(high, 4), mask, 0xf8);
    q[1] = _mm512_ternarylogic_epi32(q[1], _mm512_slli_epi16(high, 2), mask, 0xf8);
    q[2] = _mm512_ternarylogic_epi32(q[2], high, mask, 0xf8);
    q[3] = _mm512_ternarylogic_epi32(q[3], _mm512_srli_epi16(high, 2), mask, 0xf8);
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
#ifdef DYNASPEC_BF16_DOT
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const __m512i xu = xi[u];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) sum[r] = dot_quads(sum[r], q[r][u], xu);
      }
#else
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
#endif
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
