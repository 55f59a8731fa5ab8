// Bodies of LayerKernels, compiled once a level after kernels_impl.h's (no include guard).
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

inline void vstore_part(float* p, Vf a, int n) {
  float lanes[kWidth];
  vstore(lanes, a);
  std::memcpy(p, lanes, n * sizeof(float));
}

inline float sum_lanes(Vf a) {
  const Vf parts[4] = {a, vzero(), vzero(), vzero()};
  float sums[4];
  reduce4(parts, sums);
  return sums[0];
}

void rms_norm(const float* x, const float* weight, int64_t d, float eps, float* out) {
  const int64_t whole = d / kWidth * kWidth;
  const int rest = static_cast<int>(d - whole);
  Vf squares = vzero();
  for (int64_t j = 0; j < whole; j += kWidth) squares = vfma(vload(x + j), vload(x + j), squares);
  if (rest != 0) {
    const Vf last = vload_part(x + whole, rest);
    squares = vfma(last, last, squares);
  }
  const Vf factor = vset(1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(d) + eps));
  for (int64_t j = 0; j < whole; j += kWidth) {
    vstore(out + j, vmul(vmul(vload(x + j), factor), vload(weight + j)));
  }
  if (rest != 0) {
    const Vf last =
        vmul(vmul(vload_part(x + whole, rest), factor), vload_part(weight + whole, rest));
    vstore_part(out + whole, last, rest);
  }
}

void rotate(const float* x, const float* cos, const float* sin, int64_t head_dim, float* out) {
  const int64_t half = head_dim / 2;
  for (int64_t j = 0; j < half; ++j) {
    const float a = x[j], b = x[j + half];
    out[j] = a * cos[j] - b * sin[j];
    out[j + half] = b * cos[j + half] + a * sin[j + half];
  }
}

void add(const float* x, const float* y, int64_t d, float* out) {
  for (int64_t j = 0; j < d; ++j) out[j] = x[j] + y[j];
}

// z / (1 + e^-t): the sigmoid's argument t is g for silu, twice the tanh's for gelu, since (1 +
// tanh u) / 2 = sigmoid(2 u).
inline Vf activate(Vf g, bool gelu) {
  Vf minus_t = vsub(vzero(), g);
  if (gelu) {
    const Vf cubic = vfma(vmul(vmul(g, g), g), vset(0.044715f), g);
    minus_t = vmul(cubic, vset(-1.5957691216057308f));
  }
  // The exponential's range reduction also holds for arguments up to 87.
  const Vf bounded = vsub(vzero(), vmax(vsub(vzero(), minus_t), vset(-87.0f)));
  return vdiv(g, vadd(vset(1.0f), exp_nonpositive(bounded)));
}

void gate(const float* gates, const float* up, int64_t size, bool gelu, float* out) {
  const int64_t whole = size / kWidth * kWidth;
  for (int64_t j = 0; j < whole; j += kWidth) {
    vstore(out + j, vmul(activate(vload(gates + j), gelu), vload(up + j)));
  }
  if (const int rest = static_cast<int>(size - whole); rest != 0) {
    const Vf last =
        vmul(activate(vload_part(gates + whole, rest), gelu), vload_part(up + whole, rest));
    vstore_part(out + whole, last, rest);
  }
}

void store_bf16(const float* x, int64_t size, uint16_t* out) {
  for (int64_t j = 0; j < size; ++j) out[j] = static_cast<uint16_t>(bf16_bits(x[j]));
}

// tanh u = (1 - e) / (1 + e) with e = exp(-2 u). A score's value alone decides its result, wherever
// it stands in a vector.
void soft_cap(float* scores, int64_t begin, int64_t end, float scale, float cap) {
  const Vf factor = vset(-2.0f * scale / cap), limit = vset(cap), one = vset(1.0f);
  const auto capped = [&](Vf score) {
    // The exponential's range reduction also holds for arguments up to 87.
    const Vf bounded = vsub(vzero(), vmax(vsub(vzero(), vmul(score, factor)), vset(-87.0f)));
    const Vf e = exp_nonpositive(bounded);
    const Vf result = vmul(limit, vdiv(vsub(one, e), vadd(one, e)));
    return vfma(score, vzero(), result);  // infinity times zero is NaN
  };
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) vstore(scores + i, capped(vload(scores + i)));
  if (const int rest = static_cast<int>(end - i); rest > 0) {
    vstore_part(scores + i, capped(vload_part(scores + i, rest)), rest);
  }
}

float softmax_numerators(float* scores, int64_t begin, int64_t end, int64_t padded, float scale,
                         bool bf16) {
  const float lowest = -3e38f;
  // Whole vectors: what lies outside [begin, end) first loses to every score, then becomes 0.
  for (int64_t i = 0; i < begin; ++i) scores[i] = lowest;
  for (int64_t i = end; i < padded; ++i) scores[i] = lowest;
  float lanes[kWidth];
  Vf best = vset(lowest), bad = vzero();  // bad: NaN if a score is infinite or NaN
  for (int64_t i = 0; i < padded; i += kWidth) {
    const Vf score = vload(scores + i);
    best = vmax(score, best);
    bad = vfma(score, vzero(), bad);
  }
  vstore(lanes, best);
  float max = lowest;
  for (int i = 0; i < kWidth; ++i) max = lanes[i] > max ? lanes[i] : max;
  const float poison = sum_lanes(bad);

  const Vf shift = vset(max * scale), factor = vset(scale);
  for (int64_t i = 0; i < padded; i += kWidth) {
    vstore(scores + i, exp_nonpositive(vsub(vmul(vload(scores + i), factor), shift)));
  }
  for (int64_t i = 0; i < begin; ++i) scores[i] = 0.0f;
  for (int64_t i = end; i < padded; ++i) scores[i] = 0.0f;
  Vf sum = vzero();
#ifdef DYNASPEC_BF16_DOT
  if (bf16) {
    // Compacted in place: vector i is written to bytes [2 i, 2 i + 32), which lie before what is
    // still to be read.
    uint16_t* out = reinterpret_cast<uint16_t*>(scores);
    for (int64_t i = 0; i < padded; i += kWidth) {
      const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(vload(scores + i)));
      sum = vadd(sum, BF16::widen(rounded));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), rounded);
    }
    return sum_lanes(sum) + poison;
  }
#endif
  if (bf16) {
    for (int64_t i = 0; i < padded; ++i) {
      const uint32_t bits = bf16_bits(scores[i]) << 16;
      std::memcpy(scores + i, &bits, sizeof(bits));
    }
  }
  for (int64_t i = 0; i < padded; i += kWidth) sum = vadd(sum, vload(scores + i));
  return sum_lanes(sum) + poison;
}

constexpr int kQueries = kWidth == 16 ? 6 : 2;  // queries a tile
constexpr int kChunk = 128;  // keys whose values stay in the L1 cache for all tiles

// One tile: N queries x D vectors of the head dimension, over the keys begin .. end. `part` > 0:
// the only vector is the last, partial one.
template <class Load>
struct FloatSums {
  static constexpr int kItem = sizeof(typename Load::Type);

  template <int N, int D>
  static void tile(const WeightedSum& w, int64_t q0, int64_t d0, int part, int64_t begin,
                   int64_t end) {
    const bool partial = D == 1 && part > 0;
    Vf acc[N][D];
    float* sums = w.sums + q0 * w.head_dim + d0;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        const float* from = sums + i * w.head_dim + d * kWidth;
        acc[i][d] = partial ? vload_part(from, part) : vload(from);
      }
    }
    const char* numerators = w.numerators + q0 * w.numerators_stride;
    for (int64_t key = begin; key < end; ++key) {
      const char* row = w.values + (w.list[key] * w.head_dim + d0) * kItem;
      Vf v[D];
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        v[d] = partial ? Load::load_part(row, part) : Load::load(row + d * kWidth * kItem);
      }
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        float e;
        std::memcpy(&e, numerators + i * w.numerators_stride + key * 4, sizeof(e));
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d) acc[i][d] = vfma(vset(e), v[d], acc[i][d]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        float* to = sums + i * w.head_dim + d * kWidth;
        partial ? vstore_part(to, acc[i][d], part) : vstore(to, acc[i][d]);
      }
    }
  }
};

#ifdef DYNASPEC_BF16_DOT
struct PairSums {
  template <int N, int D>
  static void tile(const WeightedSum& w, int64_t q0, int64_t d0, int part, int64_t begin,
                   int64_t end) {
    static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                          37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                          11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_loadu_si512(kLow);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const int width = D == 1 && part > 0 ? part : kWidth;
    const __mmask32 lanes = D == 1 ? (1u << width) - 1u : 0xffffffffu;
    const __mmask16 out_lanes = first_lanes(width);
    Vf acc[N][D];
    float* sums = w.sums + q0 * w.head_dim + d0;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        acc[i][d] = _mm512_maskz_loadu_ps(out_lanes, sums + i * w.head_dim + d * kWidth);
      }
    }
    const char* numerators = w.numerators + q0 * w.numerators_stride;
    for (int64_t key = begin; key < end; key += 2) {
      const char* even = w.values + (w.list[key] * w.head_dim + d0) * 2;
      const char* odd = w.values + (w.list[key + 1] * w.head_dim + d0) * 2;
      __m512i v[D];
#pragma GCC unroll 8
      for (int d = 0; d < D; d += 2) {
        const __m512i a = _mm512_maskz_loadu_epi16(lanes, even + d * 2 * kWidth);
        const __m512i b = _mm512_maskz_loadu_epi16(lanes, odd + d * 2 * kWidth);
        v[d] = _mm512_permutex2var_epi16(a, low, b);
        if (d + 1 < D) v[d + 1] = _mm512_permutex2var_epi16(a, high, b);
      }
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        int32_t pair;
        std::memcpy(&pair, numerators + i * w.numerators_stride + key * 2, sizeof(pair));
        const __m512i e = _mm512_set1_epi32(pair);
#pragma GCC unroll 8
        for (int d = 0; d < D; ++d) {
          acc[i][d] = _mm512_dpbf16_ps(acc[i][d], reinterpret_cast<__m512bh>(v[d]),
                                       reinterpret_cast<__m512bh>(e));
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        _mm512_mask_storeu_ps(sums + i * w.head_dim + d * kWidth, out_lanes, acc[i][d]);
      }
    }
  }
};
#endif

template <class Sums, int D>
void tiles(const WeightedSum& w, int64_t d0, int part, int64_t begin, int64_t end) {
  int64_t q = 0;
  for (; q + kQueries <= w.nq; q += kQueries)
    Sums::template tile<kQueries, D>(w, q, d0, part, begin, end);
  for (; q + 4 <= w.nq; q += 4) Sums::template tile<4, D>(w, q, d0, part, begin, end);
  for (; q + 2 <= w.nq; q += 2) Sums::template tile<2, D>(w, q, d0, part, begin, end);
  for (; q < w.nq; ++q) Sums::template tile<1, D>(w, q, d0, part, begin, end);
}

template <class Sums>
void weighted_sum_of(const WeightedSum& w) {
  for (int64_t begin = w.begin; begin < w.end; begin += kChunk) {
    const int64_t end = smaller(begin + kChunk, w.end);
    int64_t d = 0;
    for (; d + 4 * kWidth <= w.head_dim; d += 4 * kWidth) tiles<Sums, 4>(w, d, 0, begin, end);
    for (; d + kWidth <= w.head_dim; d += kWidth) tiles<Sums, 1>(w, d, 0, begin, end);
    if (d < w.head_dim) tiles<Sums, 1>(w, d, static_cast<int>(w.head_dim - d), begin, end);
  }
}

void weighted_sum(const WeightedSum& w, bool bf16) {
#ifdef DYNASPEC_BF16_DOT
  if (bf16) return weighted_sum_of<PairSums>(w);
#endif
  bf16 ? weighted_sum_of<FloatSums<BF16>>(w) : weighted_sum_of<FloatSums<F32>>(w);
}

constexpr LayerKernels kLayerKernels = {
    rms_norm, rotate, add, gate, store_bf16, soft_cap, softmax_numerators, weighted_sum};

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
