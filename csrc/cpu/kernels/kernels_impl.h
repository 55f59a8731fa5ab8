// Bodies of the other kernels, compiled once a level (no include guard); reads dot_rows_impl.h.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

// A tile reads the same place of all its rows of x, and these must not share a set of the L1 cache
// (8 ways of 64 lines: at a stride of 4 KB 8 rows of x and 4 of the weight would). So rows lie an
// odd number of lines apart. Long rows that are read in spans lie a span and a line apart, modulo
// two spans: then the spans of all rows fill the sets evenly.
inline int64_t stride_of(int64_t lines, bool spans) {
  constexpr int64_t span = kSpanBytes / kLine;
  return (spans && lines >= 3 * span ? round_up(lines - span - 1, 2 * span) + span + 1
                                     : lines | 1) *
         kLine;
}

inline int64_t lines_of(int64_t bytes) { return round_up(bytes, kLine) / kLine; }

// Nearest bf16, halves to even; NaN stays NaN.
inline uint32_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return x != x ? (bits >> 16) | 0x40u : rounded;
}

// x for weights of the dense formats. Half types are converted and multiply float32 x.
template <bool kSpans>
struct FloatX {
  static int64_t stride(int64_t k) { return stride_of(lines_of(4 * k), kSpans); }

  static void pack(const float* x, int64_t k, char* packed) {
    if (k > 0) std::memcpy(packed, x, 4 * k);  // x of no values may be null
    std::memset(packed + 4 * k, 0, stride(k) - 4 * k);
  }
};

#ifdef DYNASPEC_BF16_DOT
struct BF16X {
  static int64_t stride(int64_t k) { return stride_of(lines_of(2 * k), true); }

  static void pack(const float* x, int64_t k, char* packed) {
    uint16_t* out = reinterpret_cast<uint16_t*>(packed);
    for (int64_t i = 0; i < k; ++i) out[i] = static_cast<uint16_t>(bf16_bits(x[i]));
    std::memset(packed + 2 * k, 0, stride(k) - 2 * k);
  }
};
#else
struct BF16X {  // rounded to bf16, and kept in float32
  static int64_t stride(int64_t k) { return stride_of(lines_of(4 * k), BF16Path::kSpans); }

  static void pack(const float* x, int64_t k, char* packed) {
    uint32_t* out = reinterpret_cast<uint32_t*>(packed);
    for (int64_t i = 0; i < k; ++i) out[i] = bf16_bits(x[i]) << 16;
    std::memset(packed + 4 * k, 0, stride(k) - 4 * k);
  }
};
#endif

struct I8X {
  static int64_t stride(int64_t k) { return stride_of(lines_of(k) + 1, false); }  // the trailer

  static void pack(const float* x, int64_t k, char* packed);
};

void I8X::pack(const float* x, int64_t k, char* packed) {
  int8_t* q = reinterpret_cast<int8_t*>(packed);
  float top = 0.0f;
  float poison = 0.0f;  // NaN if any x is infinite or NaN
  const int64_t whole_end = k / kWidth * kWidth;
  Vf best = vzero(), bad = vzero();
  for (int64_t i = 0; i < whole_end; i += kWidth) {
    const Vf a = vload(x + i);
    best = vmax(vmax(a, vsub(vzero(), a)), best);
    bad = vfma(a, vzero(), bad);
  }
  float lanes[2 * kWidth];
  vstore(lanes, best);
  vstore(lanes + kWidth, bad);
  for (int i = 0; i < kWidth; ++i) {
    top = lanes[i] > top ? lanes[i] : top;
    poison += lanes[kWidth + i];
  }
  for (int64_t i = whole_end; i < k; ++i) {
    const float a = x[i] < 0.0f ? -x[i] : x[i];
    top = a > top ? a : top;
    poison += x[i] * 0.0f;
  }
  I8Trailer trailer{top / 127.0f + poison, 0};
  for (int64_t i = 0; i < k; ++i) {
    // x / scale lies in [-127, 127]; adding 1.5 * 2^23 rounds it, halves to even. A scale so small
    // that it lost bits itself counts as 0.
    const float whole =
        trailer.scale >= __FLT_MIN__ ? (x[i] / trailer.scale + 12582912.0f) - 12582912.0f : 0.0f;
    const int32_t value = static_cast<int32_t>(whole);
    q[i] = static_cast<int8_t>(value);
    trailer.sum += value;
  }
  const int64_t end = round_up(k, kLine);
  std::memset(packed + k, 0, end + kLine - k);
  std::memcpy(packed + end, &trailer, sizeof(trailer));
}

// e^x for x <= 0; e^-87 below -87 (Cephes' polynomial on [-ln 2 / 2, ln 2 / 2], relative error
// below 2e-7).
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

SoftmaxPart softmax(const float* x, int64_t count, float temperature, float* p) {
  const int64_t whole = count / kWidth * kWidth;
  float max = -__builtin_inff();
  float poison = 0.0f;  // NaN if an x is NaN or infinite
  const Vf t = vset(temperature);
  Vf best = vset(max), bad = vzero();
  for (int64_t j = 0; j < whole; j += kWidth) {
    Vf l = vload(x + j);
    if (temperature != 1.0f) l = vdiv(l, t);
    vstore(p + j, l);
    best = vmax(l, best);
    bad = vfma(l, vzero(), bad);
  }
  float lanes[kWidth];
  vstore(lanes, best);
  for (int i = 0; i < kWidth; ++i) max = lanes[i] > max ? lanes[i] : max;
  vstore(lanes, bad);
  for (int i = 0; i < kWidth; ++i) poison += lanes[i];
  for (int64_t j = whole; j < count; ++j) {
    p[j] = x[j] / temperature;
    max = p[j] > max ? p[j] : max;
    poison += p[j] * 0.0f;
  }
  const Vf shift = vset(max);
  Vf sum = vzero();
  for (int64_t j = 0; j < whole; j += kWidth) {
    const Vf e = exp_nonpositive(vsub(vload(p + j), shift));
    vstore(p + j, e);
    sum = vadd(sum, e);
  }
  vstore(lanes, sum);
  float total = poison;
  for (int i = 0; i < kWidth; ++i) total += lanes[i];
  if (whole < count) {
    vstore(lanes,
           exp_nonpositive(vsub(vload_part(p + whole, static_cast<int>(count - whole)), shift)));
    for (int64_t j = whole; j < count; ++j) total += p[j] = lanes[j - whole];
  }
  const float factor = 1.0f / total;
  const Vf scale = vset(factor);
  for (int64_t j = 0; j < whole; j += kWidth) vstore(p + j, vmul(vload(p + j), scale));
  for (int64_t j = whole; j < count; ++j) p[j] *= factor;
  return {max, total};
}

double running_sums(const float* x, int64_t count, double* ends) {
  double total = 0;
  for (int64_t at = 0; at < count; at += kSpan) {
    const int64_t end = count < at + kSpan ? count : at + kSpan;
    double part[8] = {};
    int64_t i = at;
    for (; i + 8 <= end; i += 8) {
      for (int j = 0; j < 8; ++j) part[j] += x[i + j];
    }
    for (; i < end; ++i) part[0] += x[i];
    total +=
        ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    *ends++ = total;
  }
  return total;
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
