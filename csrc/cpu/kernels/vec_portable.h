// 4-lane vectors in the compilers' vector extension: runs on any processor.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

typedef float Vf __attribute__((vector_size(16)));
typedef int32_t Vi __attribute__((vector_size(16)));
constexpr int kWidth = 4;
constexpr int kMaxTile = 2;

inline Vf vset(float a) { return Vf{a, a, a, a}; }
inline Vf vzero() { return vset(0.0f); }
inline Vf vload(const float* p) {
  Vf a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
inline Vf vload_part(const float* p, int n) {
  Vf a = vzero();
  std::memcpy(&a, p, n * sizeof(float));
  return a;
}
inline void vstore(float* p, Vf a) { std::memcpy(p, &a, sizeof(a)); }
inline Vf vadd(Vf a, Vf b) { return a + b; }
inline Vf vsub(Vf a, Vf b) { return a - b; }
inline Vf vmul(Vf a, Vf b) { return a * b; }
inline Vf vdiv(Vf a, Vf b) { return a / b; }
inline Vf vmax(Vf a, Vf b) { return a > b ? a : b; }
inline Vf vfma(Vf a, Vf b, Vf c) { return a * b + c; }
// Adding 1.5 * 2^23 rounds to whole numbers, halves to even, for |a| < 2^22.
inline Vf vround(Vf a) { return (a + 12582912.0f) - 12582912.0f; }
// a * 2^n for whole n in [-126, 127].
inline Vf vscale2(Vf a, Vf n) {
  const Vi bits = (__builtin_convertvector(n, Vi) + 127) << 23;
  Vf power;
  std::memcpy(&power, &bits, sizeof(power));
  return a * power;
}
inline uint32_t vmask_gt(Vf a, Vf b) {
  uint32_t mask = 0;
  for (int i = 0; i < kWidth; ++i) mask |= static_cast<uint32_t>(a[i] > b[i]) << i;
  return mask;
}

struct F32 {
  using Type = float;
  static Vf load(const char* p) {
    Vf a;
    std::memcpy(&a, p, sizeof(a));
    return a;
  }
  static Vf load_part(const char* p, int n) {
    Vf a = vzero();
    std::memcpy(&a, p, n * sizeof(float));
    return a;
  }
};

struct BF16 {
  using Type = uint16_t;
  static Vf load_part(const char* p, int n) {
    uint16_t half[kWidth] = {};
    std::memcpy(half, p, n * sizeof(Type));
    Vi bits;
    for (int i = 0; i < kWidth; ++i)
      bits[i] = static_cast<int32_t>(static_cast<uint32_t>(half[i]) << 16);
    Vf a;
    std::memcpy(&a, &bits, sizeof(a));
    return a;
  }
  static Vf load(const char* p) { return load_part(p, kWidth); }
};

struct F16 {
  using Type = uint16_t;
  // The exponent is moved from bias 15 to 127 by a multiplication with 2^112, which also normalises
  // denormals.
  static float widen(uint16_t h) {
    uint32_t bits = static_cast<uint32_t>(h & 0x7fff) << 13;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    value *= 5.192296858534828e33f;  // 2^112
    std::memcpy(&bits, &value, sizeof(bits));
    if ((h & 0x7c00) == 0x7c00) bits |= 0x7f800000u;  // infinity, NaN
    bits |= static_cast<uint32_t>(h & 0x8000) << 16;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  static Vf load_part(const char* p, int n) {
    uint16_t half[kWidth] = {};
    std::memcpy(half, p, n * sizeof(Type));
    return Vf{widen(half[0]), widen(half[1]), widen(half[2]), widen(half[3])};
  }
  static Vf load(const char* p) { return load_part(p, kWidth); }
};

// Lane sums of four vectors, in one fixed order.
inline void reduce4(const Vf* a, float* out) {
  for (int r = 0; r < 4; ++r) out[r] = (a[r][0] + a[r][1]) + (a[r][2] + a[r][3]);
}

struct I8 {
  static constexpr int kStep = 4;
  static constexpr int kOffset = 0;
  using Acc = Vi;
  using W = Vi;
  static Acc zero() { return Vi{0, 0, 0, 0}; }
  static W load_w_part(const char* p, int n) {
    int8_t byte[4] = {};
    std::memcpy(byte, p, n);
    return Vi{byte[0], byte[1], byte[2], byte[3]};
  }
  static W load_w(const char* p) { return load_w_part(p, 4); }
  static W load_x(const char* p) { return load_w_part(p, 4); }
  static Acc dot(Acc acc, W w, W x) { return acc + w * x; }
  static void sum4(const Acc* a, int32_t* out) {
    for (int r = 0; r < 4; ++r) out[r] = (a[r][0] + a[r][1]) + (a[r][2] + a[r][3]);
  }
};

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
