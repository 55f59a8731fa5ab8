// dot_rows, compiled once a level (no include guard). No templates of the standard library in here:
// their instances would be shared between levels by the linker.
//
// dot_rows streams the weight once: a block of weight rows stays in the cache while all rows of x
// pass, in tiles of 4 weight rows x kMaxTile rows of x that live in registers. Where a block and x
// are too wide for the L1 cache, k is cut into spans. Each output has its own accumulator, which
// runs over k in ascending steps and is then reduced in one fixed order, so it does not depend on
// the shape of the tile.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kTileRows = 4;
constexpr int kMaxBlock = 16;
constexpr int64_t kLine = 64;
// Weight rows are prefetched into the L2 cache this far before their block: by measurement the
// difference between half and all of the memory's read bandwidth.
constexpr int64_t kPrefetchBytes = 10 << 10;
// Smallest L1 data cache of the processors with AVX2.
constexpr int64_t kL1Bytes = 32 << 10;
// Bytes of a row of x in a span of k. All rows of x then take a quarter of the L1 cache (8 rows),
// 4 rows of the weight an eighth; half as long would be too much carrying of accumulators.
constexpr int64_t kSpanBytes = 1 << 10;
// Most rows of x a tile for which spans pay: the sixth has too many accumulators to carry.
constexpr int kSpanTile = 5;

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
  // Not where converting the weights or narrower vectors make arithmetic the bound.
  static constexpr bool kSpans = sizeof(typename Load::Type) == sizeof(float) && kWidth >= 16;
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
  static constexpr bool kSpans = true;
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
  static constexpr bool kSpans = false;  // half the bytes for the same products: no gain
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

// The part of k that a tile runs over: steps [from, to), and in the last one what is left of k.
struct Span {
  int64_t from, to;
  bool last;
};

// out[i * 4 + r] = <x_i, w_r> for N rows of x and 4 rows of the weight, while `ahead` rows needed
// later are prefetched. kWhole: over all of k; otherwise over a span of it, between which `carried`
// [N, 4] keeps the accumulators, and `out` is written by the last one.
template <class P, int N, bool kWhole>
void tile(const char* const* w, const char* x, int64_t stride, int64_t k, Span span,
          typename P::Acc* carried, const char* const* ahead, int num_ahead, float* out) {
  typename P::Acc acc[N][kTileRows];
  const bool begins = kWhole || span.from == 0;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) acc[i][r] = begins ? P::zero() : carried[i * kTileRows + r];
  }
  const char *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
  const int64_t steps = k / P::kStep;
  for (int64_t s = kWhole ? 0 : span.from; s < (kWhole ? steps : span.to); ++s) {
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
  if (!kWhole && !span.last) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) carried[i * kTileRows + r] = acc[i][r];
    }
    return;
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

template <class P>
using TileFn = void (*)(const char* const*, const char*, int64_t, int64_t, Span, typename P::Acc*,
                        const char* const*, int, float*);

template <class P, int N, bool kWhole>
TileFn<P> tile_if() {
  if constexpr (N <= P::kTile && (kWhole || (P::kSpans && N <= kSpanTile))) {
    return tile<P, N, kWhole>;
  } else {
    return nullptr;
  }
}

template <class P, bool kWhole>
inline TileFn<P> tile_of(int64_t n) {
  static const TileFn<P> all[] = {tile_if<P, 1, kWhole>(), tile_if<P, 2, kWhole>(),
                                  tile_if<P, 3, kWhole>(), tile_if<P, 4, kWhole>(),
                                  tile_if<P, 5, kWhole>(), tile_if<P, 6, kWhole>()};
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

// How the tiles of a block of weight rows follow each other, by what stays in the L1 cache.
struct Order {
  int64_t block;      // weight rows
  int64_t spans;      // of k
  bool weight_outer;  // all tiles of x for 4 weight rows, then for the next 4; or all weight rows
                      // for a tile of x, then for the next tile
};

template <class P>
Order order_of(const Weight& weight, const PackedRows& x, int64_t tiles) {
  const int64_t row_bytes = weight.row_bytes;
  // Many rows are bound by arithmetic: a tile of x stays, and the block comes from the L2 cache.
  if (tiles > 2) return {row_bytes <= 1280 ? kMaxBlock : 2 * kTileRows, 1, false};
  const int64_t x_bytes = weight.k / P::kStep * P::kXBytes;
  const bool fits = x.n * x_bytes + kTileRows * row_bytes <= kL1Bytes * 9 / 8;
  if (tiles == 1 || fits || !P::kSpans) return {kTileRows, 1, true};
  // The second tile would fetch the weight rows from the L2 cache again, and each block all of x:
  // together more misses than the stream from memory leaves room for. A tile's x may still fit.
  if (x.n <= 2 * kSpanTile) return {kMaxBlock, (x_bytes + kSpanBytes - 1) / kSpanBytes, true};
  if ((x.n + 1) / 2 * x_bytes <= kL1Bytes * 3 / 4) return {kMaxBlock, 1, false};
  return {kTileRows, 1, true};
}

template <class P>
void dot_rows_of(const Weight& weight, RowSet rows, const PackedRows& x, float* out, int64_t ldo) {
  const int64_t row_bytes = weight.row_bytes;
  const int64_t tiles = (x.n + P::kTile - 1) / P::kTile;
  const int64_t per_tile = tiles > 0 ? x.n / tiles : 0, longer = x.n - per_tile * tiles;
  const int64_t steps = weight.k / P::kStep;
  const Order order = order_of<P>(weight, x, tiles);
  const int64_t distance = kPrefetchBytes / (row_bytes + 1);
  const char* pointer[kMaxBlock];
  const char* ahead[kMaxBlock];
  // [kMaxBlock / 4, x.n, 4], used by spans alone.
  typename P::Acc carried[P::kSpans ? 2 * kSpanTile * kMaxBlock : 1];
  Epilogue epilogue;
  const int64_t known = rows.count + (rows.next != nullptr ? rows.next->count : 0);
  auto index = [&](int64_t j) { return j < rows.count ? rows[j] : (*rows.next)[j - rows.count]; };
  auto row_at = [&](int64_t j) { return weight.data + index(j) * row_bytes; };
  for (int64_t j0 = 0; j0 < rows.count; j0 += order.block) {
    const int64_t here = smaller(order.block, rows.count - j0);
    const int64_t first_ahead = j0 + here + distance;
    const int64_t num_ahead = first_ahead < known ? smaller(order.block, known - first_ahead) : 0;
    const int64_t padded = round_up(here, kTileRows);
    // A short block repeats its last row; the copies' results are dropped.
    for (int64_t r = 0; r < padded; ++r) pointer[r] = row_at(j0 + smaller(r, here - 1));
    for (int64_t r = 0; r < num_ahead; ++r) ahead[r] = row_at(first_ahead + r);
    // Scales lie far from their rows, a line for 16 of them: each would be a miss of its own. (Of
    // scattered rows this fetches the first one's.)
    if (num_ahead > 0 && weight.scale != nullptr) {
      __builtin_prefetch(weight.scale + index(first_ahead), 0, 3);
    }
    epilogue.load(weight, rows, j0, here);
    const int64_t passes = tiles * (padded / kTileRows);
    for (int64_t s = 0; s < order.spans; ++s) {
      const Span span{steps * s / order.spans, steps * (s + 1) / order.spans, s + 1 == order.spans};
      int64_t pass = 0;
      auto multiply = [&](int64_t t, int64_t r0) {
        const int64_t i0 = t * per_tile + smaller(t, longer), n = per_tile + (t < longer ? 1 : 0);
        const TileFn<P> fn = order.spans == 1 ? tile_of<P, true>(n) : tile_of<P, false>(n);
        float values[kMaxTile * kTileRows];
        const int64_t from = num_ahead * pass / passes, to = num_ahead * (pass + 1) / passes;
        fn(pointer + r0, x.data + i0 * x.stride, x.stride, weight.k, span,
           order.spans == 1 ? nullptr : carried + r0 * x.n + i0 * kTileRows, ahead + from,
           static_cast<int>(to - from), values);
        ++pass;
        if (!span.last) return;
        for (int64_t i = 0; i < n; ++i) {
          epilogue.store(r0, here - r0, values + i * kTileRows, out + (i0 + i) * ldo + j0 + r0);
        }
      };
      if (order.weight_outer) {
        for (int64_t r0 = 0; r0 < here; r0 += kTileRows) {
          for (int64_t t = 0; t < tiles; ++t) multiply(t, r0);
        }
      } else {
        for (int64_t t = 0; t < tiles; ++t) {
          for (int64_t r0 = 0; r0 < here; r0 += kTileRows) multiply(t, r0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
