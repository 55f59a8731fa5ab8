// Rows of x for packed weights (no include guard: included once a level, before its products).
//
// Pairs: int16 codes in the places' order (one scale a row, max |x| / 32767), then for each group
// the sums of its codes a lane, then the scale. Quads: int8 codes, one scale a group of 256 (max
// |x| / 127), the sums a lane times the group's scale, the scales.
namespace dynaspec::cpu::DYNASPEC_LEVEL {
namespace {

// A group of x's rows: codes, sums and scales of row i lie i * stride bytes on.
struct GroupOfX {
  const char *codes, *sums, *scales;
  int64_t stride, n;

  float scale(int64_t i) const {
    float value;
    std::memcpy(&value, scales + i * stride, sizeof(value));
    return value;
  }
};

}  // namespace
}  // namespace dynaspec::cpu::DYNASPEC_LEVEL
