// Rows of x where vpdpbusd multiplies: int8 codes (no include guard: included after packed_x.h,
// inside its target region).
//
// Here a group may be twice as long: of two groups A and B that follow each other in a weight row
// the halves (32 bytes) of their vectors are put together, [A | B]. All 16 lanes then belong to
// different blocks, and one conversion to float and one product with the scales serve 512 values
// instead of 256. Codes of x lie in the order that these vectors have.
//
// Of each group follow, after all codes, vectors of 16 lanes: the sums of x's codes times their
// scale, the scales, -128 times the sums of codes (pairs) or -32 times them (quads; of a double
// group first of even y, then of odd y) as integers.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kDouble = 16;  // blocks of 32 of a double group
// A double group and one of 4 blocks after it (rows of 640 values), multiplied together: sums stay
// in registers between the two. Their codes and facts lie one after another.
constexpr int kFused = 20;
constexpr int kFact = 64;  // bytes of a vector of facts
constexpr int kSumsAt = 0, kUnitsAt = kFact, kExcessAt = 2 * kFact, kOddExcessAt = 3 * kFact;

// Value of the group's that each byte of its codes holds.
template <int G>
struct PairBytes {
  uint16_t value[32 * G];
  constexpr PairBytes() : value{} {
    constexpr int g = G < kDouble ? G : 8;
    for (int byte = 0; byte < 32 * G; ++byte) {
      // A byte of a weight's own: word q of side h, low or high.
      const int own = G < kDouble ? byte : byte / 64 * 32 + byte % 32;
      const int side = side_words(g), h = own / (2 * side), q = own % (2 * side) / 2;
      const int place = 4 * side * (h / 2) + side * (h % 2 + 2 * (own % 2)) + q;
      value[byte] =
          static_cast<uint16_t>(pair_value(g, place) + (G < kDouble ? 0 : byte % 64 / 32 * 256));
    }
  }
};
template <int G>
constexpr PairBytes<G> kPairBytes;

inline __m512i lane_sums(__m512i sum, const int8_t* codes) {
  return _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_loadu_si512(codes));
}

inline void put_facts(char* facts, __m512i sums, Vf units, int excess) {
  vstore(reinterpret_cast<float*>(facts + kSumsAt), vmul(_mm512_cvtepi32_ps(sums), units));
  vstore(reinterpret_cast<float*>(facts + kUnitsAt), units);
  _mm512_storeu_si512(facts + kExcessAt, _mm512_mullo_epi32(sums, _mm512_set1_epi32(excess)));
}

// Pairs: a scale for each block of 32 (max |x| / 127).
struct PairBytesX {
  static constexpr bool kPairs = true, kRowScale = false;
  static constexpr int kSums = 3 * kFact / static_cast<int>(sizeof(float));
  static int blocks(int64_t left) {
    if (left >= kFused && left < kFused + 4) return kFused;
    return left >= kDouble ? kDouble : group_size(left);
  }
  static int64_t code_bytes(int g) { return g == 1 ? 64 : 32 * g; }
  static int64_t sum_bytes(int g) { return (g == kFused ? 2 : 1) * kSums * sizeof(float); }
  static int64_t sums_at(int64_t k) { return k + (k / 32 % 2) * 32; }
  static int64_t scale_at(int64_t k) {
    const int64_t blocks = k / 32,
                  groups = blocks / kDouble +
                           __builtin_popcountll(static_cast<uint64_t>(blocks % kDouble));
    return sums_at(k) + groups * kSums * static_cast<int64_t>(sizeof(float));
  }
  static int64_t stride(int64_t k) { return (round_up(scale_at(k), kLine) / kLine | 1) * kLine; }

  template <int G>
  static void pack_group(const float* x, int8_t* codes, char* facts) {
    int8_t natural[32 * G];
    alignas(64) float unit[16];
    for (int j = 0; j < G; ++j) {
      const float scale = peak(x + 32 * j, 32) / 127.0f;
      quantise(x + 32 * j, 32, scale, natural + 32 * j);
      for (int l = 0; l < 16; ++l) {
        if ((G < kDouble ? l % 8 * G / 8 : l) == j) unit[l] = scale;
      }
    }
    for (int byte = 0; byte < 32 * G; ++byte) codes[byte] = natural[kPairBytes<G>.value[byte]];
    if constexpr (G == 1) std::memset(codes + 32, 0, 32);
    __m512i sums = _mm512_setzero_si512();
    for (int at = 0; at < code_bytes(G); at += 64) sums = lane_sums(sums, codes + at);
    put_facts(facts, sums, vload(unit), -128);
  }

  static void pack(const float* x, int64_t k, char* packed) {
    int8_t* codes = reinterpret_cast<int8_t*>(packed);
    char* facts = packed + sums_at(k);
    for (int64_t at = 0; at < k;) {
      int g = blocks((k - at) / 32);
      if (g == kFused) g = kDouble;
      switch (g) {
        case kDouble:
          pack_group<kDouble>(x + at, codes, facts);
          break;
        case 8:
          pack_group<8>(x + at, codes, facts);
          break;
        case 4:
          pack_group<4>(x + at, codes, facts);
          break;
        case 2:
          pack_group<2>(x + at, codes, facts);
          break;
        default:
          pack_group<1>(x + at, codes, facts);
      }
      facts += kSums * sizeof(float);
      codes += code_bytes(g);
      at += 32 * g;
    }
  }
};
using PairForm = PairBytesX;

// Quads: one scale for every 256 values (max |x| / 127).
struct QuadBytesX {
  static constexpr bool kPairs = false, kRowScale = false;
  static constexpr int kSums = 4 * kFact / static_cast<int>(sizeof(float));
  static int blocks(int64_t left) { return left >= kDouble ? kDouble : 8; }
  static int64_t code_bytes(int g) { return 32 * g; }
  static int64_t sum_bytes(int) { return kSums * sizeof(float); }
  static int64_t sums_at(int64_t k) { return k; }
  static int64_t scale_at(int64_t k) {
    return k + (k / 256 + 1) / 2 * kSums * static_cast<int64_t>(sizeof(float));
  }
  static int64_t stride(int64_t k) { return (round_up(scale_at(k), kLine) / kLine | 1) * kLine; }

  static void pack(const float* x, int64_t k, char* packed) {
    int8_t* codes = reinterpret_cast<int8_t*>(packed);
    char* facts = packed + sums_at(k);
    for (int64_t at = 0; at < k;) {
      const int parts = k - at >= 512 ? 2 : 1;
      int8_t natural[512];
      float scale[2];
      for (int part = 0; part < 2; ++part) {
        if (part == parts) {
          scale[1] = scale[0];
          break;
        }
        scale[part] = peak(x + at + 256 * part, 256) / 127.0f;
        quantise(x + at + 256 * part, 256, scale[part], natural + 256 * part);
        for (int y = 0; y < 8; ++y) {
          int8_t* const to = codes + 32 * parts * y + 32 * part;
          const int8_t* const from = natural + 256 * part + 4 * (y / 2 + 4 * (y % 2));
          for (int l = 0; l < 8; ++l) std::memcpy(to + 4 * l, from + 32 * l, 4);
        }
      }
      const Vf units = _mm512_insertf32x8(vset(scale[0]), _mm256_set1_ps(scale[1]), 1);
      __m512i even = _mm512_setzero_si512(), odd = even;
      for (int v = 0; v < 4 * parts; ++v) {
        const __m512i sum = lane_sums(v % 2 == 0 ? even : odd, codes + 64 * v);
        (v % 2 == 0 ? even : odd) = sum;
      }
      const __m512i centre = _mm512_set1_epi32(-32);
      put_facts(facts, _mm512_add_epi32(even, odd), units, -32);
      if (parts == 2) {
        _mm512_storeu_si512(facts + kExcessAt, _mm512_mullo_epi32(even, centre));
        _mm512_storeu_si512(facts + kOddExcessAt, _mm512_mullo_epi32(odd, centre));
      }
      facts += kSums * sizeof(float);
      codes += 256 * parts;
      at += 256 * parts;
    }
  }
};
using QuadForm = QuadBytesX;

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
