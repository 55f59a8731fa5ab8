// Products of packed groups by vpdpbusd in 16 lanes (no include guard: included once, inside its
// target region). See packed_layout.h for the groups, packed_x_vnni.h for double ones and
// packed_impl.h for who calls.
//
// Of a double group and two weight rows: 16 products, 8 loads of x, and 2 x (conversion, product
// with x's scale, product with the weight's, load and store of the sums).
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

// acc + quads of uint8 x int8 products. In assembly, since GCC 12 gives the intrinsic's result a
// register of its own (vec_avx512.h).
inline __m512i dot_quads(__m512i acc, __m512i w, __m512i x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
  return acc;
}

// [A | B]: 32 bytes of each of two groups.
inline __m512i both(const char* a, const char* b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load_half(a)), load_half(b), 1);
}

inline Vf both_scales(const char* a, const char* b) {
  return _mm512_cvtph_ps(_mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)), 1));
}

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

inline __m512i with_bit(__m512i q, __m512i bits, __m512i bit, int value) {
  return _mm512_mask_add_epi8(q, _mm512_test_epi8_mask(bits, bit), q,
                              _mm512_set1_epi8(static_cast<char>(value)));
}

// The codes of g blocks as bytes without a sign (q8_0: plus 128), in the order of PairBytesX.
template <int G, int kBits>
inline void pair_bytes(const char* p, __m512i* q) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80)), low = _mm512_set1_epi8(15);
  if constexpr (kBits == 8) {
    if constexpr (G == 1) {
      q[0] = _mm512_zextsi256_si512(_mm256_xor_si256(load_half(p), _mm512_castsi512_si256(sign)));
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < G / 2; ++v) {
        q[v] = _mm512_xor_si512(_mm512_loadu_si512(p + 64 * v), sign);
      }
    }
    return;
  }
  if constexpr (G >= 4) {
#pragma GCC unroll 2
    for (int z = 0; z < G / 4; ++z) {
      const __m512i words = _mm512_loadu_si512(p + 64 * z);
      q[2 * z] = _mm512_and_si512(words, low);
      q[2 * z + 1] = _mm512_and_si512(_mm512_srli_epi16(words, 4), low);
    }
  } else if constexpr (G == 2) {
    const __m512i words = _mm512_broadcast_i64x4(load_half(p));
    const __m512i by = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    q[0] = _mm512_and_si512(_mm512_srlv_epi16(words, by), low);
  } else {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i two = _mm256_set_m128i(_mm_srli_epi16(words, 4), words);
    q[0] = _mm512_zextsi256_si512(_mm256_and_si256(two, _mm512_castsi512_si256(low)));
  }
  if constexpr (kBits == 5) {
    const __m512i bits = fifth_words<G>(p + 16 * G);
#pragma GCC unroll 4
    for (int v = 0; v < kByteVectors<G>; ++v) {
      q[v] = with_bit(q[v], bits, _mm512_loadu_si512(kFifthBit<G>.of[v]), 16);
    }
  }
}

// The same of two groups of 8 blocks.
template <int kBits>
inline void double_pair_bytes(const char* a, const char* b, __m512i* q) {
  if constexpr (kBits == 8) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) q[v] = _mm512_xor_si512(both(a + 32 * v, b + 32 * v), sign);
    return;
  }
  const __m512i low = _mm512_set1_epi8(15), place = _mm512_set1_epi8(16);
  const __m512i bits = kBits == 5 ? both(a + 128, b + 128) : low;
#pragma GCC unroll 4
  for (int h = 0; h < 4; ++h) {
    const __m512i words = both(a + 32 * h, b + 32 * h);
    const int v = 4 * (h / 2) + h % 2;
    q[v] = _mm512_and_si512(words, low);
    q[v + 2] = _mm512_and_si512(_mm512_srli_epi16(words, 4), low);
    if constexpr (kBits == 5) {
      // Their fifth bits are bits h and h + 4 of a byte each: a | (b & c).
      q[v] = _mm512_ternarylogic_epi32(q[v], _mm512_slli_epi16(bits, 4 - h), place, 0xf8);
      q[v + 2] = _mm512_ternarylogic_epi32(q[v + 2], _mm512_srli_epi16(bits, h), place, 0xf8);
    }
  }
}

// acc[r][i] += <group of weight row r, group of x row i>, a lane each.
template <int kBits, bool kMin>
struct PairProducts {
  static constexpr int kHead = kMin ? 32 : 16, kBytes = kHead + 32 * kBits;  // of 8 blocks

  template <int G>
  static void unpack(const char* w, __m512i* q, Vf* scale, Vf* offset) {
    if constexpr (G == kDouble) {
      const char* const second = w + kBytes;
      *scale = both_scales(w, second);
      if constexpr (kMin) *offset = both_scales(w + 16, second + 16);
      double_pair_bytes<kBits>(w + kHead, second + kHead, q);
    } else {
      *scale = pair_scales<G>(w);
      if constexpr (kMin) *offset = pair_scales<G>(w + 2 * G);
      pair_bytes<G, kBits>(w + (kMin ? 4 : 2) * G, q);
    }
  }

  // The sums begin with what codes without a sign add, taken off.
  static __m512i first_sum(const char* facts) {
    if constexpr (kMin) return _mm512_setzero_si512();
    return _mm512_srai_epi32(_mm512_loadu_si512(facts + kExcessAt), 8 - kBits);
  }

  // sum += <group of weight row r, group of x>, scaled: a lane each.
  template <int G, int R>
  static void add(const __m512i (*q)[kByteVectors<G>], const Vf* scale, const Vf* offset,
                  const __m512i* x, const char* facts, Vf* total) {
    const __m512i from = first_sum(facts);
    const Vf unit = vload(reinterpret_cast<const float*>(facts + kUnitsAt));
    __m512i sum[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) sum[r] = from;
#pragma GCC unroll 8
    for (int v = 0; v < kByteVectors<G>; ++v) {
      const __m512i xv = x[v];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[r] = dot_quads(sum[r], q[r][v], xv);
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      total[r] = vfma(vmul(_mm512_cvtepi32_ps(sum[r]), unit), scale[r], total[r]);
      if constexpr (kMin) {
        total[r] =
            vfma(vload(reinterpret_cast<const float*>(facts + kSumsAt)), offset[r], total[r]);
      }
    }
  }

  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    constexpr int kWhole = G == kFused ? kDouble : G, kRest = 4;
    __m512i q[R][kByteVectors<kWhole>], rest[R][kByteVectors<kRest>];
    Vf scale[R], offset[R], rest_scale[R], rest_offset[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      unpack<kWhole>(w[r], q[r], &scale[r], &offset[r]);
      if constexpr (G == kFused) {
        unpack<kRest>(w[r] + 2 * kBytes, rest[r], &rest_scale[r], &rest_offset[r]);
      }
    }
    for (int64_t i = 0; i < x.n; ++i) {
      const __m512i* const xi = reinterpret_cast<const __m512i*>(x.codes + i * x.stride);
      const char* const facts = x.sums + i * x.stride;
      Vf total[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) total[r] = x.begun(acc[r] + i);
      add<kWhole, R>(q, scale, offset, xi, facts, total);
      if constexpr (G == kFused) {
        add<kRest, R>(rest, rest_scale, rest_offset, xi + kByteVectors<kWhole>, facts + 3 * kFact,
                      total);
      }
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) acc[r][i] = total[r];
    }
  }
};

// d and dmin of two groups that begin with them, [A | B] each.
struct TwoHeads {
  Vf d, dmin;

  TwoHeads(const char* a, const char* b) {
    uint32_t first, second;
    std::memcpy(&first, a, sizeof(first));
    std::memcpy(&second, b, sizeof(second));
    const __m512 four = _mm512_castps128_ps512(_mm_cvtph_ps(
        _mm_cvtsi64_si128(static_cast<int64_t>(first | static_cast<uint64_t>(second) << 32))));
    const __m512i place = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2);
    d = _mm512_permutexvar_ps(place, four);
    dmin = _mm512_permutexvar_ps(_mm512_add_epi32(place, _mm512_set1_epi32(1)), four);
  }
};

// Floats of 8 bytes of A and 8 of B.
inline Vf wide(uint64_t a, uint64_t b) {
  const __m128i bytes = _mm_set_epi64x(static_cast<int64_t>(b), static_cast<int64_t>(a));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}

// q4_k and q5_k: codes, scales and (negative) minima.
template <int kBits>
struct QuadMin {
  static constexpr int kBytes = kBits == 5 ? kBlockQ5_K.bytes : kBlockQ4_K.bytes;
  static constexpr bool kMin = true;
  static constexpr int kCodes = kBits == 5 ? 48 : 16;

  static void unpack(const char* p, __m512i* q, Vf* scale, Vf* offset) {
    const MinBytes bytes(p);
    const TwoHeads heads(p, p);
    *scale = vmul(wide(bytes.scale, bytes.scale), heads.d);
    *offset = vsub(vzero(), vmul(wide(bytes.min, bytes.min), heads.dmin));
    quad_nibbles(p + kCodes, q);
    if constexpr (kBits == 5) quad_fifths(p + 16, q);
  }

  static void unpack_two(const char* a, __m512i* q, Vf* scale, Vf* offset) {
    const char* const b = a + kBytes;
    const MinBytes first(a), second(b);
    const TwoHeads heads(a, b);
    *scale = vmul(wide(first.scale, second.scale), heads.d);
    *offset = vsub(vzero(), vmul(wide(first.min, second.min), heads.dmin));
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
      const __m512i bytes = both(a + kCodes + 32 * y, b + kCodes + 32 * y);
      q[y] = _mm512_and_si512(bytes, low);
      q[y + 4] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
    }
    if constexpr (kBits == 5) {
      const __m512i bits = both(a + 16, b + 16), place = _mm512_set1_epi8(16);
#pragma GCC unroll 4
      for (int y = 0; y < 4; ++y) {  // a | (b & c)
        q[y] = _mm512_ternarylogic_epi32(q[y], _mm512_slli_epi16(bits, 4 - y), place, 0xf8);
        q[y + 4] = _mm512_ternarylogic_epi32(q[y + 4], _mm512_srli_epi16(bits, y), place, 0xf8);
      }
    }
  }
};
using Q4_K = QuadMin<4>;
using Q5_K = QuadMin<5>;

// Codes plus 32; scales of even y and of odd y (one group: in one vector, as the sums are).
struct Q6_K {
  static constexpr int kBytes = kBlockQ6_K.bytes;
  static constexpr bool kMin = false;

  static void unpack(const char* p, __m512i* q, Vf* scale, Vf*) {
    *scale = upper_scales(p);
    quad_nibbles(p + 18, q);
    quad_upper(p + 146, q);
  }

  static void unpack_two(const char* a, __m512i* q, Vf* even, Vf* odd) {
    const char* const b = a + kBytes;
    const Vf first = upper_scales(a), second = upper_scales(b);
    *even = _mm512_shuffle_f32x4(first, second, 0x44);
    *odd = _mm512_shuffle_f32x4(first, second, 0xee);
    const __m512i low = _mm512_set1_epi8(15), mask = _mm512_set1_epi8(0x30);
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
      const __m512i bytes = both(a + 18 + 32 * y, b + 18 + 32 * y);
      q[y] = _mm512_and_si512(bytes, low);
      q[y + 4] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512i high = both(a + 146 + 32 * h, b + 146 + 32 * h);
      // a | (b & c)
      q[h] = _mm512_ternarylogic_epi32(q[h], _mm512_slli_epi16(high, 4), mask, 0xf8);
      q[2 + h] = _mm512_ternarylogic_epi32(q[2 + h], _mm512_slli_epi16(high, 2), mask, 0xf8);
      q[4 + h] = _mm512_ternarylogic_epi32(q[4 + h], high, mask, 0xf8);
      q[6 + h] = _mm512_ternarylogic_epi32(q[6 + h], _mm512_srli_epi16(high, 2), mask, 0xf8);
    }
  }
};

template <class F>
struct QuadProducts {
  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    constexpr bool kTwo = G == kDouble;
    constexpr int kVectors = kTwo ? 8 : 4;
    // Of a double group without minima the sums of even and odd y have scales of their own.
    constexpr int kParts = kTwo && !F::kMin ? 2 : 1;
    __m512i q[R][kVectors];
    Vf scale[R], other[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      if constexpr (kTwo) {
        F::unpack_two(w[r], q[r], &scale[r], &other[r]);
      } else {
        F::unpack(w[r], q[r], &scale[r], &other[r]);
      }
    }
    for (int64_t i = 0; i < x.n; ++i) {
      const __m512i* const xi = reinterpret_cast<const __m512i*>(x.codes + i * x.stride);
      const char* const facts = x.sums + i * x.stride;
      __m512i sum[R][kParts];
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        const __m512i from =
            F::kMin ? _mm512_setzero_si512() : _mm512_loadu_si512(facts + kExcessAt + part * kFact);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) sum[r][part] = from;
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const __m512i xv = xi[v];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          sum[r][v % kParts] = dot_quads(sum[r][v % kParts], q[r][v], xv);
        }
      }
      const Vf unit = vload(reinterpret_cast<const float*>(facts + kUnitsAt));
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        Vf whole = vmul(_mm512_cvtepi32_ps(sum[r][0]), scale[r]);
        if constexpr (kParts == 2) whole = vfma(_mm512_cvtepi32_ps(sum[r][1]), other[r], whole);
        Vf a = vfma(whole, unit, x.begun(acc[r] + i));
        if constexpr (F::kMin) {
          a = vfma(vload(reinterpret_cast<const float*>(facts + kSumsAt)), other[r], a);
        }
        acc[r][i] = a;
      }
    }
  }
};

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
