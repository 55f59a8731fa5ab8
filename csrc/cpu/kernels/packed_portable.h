// Products of packed groups in plain loops: any processor. See packed_layout.h for the groups and
// packed_impl.h for who calls.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kPackedRows = 1;

// Lane sums of eight vectors that lie `stride` apart, in one fixed order.
inline void reduce8(const Vf* a, int64_t stride, float* out) {
  for (int r = 0; r < 8; r += 4) {
    const Vf four[4] = {a[r * stride], a[(r + 1) * stride], a[(r + 2) * stride],
                        a[(r + 3) * stride]};
    reduce4(four, out + r);
  }
}

inline float half_at(const char* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof(h));
  return F16::widen(h);
}

// acc += 8 lanes of float(sum) * unit * scale + x's sums * offset.
inline Vf add_lanes(Vf acc, const int32_t* sum, float unit, const float* scale, const float* sums,
                    const float* offset) {
  for (int l = 0; l < 8; l += 4) {
    Vi whole;
    std::memcpy(&whole, sum + l, sizeof(whole));
    acc = vfma(__builtin_convertvector(whole, Vf) * unit, vload(scale + l), acc);
    if (offset != nullptr) acc = vfma(vload(sums + l), vload(offset + l), acc);
  }
  return acc;
}

template <int kBits, bool kMin>
struct PairProducts {
  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    static_assert(R == 1);
    const uint8_t* in = reinterpret_cast<const uint8_t*>(w[0]) + (kMin ? 4 : 2) * G;
    float scale[8], offset[8];
    for (int l = 0; l < 8; ++l) {
      scale[l] = half_at(w[0] + 2 * (l * G / 8));
      offset[l] = kMin ? half_at(w[0] + 2 * (G + l * G / 8)) : scale[l] * -(1 << (kBits - 1));
    }
    int16_t q[32 * G];
    constexpr int kWords = side_words(G);
    if constexpr (kBits == 8) {
      for (int half = 0; half < 16 * G / kWords; ++half) {
        int16_t* const to = q + 4 * kWords * (half / 2) + kWords * (half % 2);
        for (int p = 0; p < kWords; ++p) {
          to[p] = static_cast<int8_t>(in[2 * (kWords * half + p)]);
          to[2 * kWords + p] = static_cast<int8_t>(in[2 * (kWords * half + p) + 1]);
        }
      }
    } else {
      for (int z = 0; z < (G == 8 ? 2 : 1); ++z) {
        for (int p = 0; p < kWords; ++p) {
          const int a = in[2 * (kWords * z + p)], b = in[2 * (kWords * z + p) + 1];
          int16_t* const to = q + 128 * z + p;
          to[0] = static_cast<int16_t>(a & 15);
          to[kWords] = static_cast<int16_t>(a >> 4);
          to[2 * kWords] = static_cast<int16_t>(b & 15);
          to[3 * kWords] = static_cast<int16_t>(b >> 4);
        }
      }
      if constexpr (kBits == 5) {
        uint16_t high[2 * G];
        std::memcpy(high, in + 16 * G, sizeof(high));
        for (int p = 0; p < 32 * G; ++p) {
          q[p] = static_cast<int16_t>(q[p] | (high[p % (2 * G)] >> fifth_bit(G, p) & 1) << 4);
        }
      }
    }
    for (int64_t i = 0; i < x.n; ++i) {
      const int16_t* const xi = reinterpret_cast<const int16_t*>(x.codes + i * x.stride);
      const float* const sums = reinterpret_cast<const float*>(x.sums + i * x.stride);
      int32_t sum[8] = {};
      for (int c = 0; c < 2 * G; ++c) {
        for (int l = 0; l < 8; ++l) {
          const int p = 16 * c + 2 * l;
          sum[l] += q[p] * xi[p] + q[p + 1] * xi[p + 1];
        }
      }
      acc[0][i] =
          add_lanes(x.begun(acc[0] + i), sum, 1.0f, scale, sums, kBits == 8 ? nullptr : offset);
    }
  }
};

inline void quad_nibbles(const uint8_t* in, int16_t* q) {
  for (int z = 0; z < 2; ++z) {
    for (int r = 0; r < 64; ++r) {
      q[64 * z + r] = in[64 * z + r] & 15;
      q[64 * (z + 2) + r] = in[64 * z + r] >> 4;
    }
  }
}

// Scales (of even y, then of odd y), offsets and codes of a group.
template <int kBits>
struct QuadMin {
  static void codes(const char* w, int16_t* q, float* scale, float* offset) {
    const uint8_t* const in = reinterpret_cast<const uint8_t*>(w);
    const float d = half_at(w), dmin = half_at(w + 2);
    for (int j = 0; j < 8; ++j) {
      const int high = j < 4 ? in[12 + j] & 15 : in[8 + j] >> 4;
      scale[j] = scale[8 + j] = d * static_cast<float>(in[4 + j] & 63);
      offset[j] = offset[8 + j] = -dmin * static_cast<float>(in[4 + j] >> 6 | high << 2);
    }
    quad_nibbles(in + (kBits == 5 ? 48 : 16), q);
    if constexpr (kBits == 5) {
      for (int p = 0; p < 256; ++p) {
        q[p] = static_cast<int16_t>(q[p] | (in[16 + p % 32] >> (p / 32) & 1) << 4);
      }
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

  static void codes(const char* w, int16_t* q, float* scale, float* offset) {
    const uint8_t* const in = reinterpret_cast<const uint8_t*>(w);
    const float d = half_at(w);
    for (int j = 0; j < 16; ++j) {
      scale[j] = d * static_cast<float>(static_cast<int8_t>(in[2 + j]));
      offset[j] = -32.0f * scale[j];
    }
    quad_nibbles(in + 18, q);
    for (int p = 0; p < 256; ++p) {
      q[p] = static_cast<int16_t>(q[p] | (in[146 + p % 64] >> (2 * (p / 64)) & 3) << 4);
    }
  }
};

template <class F>
struct QuadProducts {
  template <int G, int R>
  static void multiply(const char* const* w, const GroupOfX& x, Vf* const* acc) {
    static_assert(R == 1);
    int16_t q[256];
    float scale[16], offset[16];
    F::codes(w[0], q, scale, offset);
    for (int64_t i = 0; i < x.n; ++i) {
      const int8_t* const xi = reinterpret_cast<const int8_t*>(x.codes + i * x.stride);
      const float* const sums = reinterpret_cast<const float*>(x.sums + i * x.stride);
      Vf a = x.begun(acc[0] + i);
      for (int odd = 0; odd < 2; ++odd) {
        int32_t sum[8] = {};
        for (int y = odd; y < 8; y += 2) {
          for (int l = 0; l < 8; ++l) {
            for (int e = 0; e < 4; ++e) sum[l] += q[32 * y + 4 * l + e] * xi[32 * y + 4 * l + e];
          }
        }
        a = add_lanes(a, sum, x.scale(i), scale + 8 * odd, sums + 8 * odd, offset + 8 * odd);
      }
      acc[0][i] = a;
    }
  }
};

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
