// Rows of x for packed weights (no include guard: included once a level, before its products).
//
// Pairs: codes, then for each group the sums of its codes a lane, then scales. Quads: int8 codes in
// the places' order, one scale a group of 256 (max |x| / 127), the sums a lane times the group's
// scale, the scales.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kPackedLanes = kWidth == 16 ? 16 : 8;

// A group of x's rows: codes, sums and scales of row i lie i * stride bytes on.
struct GroupOfX {
  const char *codes, *sums, *scales;
  int64_t stride, n;
  bool first;  // of the rows' groups: sums begin with it

  Vf begun(const Vf* acc) const { return first ? vzero() : *acc; }

  float scale(int64_t i) const {
    float value;
    std::memcpy(&value, scales + i * stride, sizeof(value));
    return value;
  }
};

inline int64_t num_pair_groups(int64_t k) {
  const int64_t blocks = k / 32;
  return blocks / 8 + __builtin_popcountll(static_cast<uint64_t>(blocks % 8));
}

// Max |x|, NaN if any x is infinite or NaN. Without their sign floats have the order of their bits.
inline float peak(const float* x, int64_t k) {
  constexpr int32_t kInfinity = 0x7f800000, kNaN = 0x7fc00000;
  int32_t top = 0;
  for (int64_t i = 0; i < k; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffff;
    top = bits > top ? bits : top;
  }
  if (top >= kInfinity) top = kNaN;
  float value;
  std::memcpy(&value, &top, sizeof(value));
  return value;
}

// Codes round(x / scale), halves to even. Adding 1.5 * 2^23 rounds. A scale so small that it lost
// bits itself, or NaN, counts as none.
template <class Code>
inline void quantise(const float* x, int64_t count, float scale, Code* codes) {
  const bool sound = scale >= __FLT_MIN__;
  for (int64_t i = 0; i < count; ++i) {
    const float whole = sound ? (x[i] / scale + 12582912.0f) - 12582912.0f : 0.0f;
    codes[i] = static_cast<Code>(static_cast<int32_t>(whole));
  }
}

#ifndef DYNASPEC_BF16_DOT  // packed_x_vnni.h has the forms of that level
// Pairs: int16 codes in the places' order, one scale a row (max |x| / 32767).
struct PairX {
  static constexpr bool kPairs = true, kRowScale = true;
  static constexpr int kSums = kPackedLanes;
  static int blocks(int64_t left) { return group_size(left); }
  static int64_t code_bytes(int g) { return 64 * g; }
  static int64_t sum_bytes(int) { return kSums * sizeof(float); }
  static int64_t sums_at(int64_t k) { return round_up(2 * k, kLine); }
  static int64_t scale_at(int64_t k) {
    return sums_at(k) + num_pair_groups(k) * kPackedLanes * static_cast<int64_t>(sizeof(float));
  }
  static int64_t stride(int64_t k) {
    return (round_up(scale_at(k) + static_cast<int64_t>(sizeof(float)), kLine) / kLine | 1) * kLine;
  }

  static void pack(const float* x, int64_t k, char* packed) {
    const float scale = peak(x, k) / 32767.0f;
    int16_t* codes = reinterpret_cast<int16_t*>(packed);
    float* sums = reinterpret_cast<float*>(packed + sums_at(k));
    for (int64_t at = 0; at < k;) {
      const int g = group_size((k - at) / 32), per = 8 / g;
      int16_t natural[256];
      int32_t lanes[kPackedLanes] = {};
      quantise(x + at, 32 * g, scale, natural);
      for (int c = 0; c < 2 * g; ++c) {
        for (int l = 0; l < 8; ++l) {
          const int16_t* from = natural + l / per * 32 + 2 * (c * per + l % per);
          codes[at + 16 * c + 2 * l] = from[0];
          codes[at + 16 * c + 2 * l + 1] = from[1];
          lanes[(8 * c + l) % kPackedLanes] += from[0] + from[1];
        }
      }
      for (int l = 0; l < kPackedLanes; ++l) sums[l] = static_cast<float>(lanes[l]);
      sums += kPackedLanes;
      at += 32 * g;
    }
    std::memcpy(packed + scale_at(k), &scale, sizeof(scale));
  }
};

using PairForm = PairX;

// Sums a group: of the lanes of all codes (16 lanes), or of even y, of odd y and of both (8 lanes).
constexpr int kQuadSums = kPackedLanes == 16 ? 16 : 24;

struct QuadX {
  static constexpr bool kPairs = false, kRowScale = false;
  static constexpr int kSums = kQuadSums;
  static int blocks(int64_t) { return 8; }
  static int64_t code_bytes(int) { return 256; }
  static int64_t sum_bytes(int) { return kSums * sizeof(float); }
  static int64_t sums_at(int64_t k) { return k; }
  static int64_t scale_at(int64_t k) {
    return k + k / 256 * kQuadSums * static_cast<int64_t>(sizeof(float));
  }
  static int64_t stride(int64_t k) {
    return (round_up(scale_at(k) + k / 256 * 4, kLine) / kLine | 1) * kLine;
  }

  static void pack(const float* x, int64_t k, char* packed) {
    int8_t* codes = reinterpret_cast<int8_t*>(packed);
    float* sums = reinterpret_cast<float*>(packed + sums_at(k));
    float* scales = reinterpret_cast<float*>(packed + scale_at(k));
    for (int64_t at = 0; at < k; at += 256) {
      const float scale = peak(x + at, 256) / 127.0f;
      int8_t natural[256];
      int32_t lanes[16] = {};
      quantise(x + at, 256, scale, natural);
      for (int y = 0; y < 8; ++y) {
        for (int l = 0; l < 8; ++l) {
          const int8_t* from = natural + 32 * l + 4 * (y / 2 + 4 * (y % 2));
          std::memcpy(codes + at + 32 * y + 4 * l, from, 4);
          lanes[8 * (y % 2) + l] += from[0] + from[1] + from[2] + from[3];
        }
      }
      for (int l = 0; l < 16; ++l) sums[l] = static_cast<float>(lanes[l]) * scale;
      for (int l = 16; l < kQuadSums; ++l) {
        sums[l] = static_cast<float>(lanes[l - 16] + lanes[l - 8]) * scale;
      }
      sums += kQuadSums;
      *scales++ = scale;
    }
  }
};
using QuadForm = QuadX;
#endif

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
