// The table of a level, after all its bodies (no include guard).
#define DYNASPEC_STRING_(x) #x
#define DYNASPEC_STRING(x) DYNASPEC_STRING_(x)
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

template <class X, class Path>
constexpr FormatKernels dense() {
  return {X::stride, X::pack, dot_rows_of<Path>};
}

template <class F>
constexpr FormatKernels packed() {
  return {F::X::stride, F::X::pack, dot_packed<F>};
}

}  // namespace

const Kernels& table();
const Kernels& table() {
  static const Kernels all = {
      DYNASPEC_STRING(DYNASPEC_LEVEL),
      {
          // In the order of Format.
          dense<FloatX<FloatPath<F32>::kSpans>, FloatPath<F32>>(),
          dense<BF16X, BF16Path>(),
          dense<FloatX<FloatPath<F16>::kSpans>, FloatPath<F16>>(),
          dense<I8X, I8Path>(),
          packed<PairFormat<8, false>>(),
          packed<PairFormat<4, false>>(),
          packed<PairFormat<4, true>>(),
          packed<PairFormat<5, false>>(),
          packed<PairFormat<5, true>>(),
          packed<QuadFormat<Q4_K>>(),
          packed<QuadFormat<Q5_K>>(),
          packed<QuadFormat<Q6_K>>(),
      },
      softmax_part,
      softmax,
      running_sums,
      offer,
      &kLayerKernels,
  };
  return all;
}

}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
