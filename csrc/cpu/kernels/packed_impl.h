// Packed weights times rows of x, compiled once a level (no include guard); reads dot_rows_impl.h
// and one of packed_{vnni,avx512,avx2,portable}.h.
//
// A block of kPackedBlock weight rows passes over k group by group. The group of every row of x
// stays in the L1 cache meanwhile; each weight group is unpacked into registers once, while all
// rows of x pass over it, and the sums of all outputs wait in memory. A sum's order is that of the
// groups, whatever the numbers of rows are.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

constexpr int kPackedBlock = 8;
// Rows of x a pass: their groups and the block's sums fit the L1 cache.
constexpr int64_t kPackedTile = 20;

// How a format's rows are walked: its groups, and which products take them.
template <int kBits, bool kMin>
struct PairFormat {
  using X = PairForm;
  using Products = PairProducts<kBits, kMin>;
  static constexpr int64_t bytes(int g) { return ((kMin ? 4 : 2) + 4 * kBits) * g; }
};

template <class F>
struct QuadFormat {
  using X = QuadForm;
  using Products = QuadProducts<F>;
  static constexpr int64_t bytes(int g) { return F::kBytes * (g / 8); }
};

template <class F, int R>
inline void multiply_group(int g, const char* const* w, const GroupOfX& x, Vf* const* acc) {
  using Products = typename F::Products;
#ifdef DYNASPEC_BF16_DOT
  if constexpr (F::X::kPairs) {
    if (g == kFused) return Products::template multiply<kFused, R>(w, x, acc);
  }
  if (g == kDouble) return Products::template multiply<kDouble, R>(w, x, acc);
#endif
  if constexpr (F::X::kPairs) {
    switch (g) {
      case 8:
        return Products::template multiply<8, R>(w, x, acc);
      case 4:
        return Products::template multiply<4, R>(w, x, acc);
      case 2:
        return Products::template multiply<2, R>(w, x, acc);
      default:
        return Products::template multiply<1, R>(w, x, acc);
    }
  } else {
    Products::template multiply<8, R>(w, x, acc);
  }
}

template <class F>
void dot_packed(const Weight& weight, RowSet rows, const PackedRows& x, float* out, int64_t ldo) {
  const int64_t k = weight.k, row_bytes = weight.row_bytes;
  alignas(64) Vf acc[kPackedBlock][kPackedTile];
  const char *pointer[kPackedBlock], *ahead[kPackedBlock];
  const int64_t tiles = (x.n + kPackedTile - 1) / kPackedTile;  // of the same size, nearly
  const bool biased = weight.bias != nullptr;
  float bias[kPackedBlock] = {};
  const int64_t distance = kPrefetchBytes / (row_bytes + 1);
  const int64_t known = rows.count + (rows.next != nullptr ? rows.next->count : 0);
  auto row_at = [&](int64_t j) {
    return weight.data + (j < rows.count ? rows[j] : (*rows.next)[j - rows.count]) * row_bytes;
  };
  for (int64_t j0 = 0; j0 < rows.count; j0 += kPackedBlock) {
    const int64_t here = smaller(kPackedBlock, rows.count - j0);
    // A short block repeats its last row; the copies' results are dropped.
    const int64_t padded = round_up(here, kPackedRows);
    for (int64_t r = 0; r < padded; ++r) pointer[r] = row_at(j0 + smaller(r, here - 1));
    for (int64_t r = padded; r < kPackedBlock; ++r) {
      for (Vf& sum : acc[r]) sum = vzero();
    }
    for (int64_t r = 0; biased && r < here; ++r) bias[r] = weight.bias[rows[j0 + r]];
    const int64_t first_ahead = j0 + here + distance;
    const int64_t num_ahead = first_ahead < known ? smaller(kPackedBlock, known - first_ahead) : 0;
    for (int64_t r = 0; r < num_ahead; ++r) ahead[r] = row_at(first_ahead + r);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i0 = x.n * t / tiles, n = x.n * (t + 1) / tiles - i0;
      const char* const base = x.data + i0 * x.stride;
      GroupOfX part{base, base + F::X::sums_at(k), base + F::X::scale_at(k), x.stride, n, true};
      int64_t offset = 0;
      for (int64_t at = 0; at < k;) {
        const int g = F::X::blocks((k - at) / 32);
        const int64_t bytes = F::bytes(g);
        for (int64_t r = 0; r < padded; r += kPackedRows) {
          if (i0 == 0) {
            for (int64_t a = r; a < smaller(r + kPackedRows, num_ahead); ++a) {
              for (int64_t b = 0; b < bytes; b += kLine)
                __builtin_prefetch(ahead[a] + offset + b, 0, 2);
            }
          }
          const char* w[kPackedRows];
          Vf* sums[kPackedRows];
          for (int s = 0; s < kPackedRows; ++s) {
            w[s] = pointer[r + s] + offset;
            sums[s] = acc[r + s];
          }
          multiply_group<F, kPackedRows>(g, w, part, sums);
        }
        offset += bytes;
        at += 32 * g;
        part.first = false;
        part.codes += F::X::code_bytes(g);
        part.sums += F::X::sum_bytes(g);
        if constexpr (!F::X::kRowScale) part.scales += sizeof(float);
      }
      for (int64_t i = 0; i < n; ++i) {
        float y[kPackedBlock];
        reduce8(acc[0] + i, kPackedTile, y);
        if constexpr (F::X::kRowScale) {
          const float unit = part.scale(i);
          for (float& value : y) value *= unit;
        }
        for (int r = 0; biased && r < kPackedBlock; ++r) y[r] += bias[r];
        float* const results = out + (i0 + i) * ldo + j0;
        if (here == kPackedBlock) {
          std::memcpy(results, y, sizeof(y));
        } else {
          std::memcpy(results, y, here * sizeof(float));
        }
      }
    }
  }
}

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
