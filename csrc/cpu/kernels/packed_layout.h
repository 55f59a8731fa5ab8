// Rows of packed weights as the kernels stream them: the blocks of a GGUF file, their bits in
// another order. A row has the file's own number of bytes.
//
// A row is cut into groups. Blocks of 32 values (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0) come in groups of 8
// while there are so many, then of 4, 2 and 1; a block of 256 (Q4_K, Q5_K, Q6_K) is a group of its
// own. A group holds its scales first and then its codes, "transposed": neighbouring 32-bit lanes
// of a vector belong to different blocks. So a vector of integer sums has one scale a lane, and a
// group of 256 values needs one conversion to float and one multiplication with its scales.
//
//   pairs   g blocks of 32. Place 16 c + 2 l + e (c < 2 g, l < 8, e < 2) has block l g / 8 and of
//   it
//           value 2 (8 c / g + l mod (8 / g)) + e. Codes are words of four places: word Q < 8 g = z
//           s + q, of which s = min(32, 8 g) lie side by side, has places 128 z + s f + q, f < 4.
//           So int16 vectors are made by shifts, and the bytes of a 32-bit lane have one block too.
//     q8_0  d[g] (f16), then for each z the words' places f = 0 and 2 (low and high byte), and then
//           those of f = 1 and 3.
//     q4_x  d[g], m[g] (q4_1 alone), then the words: nibble f is place f.
//     q5_x  as q4_x, and then 2 g words of the fifth bits: of place f of word Q bit 8 (f / 2) + 4
//     (f
//           mod 2) + Q / 2 g of word Q mod 2 g.
//   quads   256 values. Place 32 y + 4 l + e (y < 8, l < 8, e < 4) is value 32 l + 4 c + e with c =
//   y
//           / 2 + 4 (y mod 2). x is int8 in the same order. Lanes of even y hold the first half of
//           a block of 32, those of odd y the second, so that Q6_K's blocks of 16 have lanes of
//           their own too.
//     q4_k  d, dmin (f16), 8 bytes of scale j + 64 (min j mod 4), 4 bytes of (min j) / 4 + 16 (min
//           j + 4) / 4, then byte q < 128 = 64 z + r: places 64 z + r (low) and 64 (z + 2) + r.
//     q5_k  as q4_k; between scales and nibbles bit y of byte r < 32: the fifth bit of place 32 y +
//     r. q6_k  d (f16), 16 scales (int8; those of even y, then of odd y), nibbles as q4_k, then
//     field f
//           of 2 bits of byte r < 64: the upper bits of place 64 f + r.
#pragma once

#include <cstdint>

namespace dynaspec::cpu {

// Bytes and values of a file's block.
struct BlockShape {
  int values;
  int bytes;
};

constexpr BlockShape kBlockQ8_0{32, 34}, kBlockQ4_0{32, 18}, kBlockQ4_1{32, 20}, kBlockQ5_0{32, 22},
    kBlockQ5_1{32, 24}, kBlockQ4_K{256, 144}, kBlockQ5_K{256, 176}, kBlockQ6_K{256, 210};

// Blocks of the next group where `left` blocks of 32 remain.
constexpr int group_size(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// Value of the group's 32 g at a place (pairs).
constexpr int pair_value(int g, int place) {
  const int c = place / 16, l = place / 2 % 8, per = 8 / g;
  return l / per * 32 + 2 * (c * per + l % per) + place % 2;
}

// Words of a group that lie side by side.
constexpr int side_words(int g) { return g >= 4 ? 32 : 8 * g; }

// Bit of its fifth-bit word that a place needs; the word is the place modulo 2 g.
constexpr int fifth_bit(int g, int place) {
  const int side = side_words(g), f = place % (4 * side) / side;
  const int word = place / (4 * side) * side + place % side;
  return 8 * (f / 2) + 4 * (f % 2) + word / (2 * g);
}

// Value of the group's 256 at a place (quads).
constexpr int quad_value(int place) {
  const int y = place / 32, l = place / 4 % 8;
  return 32 * l + 4 * (y / 2 + 4 * (y % 2)) + place % 4;
}

}  // namespace dynaspec::cpu
