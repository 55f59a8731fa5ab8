// dot_rows of a level (no include guard; compiled once a level, so no templates of the standard
// library in here: their instances would be shared between levels by the linker).
//
// The weight is streamed once: a block of weight rows stays in the L1 cache while all rows of x
// pass, in tiles of 4 weight rows x kMaxTile rows of x that live in registers. Each output has its
// own accumulator, which runs over k in ascending steps and is then reduced in one fixed order, so
// it does not depend on the shape of the tile. Where the rows of x do not fit the L1 cache beside
// the weights, k is cut into spans: a span of x passes over 16 weight rows before the next one
// comes, and the accumulators wait in memory in between.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kTileRows = 4;
constexpr int kMaxBlock = 16;
constexpr int64_t kLine = 64;
// Weight rows are prefetched into the L2 cache this far before their block: by measurement the
// difference between half and all of the memory's read bandwidth.
constexpr int64_t kPrefetchBytes = 10 << 10;

// Spans: for at most so many rows of x, if these take more than kSpanBeyond bytes; so many bytes of
// them at a time.
constexpr int64_t kSpanRows = 12;
constexpr int64_t kSpanBeyond = 24 << 10;
constexpr int64_t kSpanBytes = 12 << 10;

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

// Steps [from, to) of k.
struct Span {
  int64_t from, to;
  bool first, last;
};

// out[i * 4 + r] = <x_i, w_r> for N rows of x and 4 rows of the weight, or a span of it, while
// `ahead` rows needed later are prefetched. `carry` [N * 4] holds the accumulators between spans.
template <class P, int N>
void tile(const char* const* w, const char* x, int64_t stride, int64_t k, Span span,
          const char* const* ahead, int num_ahead, typename P::Acc* carry, float* out) {
  typename P::Acc acc[N][kTileRows];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) acc[i][r] = P::zero();
  }
  if (!span.first) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) acc[i][r] = carry[i * kTileRows + r];
    }
  }
  const char *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
  for (int64_t s = span.from; s < span.to; ++s) {
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
  if (!span.last) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) carry[i * kTileRows + r] = acc[i][r];
    }
    return;
  }
  if (const int rest = static_cast<int>(k % P::kStep); rest != 0) {
    const int64_t steps = k / P::kStep, at = steps * P::kWBytes;
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

template <class P>
using TileFn = void (*)(const char* const*, const char*, int64_t, int64_t, Span, const char* const*,
                        int, typename P::Acc*, float*);

template <class P, int N>
TileFn<P> tile_if() {
  if constexpr (N <= P::kTile) {
    return tile<P, N>;
  } else {
    return nullptr;
  }
}

template <class P>
inline TileFn<P> tile_of(int64_t n) {
  static const TileFn<P> all[] = {tile_if<P, 1>(), tile_if<P, 2>(), tile_if<P, 3>(),
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

// Steps of k that all rows of x take together.
template <class P>
inline int64_t span_steps(const PackedRows& x, int64_t steps) {
  if (x.n > kSpanRows || x.n * x.stride <= kSpanBeyond) return steps;
  const int64_t fit = kSpanBytes / (x.n * P::kXBytes);
  return fit > 1 ? fit : 1;
}

template <class P>
void dot_rows_of(const Weight& weight, RowSet rows, const PackedRows& x, float* out, int64_t ldo) {
  const int64_t row_bytes = weight.row_bytes();
  const int64_t tiles = (x.n + P::kTile - 1) / P::kTile;
  const int64_t steps = weight.k / P::kStep, span = span_steps<P>(x, steps);
  const bool wide = span < steps || (tiles > 2 && row_bytes <= 1280);
  const int64_t block = wide ? kMaxBlock : tiles <= 2 ? kTileRows : 2 * kTileRows;
  const int64_t distance = kPrefetchBytes / (row_bytes + 1);
  const char* pointer[kMaxBlock];
  const char* ahead[kMaxBlock];
  typename P::Acc carry[kSpanRows * kMaxBlock];
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
    Span part{0, 0, true, false};
    do {
      part.to = smaller(part.from + span, steps);
      part.last = part.to == steps;
      int64_t pass = 0, i0 = 0;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t n = (x.n - i0 + (tiles - t) - 1) / (tiles - t);
        const TileFn<P> fn = tile_of<P>(n);
        for (int64_t r0 = 0; r0 < here; r0 += kTileRows, ++pass) {
          float values[kMaxTile * kTileRows];
          const int64_t from = num_ahead * pass / passes, to = num_ahead * (pass + 1) / passes;
          // Unused where one span is all.
          typename P::Acc* kept = carry + (span < steps ? r0 * x.n + i0 * kTileRows : 0);
          fn(pointer + r0, x.data + i0 * x.stride, x.stride, weight.k, part, ahead + from,
             static_cast<int>(to - from), kept, values);
          for (int64_t i = 0; part.last && i < n; ++i) {
            epilogue.store(r0, here - r0, values + i * kTileRows, out + (i0 + i) * ldo + j0 + r0);
          }
        }
        i0 += n;
      }
      part.from = part.to;
      part.first = false;
    } while (!part.last);
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

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
