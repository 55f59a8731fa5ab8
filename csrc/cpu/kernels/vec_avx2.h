// 8-lane vectors (no include guard: included once, inside the level's target region).
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

using Vf = __m256;
constexpr int kWidth = 8;
constexpr int kMaxTile =
    3;  // rows of x a tile: 4 x 3 accumulators + 1 weight + 3 x fit 16 registers

inline Vf vzero() { return _mm256_setzero_ps(); }
inline Vf vset(float a) { return _mm256_set1_ps(a); }
inline Vf vload(const float* p) { return _mm256_loadu_ps(p); }
inline Vf vload_part(const float* p, int n) {
  alignas(32) float full[kWidth] = {};
  std::memcpy(full, p, n * sizeof(float));
  return _mm256_load_ps(full);
}
inline void vstore(float* p, Vf a) { _mm256_storeu_ps(p, a); }
inline Vf vadd(Vf a, Vf b) { return _mm256_add_ps(a, b); }
inline Vf vsub(Vf a, Vf b) { return _mm256_sub_ps(a, b); }
inline Vf vmul(Vf a, Vf b) { return _mm256_mul_ps(a, b); }
inline Vf vdiv(Vf a, Vf b) { return _mm256_div_ps(a, b); }
inline Vf vmax(Vf a, Vf b) { return _mm256_max_ps(a, b); }
inline Vf vfma(Vf a, Vf b, Vf c) { return _mm256_fmadd_ps(a, b, c); }
inline Vf vround(Vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a * 2^n for whole n in [-126, 127].
inline Vf vscale2(Vf a, Vf n) {
  const __m256i bits =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
}
inline uint32_t vmask_gt(Vf a, Vf b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}

struct F32 {
  using Type = float;
  static Vf load(const char* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static Vf load_part(const char* p, int n) {
    alignas(32) char full[32] = {};
    std::memcpy(full, p, n * sizeof(float));
    return load(full);
  }
};

struct BF16 {
  using Type = uint16_t;
  static Vf load(const char* p) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
  }
  static Vf load_part(const char* p, int n) {
    alignas(16) char full[16] = {};
    std::memcpy(full, p, n * sizeof(Type));
    return load(full);
  }
};

struct F16 {
  using Type = uint16_t;
  static Vf load(const char* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vf load_part(const char* p, int n) {
    alignas(16) char full[16] = {};
    std::memcpy(full, p, n * sizeof(Type));
    return load(full);
  }
};

// Lane sums of four vectors, in one fixed order.
inline void reduce4(const Vf* a, float* out) {
  const Vf sum = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1)));
}

// acc + pairs of int16 products.
inline __m256i dot_pairs(__m256i acc, __m256i w, __m256i x) {
#ifdef DYNASPEC_AVX_VNNI
  return _mm256_dpwssd_avx_epi32(acc, w, x);
#else
  return _mm256_add_epi32(acc, _mm256_madd_epi16(w, x));
#endif
}

struct I8 {
  static constexpr int kStep = 16;
  static constexpr int kOffset = 0;
  using Acc = __m256i;
  using W = __m256i;
  static Acc zero() { return _mm256_setzero_si256(); }
  static W load_w(const char* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static W load_w_part(const char* p, int n) {
    alignas(16) char full[16] = {};
    std::memcpy(full, p, n);
    return load_w(full);
  }
  static W load_x(const char* p) { return load_w(p); }
  static Acc dot(Acc acc, W w, W x) { return dot_pairs(acc, w, x); }
  static void sum4(const Acc* a, int32_t* out) {
    const Acc sum = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1)));
  }
};

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
