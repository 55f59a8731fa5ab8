// 16-lane vectors (no include guard: included once a level, inside its target region).
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

using Vf = __m512;
constexpr int kWidth = 16;
constexpr int kMaxTile =
    6;  // rows of x a tile: 4 x 6 accumulators + 4 weights + 1 x fit 32 registers

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline Vf vzero() { return _mm512_setzero_ps(); }
inline Vf vset(float a) { return _mm512_set1_ps(a); }
inline Vf vload(const float* p) { return _mm512_loadu_ps(p); }
inline Vf vload_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void vstore(float* p, Vf a) { _mm512_storeu_ps(p, a); }
inline Vf vadd(Vf a, Vf b) { return _mm512_add_ps(a, b); }
inline Vf vsub(Vf a, Vf b) { return _mm512_sub_ps(a, b); }
inline Vf vmul(Vf a, Vf b) { return _mm512_mul_ps(a, b); }
inline Vf vdiv(Vf a, Vf b) { return _mm512_div_ps(a, b); }
inline Vf vmax(Vf a, Vf b) { return _mm512_max_ps(a, b); }
inline Vf vfma(Vf a, Vf b, Vf c) { return _mm512_fmadd_ps(a, b, c); }
inline Vf vround(Vf a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vf vscale2(Vf a, Vf n) { return _mm512_scalef_ps(a, n); }
inline uint32_t vmask_gt(Vf a, Vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

struct F32 {
  using Type = float;
  static Vf load(const char* p) { return _mm512_loadu_ps(p); }
  static Vf load_part(const char* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
};

struct BF16 {
  using Type = uint16_t;
  static Vf widen(__m256i a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
  }
  static Vf load(const char* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vf load_part(const char* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  }
};

struct F16 {
  using Type = uint16_t;
  static Vf load(const char* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vf load_part(const char* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  }
};

// Lane sums of four vectors, in one fixed order.
inline void reduce4(const Vf* a, float* out) {
  const Vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
  const Vf cd = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
  const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const Vf sum = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

#ifdef DYNASPEC_BF16_DOT

struct I8 {
  static constexpr int kStep = 64;
  // vpdpbusd multiplies unsigned by signed bytes. Weights become unsigned by +128, and 128 * sum(x)
  // is taken off the sum.
  static constexpr int kOffset = 128;
  using Acc = __m512i;
  using W = __m512i;
  static Acc zero() { return _mm512_setzero_si512(); }
  static W load_w(const char* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static W load_w_part(const char* p, int n) {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8((~0ull) >> (64 - n), p),
                            _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static W load_x(const char* p) { return _mm512_load_si512(p); }
  // _mm512_dpbusd_epi32 in assembly: GCC 12 gives the intrinsic's result a register of its own, and
  // so copies all accumulators in each step and spills two of 16: an eighth of the time at 8 rows.
  static Acc dot(Acc acc, W w, W x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
  }
#else

struct I8 {
  static constexpr int kStep = 32;
  static constexpr int kOffset = 0;
  using Acc = __m512i;
  using W = __m512i;
  static Acc zero() { return _mm512_setzero_si512(); }
  static W load_w(const char* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static W load_w_part(const char* p, int n) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((~0u) >> (32 - n), p));
  }
  static W load_x(const char* p) { return load_w(p); }
  static Acc dot(Acc acc, W w, W x) { return _mm512_add_epi32(acc, _mm512_madd_epi16(w, x)); }
#endif
  static void sum4(const Acc* a, int32_t* out) {
    const Acc ab =
        _mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
    const Acc cd =
        _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    const Acc sum = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti32x8_epi32(sum, 1));
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(out),
        _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
  }
};

#ifdef DYNASPEC_BF16_DOT
// Pairs of bf16 products summed in float32 (vdpbf16ps).
struct BF16Dot {
  static constexpr int kStep = 32;
  using Acc = __m512;
  using W = __m512i;
  static Acc zero() { return _mm512_setzero_ps(); }
  static W load_w(const char* p) { return _mm512_loadu_si512(p); }
  static W load_w_part(const char* p, int n) {
    return _mm512_maskz_loadu_epi16((~0u) >> (32 - n), p);
  }
  static W load_x(const char* p) { return _mm512_load_si512(p); }
  static Acc dot(Acc acc, W w, W x) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
};
#endif

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
