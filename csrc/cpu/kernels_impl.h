// Bodies of the kernels, compiled once a level (no include guard). No templates of the standard
// library in here: their instances would be shared between levels by the linker.
//
// dot_rows streams the weight once: a block of weight rows stays in the L1 cache while all rows of
// x pass, in tiles of 4 weight rows x kMaxTile rows of x that live in registers. Each output has
// its own accumulator, which runs over k in ascending steps and is then reduced in one fixed order,
// so it does not depend on the shape of the tile.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kTileRows = 4;
constexpr int kMaxBlock = 16;
constexpr int64_t kLine = 64;
// Weight rows are prefetched into the L2 cache this far before their block: by measurement the
// difference between half and all of the memory's read bandwidth.
constexpr int64_t kPrefetchBytes = 10 << 10;

inline int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
// The four results of a tile's row, in the compilers' vector extension.
typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

inline F4 load4(const float* p) {
  F4 a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
inline void store4(float* p, F4 a) { std::memcpy(p, &a, sizeof(a)); }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Weights that are widened to float32 and multiplied with float32 x.
template <class Load>
struct FloatPath {
  static constexpr int kTile = kMaxTile;
  static constexpr int kStep = kWidth;
  static constexpr int kWBytes = kStep * static_cast<int>(sizeof(typename Load::Type));
  static constexpr int kXBytes = kStep * static_cast<int>(sizeof(float));
  using Acc = Vf;
  using W = Vf;
  static Acc zero() { return vzero(); }
  static W load_w(const char* p) { return Load::load(p); }
  static W load_w_part(const char* p, int n) { return Load::load_part(p, n); }
  static W load_x(const char* p) { return vload(reinterpret_cast<const float*>(p)); }
  static Acc dot(Acc acc, W w, W x) { return vfma(w, x, acc); }
  static void finish(const Acc* acc, const char*, int64_t, float* out) { reduce4(acc, out); }
};

#ifdef DYNASPEC_BF16_DOT
struct BF16Path : BF16Dot {
  static constexpr int kTile = kMaxTile;
  static constexpr int kWBytes = 2 * kStep;
  static constexpr int kXBytes = 2 * kStep;
  static void finish(const Acc* acc, const char*, int64_t, float* out) { reduce4(acc, out); }
};
#else
using BF16Path = FloatPath<BF16>;
#endif

// A packed int8 row ends in one line with its scale and sum.
struct I8Trailer {
  float scale;
  int32_t sum;
};

struct I8Path : I8 {
  // One more row of x would spill registers: the weights' sign bits are flipped in them.
  static constexpr int kTile = kMaxTile < 4 ? kMaxTile : 4;
  static constexpr int kWBytes = kStep;
  static constexpr int kXBytes = kStep;
  static void finish(const Acc* acc, const char* x, int64_t k, float* out) {
    I8Trailer trailer;
    std::memcpy(&trailer, x + round_up(k, kLine), sizeof(trailer));
    int32_t sums[4];
    sum4(acc, sums);
    I4 whole;
    std::memcpy(&whole, sums, sizeof(whole));
    store4(out, __builtin_convertvector(whole - kOffset * trailer.sum, F4) * trailer.scale);
  }
};

// out[i * 4 + r] = <x_i, w_r> for N rows of x and 4 rows of the weight, while `ahead` rows needed
// later are prefetched.
template <class P, int N>
void tile(const char* const* w, const char* x, int64_t stride, int64_t k, const char* const* ahead,
          int num_ahead, float* out) {
  typename P::Acc acc[N][kTileRows];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) acc[i][r] = P::zero();
  }
  const char *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
  const int64_t steps = k / P::kStep;
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t at = s * P::kWBytes;
    for (int p = 0; p < num_ahead; ++p) __builtin_prefetch(ahead[p] + at, 0, 2);
    const typename P::W wv[kTileRows] = {P::load_w(w0 + at), P::load_w(w1 + at), P::load_w(w2 + at),
                                         P::load_w(w3 + at)};
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const typename P::W xv = P::load_x(x + i * stride + s * P::kXBytes);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) acc[i][r] = P::dot(acc[i][r], wv[r], xv);
    }
  }
  if (const int rest = static_cast<int>(k % P::kStep); rest != 0) {
    const int64_t at = steps * P::kWBytes;
    const typename P::W wv[kTileRows] = {
        P::load_w_part(w0 + at, rest), P::load_w_part(w1 + at, rest), P::load_w_part(w2 + at, rest),
        P::load_w_part(w3 + at, rest)};
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const typename P::W xv = P::load_x(x + i * stride + steps * P::kXBytes);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) acc[i][r] = P::dot(acc[i][r], wv[r], xv);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) P::finish(acc[i], x + i * stride, k, out + i * kTileRows);
}

using TileFn = void (*)(const char* const*, const char*, int64_t, int64_t, const char* const*, int,
                        float*);

template <class P, int N>
TileFn tile_if() {
  if constexpr (N <= P::kTile) {
    return tile<P, N>;
  } else {
    return nullptr;
  }
}

template <class P>
inline TileFn tile_of(int64_t n) {
  static const TileFn all[] = {tile_if<P, 1>(), tile_if<P, 2>(), tile_if<P, 3>(),
                               tile_if<P, 4>(), tile_if<P, 5>(), tile_if<P, 6>()};
  return all[n - 1];
}

// Scale and bias of a block's rows, and where its results go.
struct Epilogue {
  bool scaled, biased;
  float scale[kMaxBlock], bias[kMaxBlock];

  void load(const Weight& weight, RowSet rows, int64_t first, int64_t count) {
    scaled = weight.scale != nullptr;
    biased = weight.bias != nullptr;
    for (int64_t r = 0; scaled && r < kMaxBlock; ++r) {
      scale[r] = r < count ? weight.scale[rows[first + r]] : 0.0f;
    }
    for (int64_t r = 0; biased && r < kMaxBlock; ++r) {
      bias[r] = r < count ? weight.bias[rows[first + r]] : 0.0f;
    }
  }

  // out[0..count) = values[0..count) (* scale) (+ bias) of the block's rows from r on.
  void store(int64_t r, int64_t count, const float* values, float* out) const {
    F4 y = load4(values);
    if (scaled) y = y * load4(scale + r);
    if (biased) y = y + load4(bias + r);
    if (count >= kTileRows) return store4(out, y);
    for (int64_t i = 0; i < count; ++i) out[i] = y[i];
  }
};

template <class P>
void dot_rows_of(const Weight& weight, RowSet rows, const PackedRows& x, float* out, int64_t ldo) {
  const int64_t row_bytes = weight.row_bytes();
  const int64_t tiles = (x.n + P::kTile - 1) / P::kTile;
  const int64_t block = tiles <= 2 ? kTileRows : (row_bytes <= 1280 ? kMaxBlock : 2 * kTileRows);
  const int64_t distance = kPrefetchBytes / (row_bytes + 1);
  const char* pointer[kMaxBlock];
  const char* ahead[kMaxBlock];
  Epilogue epilogue;
  const int64_t known = rows.count + (rows.next != nullptr ? rows.next->count : 0);
  auto row_at = [&](int64_t j) {
    return weight.data + (j < rows.count ? rows[j] : (*rows.next)[j - rows.count]) * row_bytes;
  };
  for (int64_t j0 = 0; j0 < rows.count; j0 += block) {
    const int64_t here = smaller(block, rows.count - j0);
    const int64_t first_ahead = j0 + here + distance;
    const int64_t num_ahead = first_ahead < known ? smaller(block, known - first_ahead) : 0;
    const int64_t padded = round_up(here, kTileRows);
    // A short block repeats its last row; the copies' results are dropped.
    for (int64_t r = 0; r < padded; ++r) pointer[r] = row_at(j0 + smaller(r, here - 1));
    for (int64_t r = 0; r < num_ahead; ++r) ahead[r] = row_at(first_ahead + r);
    epilogue.load(weight, rows, j0, here);
    const int64_t passes = tiles * (padded / kTileRows);
    int64_t pass = 0;
    int64_t i0 = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t n = (x.n - i0 + (tiles - t) - 1) / (tiles - t);
      const TileFn fn = tile_of<P>(n);
      for (int64_t r0 = 0; r0 < here; r0 += kTileRows, ++pass) {
        float values[kMaxTile * kTileRows];
        const int64_t from = num_ahead * pass / passes, to = num_ahead * (pass + 1) / passes;
        fn(pointer + r0, x.data + i0 * x.stride, x.stride, weight.k, ahead + from,
           static_cast<int>(to - from), values);
        for (int64_t i = 0; i < n; ++i) {
          epilogue.store(r0, here - r0, values + i * kTileRows, out + (i0 + i) * ldo + j0 + r0);
        }
      }
      i0 += n;
    }
  }
}

void dot_rows(const Weight& weight, RowSet rows, const PackedRows& x, float* out, int64_t ldo) {
  switch (weight.type) {
    case WeightType::kFloat32:
      return dot_rows_of<FloatPath<F32>>(weight, rows, x, out, ldo);
    case WeightType::kBFloat16:
      return dot_rows_of<BF16Path>(weight, rows, x, out, ldo);
    case WeightType::kFloat16:
      return dot_rows_of<FloatPath<F16>>(weight, rows, x, out, ldo);
    case WeightType::kInt8:
      return dot_rows_of<I8Path>(weight, rows, x, out, ldo);
  }
}

#ifdef DYNASPEC_BF16_DOT
constexpr bool kPackBF16 = true;
#else
constexpr bool kPackBF16 = false;  // x is rounded to bf16, and kept in float32
#endif

// An odd number of lines: a tile reads the same place of all its rows of x, and these must not
// share a set of the L1 cache (8 ways of 64 lines: at a stride of 4 KB 8 rows of x and 4 of the
// weight would).
int64_t packed_stride(WeightType type, int64_t k) {
  const bool whole = type == WeightType::kInt8;
  const int64_t item = whole ? 1 : type == WeightType::kBFloat16 && kPackBF16 ? 2 : 4;
  const int64_t lines = round_up(k * item, kLine) / kLine + (whole ? 1 : 0);  // int8: the trailer
  return (lines | 1) * kLine;
}

// Nearest bf16, halves to even; NaN stays NaN.
inline uint32_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return x != x ? (bits >> 16) | 0x40u : rounded;
}

void pack_int8(const float* x, int64_t k, char* packed) {
  int8_t* q = reinterpret_cast<int8_t*>(packed);
  float top = 0.0f;
  float poison = 0.0f;  // NaN if any x is infinite or NaN
  for (int64_t i = 0; i < k; ++i) {
    const float a = x[i] < 0.0f ? -x[i] : x[i];
    top = a > top ? a : top;
    poison += x[i] * 0.0f;
  }
  I8Trailer trailer{top / 127.0f + poison, 0};
  for (int64_t i = 0; i < k; ++i) {
    // x / scale lies in [-127, 127]; adding 1.5 * 2^23 rounds it, halves to even.
    const float whole =
        trailer.scale > 0.0f ? (x[i] / trailer.scale + 12582912.0f) - 12582912.0f : 0.0f;
    const int32_t value = static_cast<int32_t>(whole);
    q[i] = static_cast<int8_t>(value);
    trailer.sum += value;
  }
  const int64_t end = round_up(k, kLine);
  std::memset(packed + k, 0, end + kLine - k);
  std::memcpy(packed + end, &trailer, sizeof(trailer));
}

void pack_row(WeightType type, const float* x, int64_t k, char* packed) {
  if (type == WeightType::kInt8) return pack_int8(x, k, packed);
  const int64_t stride = packed_stride(type, k);
  if (type == WeightType::kBFloat16 && kPackBF16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(packed);
    for (int64_t i = 0; i < k; ++i) out[i] = static_cast<uint16_t>(bf16_bits(x[i]));
    std::memset(packed + 2 * k, 0, stride - 2 * k);
  } else if (type == WeightType::kBFloat16) {
    uint32_t* out = reinterpret_cast<uint32_t*>(packed);
    for (int64_t i = 0; i < k; ++i) out[i] = bf16_bits(x[i]) << 16;
    std::memset(packed + 4 * k, 0, stride - 4 * k);
  } else {
    if (k > 0) std::memcpy(packed, x, 4 * k);  // x of no values may be null
    std::memset(packed + 4 * k, 0, stride - 4 * k);
  }
}

// e^x for x <= 0; 0 below -87 (Cephes' polynomial on [-ln 2 / 2, ln 2 / 2], relative error below
// 2e-7).
inline Vf exp_nonpositive(Vf x) {
  const Vf floor = vset(-87.0f);
  const Vf clamped = vmax(x, floor);
  const Vf n = vround(vmul(clamped, vset(1.44269504088896341f)));
  Vf r = vfma(n, vset(-0.693359375f), clamped);
  r = vfma(n, vset(2.12194440e-4f), r);
  Vf p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vadd(vfma(p, vmul(r, r), r), vset(1.0f));
  return vscale2(p, n);
}

SoftmaxPart softmax_part(float* logits, int64_t count, float temperature) {
  const float lowest = -__builtin_inff();
  float max = lowest;
  float poison = 0.0f;  // NaN if a logit is NaN or infinite
  const int64_t whole = count / kWidth * kWidth;
  if (temperature != 1.0f) {
    const Vf t = vset(temperature);
    for (int64_t j = 0; j < whole; j += kWidth) vstore(logits + j, vdiv(vload(logits + j), t));
    for (int64_t j = whole; j < count; ++j) logits[j] = logits[j] / temperature;
  }
  float lanes[kWidth];
  Vf best = vset(lowest), bad = vzero();
  for (int64_t j = 0; j < whole; j += kWidth) {
    const Vf l = vload(logits + j);
    best = vmax(l, best);
    bad = vfma(l, vzero(), bad);
  }
  vstore(lanes, best);
  for (int i = 0; i < kWidth; ++i) max = lanes[i] > max ? lanes[i] : max;
  vstore(lanes, bad);
  for (int i = 0; i < kWidth; ++i) poison += lanes[i];
  for (int64_t j = whole; j < count; ++j) {
    max = logits[j] > max ? logits[j] : max;
    poison += logits[j] * 0.0f;
  }
  Vf sum = vzero();
  const Vf shift = vset(max);
  for (int64_t j = 0; j < whole; j += kWidth)
    sum = vadd(sum, exp_nonpositive(vsub(vload(logits + j), shift)));
  vstore(lanes, sum);
  float total = poison;
  for (int i = 0; i < kWidth; ++i) total += lanes[i];
  if (whole < count) {
    vstore(lanes, exp_nonpositive(
                      vsub(vload_part(logits + whole, static_cast<int>(count - whole)), shift)));
    for (int64_t j = whole; j < count; ++j) total += lanes[j - whole];
  }
  return {max, total};
}

inline void insert(TopK* top, float value, int32_t row) {
  int32_t at = top->count < top->k ? top->count++ : top->k - 1;
  for (; at > 0 && value > top->value[at - 1]; --at) {
    top->value[at] = top->value[at - 1];
    top->row[at] = top->row[at - 1];
  }
  top->value[at] = value;
  top->row[at] = row;
}

void offer(const float* logits, RowSet rows, float part_max, TopK* top) {
  int64_t j = 0;
  for (; j < rows.count && top->count < top->k; ++j)
    insert(top, logits[j], static_cast<int32_t>(rows[j]));
  float bar = top->value[top->k - 1];
  if (j == rows.count || part_max <= bar) return;
  for (; j + kWidth <= rows.count; j += kWidth) {
    for (uint32_t mask = vmask_gt(vload(logits + j), vset(bar)); mask != 0; mask &= mask - 1) {
      const int64_t at = j + __builtin_ctz(mask);
      if (logits[at] > bar) insert(top, logits[at], static_cast<int32_t>(rows[at]));
      bar = top->value[top->k - 1];
    }
  }
  for (; j < rows.count; ++j) {
    if (logits[j] > top->value[top->k - 1]) insert(top, logits[j], static_cast<int32_t>(rows[j]));
  }
}

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
