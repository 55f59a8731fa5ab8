// The table of a level, after all its bodies (no include guard).
#define DYNASPEC_STRING_(x) #x
#define DYNASPEC_STRING(x) DYNASPEC_STRING_(x)
namespace dynaspec::cpu::DYNASPEC_LEVEL {

const Kernels& table();
const Kernels& table() {
  static const Kernels all = {
      DYNASPEC_STRING(DYNASPEC_LEVEL),
      packed_stride,
      pack_row,
      dot_rows,
      softmax_part,
      offer,
      &kLayerKernels,
  };
  return all;
}

}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
