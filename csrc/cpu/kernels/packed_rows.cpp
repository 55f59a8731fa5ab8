#include "cpu/kernels/packed_rows.h"

#include <cstring>

#include "cpu/kernels/packed_layout.h"

namespace dynaspec::cpu {
namespace {

// The exponent is moved from bias 15 to 127 by a multiplication with 2^112, which also normalises
// denormals.
float half_to_float(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  value *= 5.192296858534828e33f;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((h & 0x7c00) == 0x7c00) bits |= 0x7f800000u;  // infinity, NaN
  bits |= static_cast<uint32_t>(h & 0x8000) << 16;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint16_t load_half(const void* p) {
  uint16_t h;
  std::memcpy(&h, p, sizeof(h));
  return h;
}

bool finite(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

// Places of a group's values, made once.
struct Maps {
  uint8_t pair[4][256];  // of g = 1, 2, 4, 8
  uint8_t quad[256];

  Maps() {
    for (int i = 0; i < 4; ++i) {
      for (int place = 0; place < 32 << i; ++place) {
        pair[i][place] = static_cast<uint8_t>(pair_value(1 << i, place));
      }
    }
    for (int place = 0; place < 256; ++place) quad[place] = static_cast<uint8_t>(quad_value(place));
  }

  const uint8_t* of_pairs(int g) const { return pair[g == 1 ? 0 : g == 2 ? 1 : g == 4 ? 2 : 3]; }
};

const Maps& maps() {
  static const Maps all;
  return all;
}

// codes[place] = natural[value at place], two or four values at a time.
void place_pairs(const uint8_t* natural, int g, uint8_t* codes) {
  const uint8_t* map = maps().of_pairs(g);
  for (int place = 0; place < 32 * g; place += 2)
    std::memcpy(codes + place, natural + map[place], 2);
}

void place_quads(const uint8_t* natural, uint8_t* codes) {
  for (int place = 0; place < 256; place += 4)
    std::memcpy(codes + place, natural + quad_value(place), 4);
}

// Blocks of 32 values of `bits` bits: q8_0 (8), q4_x (4), q5_x (5); kMin: with a minimum.
template <int kBits, bool kMin>
struct Pairs {
  static constexpr int kScaleBytes = kMin ? 4 : 2;
  static constexpr int kBytes = kScaleBytes + kBits * 4;

  static void decode(const uint8_t* block, uint8_t* natural) {
    const uint8_t* codes = block + kScaleBytes;
    if constexpr (kBits == 8) {
      std::memcpy(natural, codes, 32);
      return;
    }
    uint32_t high = 0;
    if constexpr (kBits == 5) {
      std::memcpy(&high, codes, 4);
      codes += 4;
    }
    for (int j = 0; j < 16; ++j) {
      natural[j] = static_cast<uint8_t>((codes[j] & 15) | ((high >> j & 1) << 4));
      natural[j + 16] = static_cast<uint8_t>((codes[j] >> 4) | ((high >> (j + 16) & 1) << 4));
    }
  }

  static bool pack(const uint8_t* blocks, int64_t k, uint8_t* row) {
    bool sound = true;
    for (int64_t left = k / 32; left > 0;) {
      const int g = group_size(left);
      uint8_t natural[256], codes[256];
      uint8_t* out = row + kScaleBytes * g;
      for (int j = 0; j < g; ++j) {
        const uint8_t* block = blocks + j * kBytes;
        for (int s = 0; s < kScaleBytes / 2; ++s) {
          std::memcpy(row + 2 * (s * g + j), block + 2 * s, 2);
          sound = sound && finite(load_half(block + 2 * s));
        }
        decode(block, natural + 32 * j);
      }
      place_pairs(natural, g, codes);
      if constexpr (kBits == 8) {
        store_bytes(codes, g, out);
      } else {
        store_words(codes, g, out);
      }
      blocks += g * kBytes;
      row += g * kBytes;
      left -= g;
    }
    return sound;
  }

  static void store_bytes(const uint8_t* codes, int g, uint8_t* out) {
    const int side = side_words(g);
    for (int half = 0; half < 8 * g / side * 2; ++half) {
      const uint8_t* from = codes + 4 * side * (half / 2) + side * (half % 2);
      for (int q = 0; q < side; ++q) {
        *out++ = from[q];
        *out++ = from[2 * side + q];
      }
    }
  }

  static void load_bytes(const uint8_t* in, int g, uint8_t* codes) {
    const int side = side_words(g);
    for (int half = 0; half < 8 * g / side * 2; ++half) {
      uint8_t* to = codes + 4 * side * (half / 2) + side * (half % 2);
      for (int q = 0; q < side; ++q) {
        to[q] = *in++;
        to[2 * side + q] = *in++;
      }
    }
  }

  static void store_words(const uint8_t* codes, int g, uint8_t* out) {
    const int words = side_words(g);
    for (int z = 0; z < (g == 8 ? 2 : 1); ++z) {
      const uint8_t* from = codes + 128 * z;
      for (int q = 0; q < words; ++q) {
        out[2 * q] = static_cast<uint8_t>((from[q] & 15) | (from[words + q] & 15) << 4);
        out[2 * q + 1] =
            static_cast<uint8_t>((from[2 * words + q] & 15) | (from[3 * words + q] & 15) << 4);
      }
      out += 2 * words;
    }
    if constexpr (kBits == 5) {
      uint16_t high[16] = {};
      for (int run = 0; run < 32 * g; run += 2 * g) {  // places of one bit
        const int bit = fifth_bit(g, run);
        for (int q = 0; q < 2 * g; ++q) {
          high[q] |= static_cast<uint16_t>(codes[run + q] >> 4 << bit);
        }
      }
      std::memcpy(out, high, 4 * g);
    }
  }

  static void load_words(const uint8_t* in, int g, uint8_t* codes) {
    const int words = side_words(g);
    for (int z = 0; z < (g == 8 ? 2 : 1); ++z) {
      uint8_t* to = codes + 128 * z;
      for (int q = 0; q < words; ++q) {
        to[q] = in[2 * q] & 15;
        to[words + q] = in[2 * q] >> 4;
        to[2 * words + q] = in[2 * q + 1] & 15;
        to[3 * words + q] = in[2 * q + 1] >> 4;
      }
      in += 2 * words;
    }
    if constexpr (kBits == 5) {
      uint16_t high[16];
      std::memcpy(high, in, 4 * g);
      for (int run = 0; run < 32 * g; run += 2 * g) {
        const int bit = fifth_bit(g, run);
        for (int q = 0; q < 2 * g; ++q) codes[run + q] |= (high[q] >> bit & 1) << 4;
      }
    }
  }

  static void unpack(const char* row, int64_t k, float* out) {
    for (int64_t left = k / 32; left > 0;) {
      const int g = group_size(left);
      const uint8_t* in = reinterpret_cast<const uint8_t*>(row) + kScaleBytes * g;
      uint8_t codes[256];
      if constexpr (kBits == 8) {
        load_bytes(in, g, codes);
      } else {
        load_words(in, g, codes);
      }
      const uint8_t* map = maps().of_pairs(g);
      float d[8], m[8];
      for (int j = 0; j < g; ++j) {
        d[j] = half_to_float(load_half(row + 2 * j));
        m[j] = kMin ? half_to_float(load_half(row + 2 * (g + j))) : 0.0f;
      }
      for (int place = 0; place < 32 * g; ++place) {
        const int value = map[place], j = value / 32;
        if constexpr (kMin) {
          out[value] = d[j] * static_cast<float>(codes[place]) + m[j];
        } else if constexpr (kBits == 8) {
          out[value] = d[j] * static_cast<float>(static_cast<int8_t>(codes[place]));
        } else {
          out[value] = d[j] * static_cast<float>(codes[place] - (1 << (kBits - 1)));
        }
      }
      row += g * kBytes;
      out += 32 * g;
      left -= g;
    }
  }
};

// Nibbles of quads: byte 64 z + r holds places 64 z + r and 64 (z + 2) + r.
void store_nibbles(const uint8_t* codes, uint8_t* out) {
  for (int z = 0; z < 2; ++z) {
    for (int r = 0; r < 64; ++r) {
      out[64 * z + r] =
          static_cast<uint8_t>((codes[64 * z + r] & 15) | (codes[64 * (z + 2) + r] & 15) << 4);
    }
  }
}

void load_nibbles(const uint8_t* in, uint8_t* codes) {
  for (int z = 0; z < 2; ++z) {
    for (int r = 0; r < 64; ++r) {
      codes[64 * z + r] = in[64 * z + r] & 15;
      codes[64 * (z + 2) + r] = in[64 * z + r] >> 4;
    }
  }
}

// Q4_K and Q5_K: 8 blocks of 32 with scales and minima of 6 bits.
template <int kBits>
struct QuadsMin {
  static constexpr int kHead = 16;
  static constexpr int kHigh = kBits == 5 ? 32 : 0;
  static constexpr int kBytes = kHead + kHigh + 128;

  static bool pack(const uint8_t* blocks, int64_t k, uint8_t* row) {
    bool sound = true;
    for (int64_t at = 0; at < k; at += 256, blocks += kBytes, row += kBytes) {
      sound = sound && finite(load_half(blocks)) && finite(load_half(blocks + 2));
      std::memcpy(row, blocks, 4);
      const uint8_t* const s = blocks + 4;
      uint8_t scale[8], min[8];
      for (int j = 0; j < 4; ++j) {
        scale[j] = s[j] & 63;
        min[j] = s[j + 4] & 63;
        scale[j + 4] = static_cast<uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
        min[j + 4] = static_cast<uint8_t>((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
      }
      for (int j = 0; j < 8; ++j) row[4 + j] = static_cast<uint8_t>(scale[j] | (min[j] & 3) << 6);
      for (int j = 0; j < 4; ++j)
        row[12 + j] = static_cast<uint8_t>(min[j] >> 2 | (min[j + 4] >> 2) << 4);
      uint8_t natural[256], codes[256];
      const uint8_t* high = blocks + 16;
      const uint8_t* low = blocks + 16 + kHigh;
      for (int j = 0; j < 4; ++j) {
        for (int l = 0; l < 32; ++l) {
          uint8_t a = low[32 * j + l] & 15, b = low[32 * j + l] >> 4;
          if constexpr (kBits == 5) {
            a |= static_cast<uint8_t>((high[l] >> (2 * j) & 1) << 4);
            b |= static_cast<uint8_t>((high[l] >> (2 * j + 1) & 1) << 4);
          }
          natural[64 * j + l] = a;
          natural[64 * j + 32 + l] = b;
        }
      }
      place_quads(natural, codes);
      if constexpr (kBits == 5) {
        for (int r = 0; r < 32; ++r) {
          uint32_t byte = 0;
          for (int y = 0; y < 8; ++y) byte |= static_cast<uint32_t>(codes[32 * y + r] >> 4) << y;
          row[kHead + r] = static_cast<uint8_t>(byte);
        }
      }
      store_nibbles(codes, row + kHead + kHigh);
    }
    return sound;
  }

  static void unpack(const char* packed, int64_t k, float* out) {
    const uint8_t* row = reinterpret_cast<const uint8_t*>(packed);
    for (int64_t at = 0; at < k; at += 256, row += kBytes, out += 256) {
      const float d = half_to_float(load_half(row)), dmin = half_to_float(load_half(row + 2));
      float scale[8], min[8];
      for (int j = 0; j < 8; ++j) {
        const int high = j < 4 ? row[12 + j] & 15 : row[8 + j] >> 4;
        scale[j] = d * static_cast<float>(row[4 + j] & 63);
        min[j] = dmin * static_cast<float>(row[4 + j] >> 6 | high << 2);
      }
      uint8_t codes[256];
      load_nibbles(row + kHead + kHigh, codes);
      for (int place = 0; place < 256; ++place) {
        int code = codes[place];
        if constexpr (kBits == 5) code |= (row[kHead + place % 32] >> (place / 32) & 1) << 4;
        const int value = maps().quad[place], j = value / 32;
        out[value] = scale[j] * static_cast<float>(code) - min[j];
      }
    }
  }
};

struct Q6_K {
  static constexpr int kBytes = 210;

  static bool pack(const uint8_t* blocks, int64_t k, uint8_t* row) {
    bool sound = true;
    for (int64_t at = 0; at < k; at += 256, blocks += kBytes, row += kBytes) {
      sound = sound && finite(load_half(blocks + 208));
      std::memcpy(row, blocks + 208, 2);
      for (int j = 0; j < 8; ++j) {
        row[2 + j] = blocks[192 + 2 * j];
        row[10 + j] = blocks[192 + 2 * j + 1];
      }
      uint8_t natural[256], codes[256];
      for (int half = 0; half < 2; ++half) {
        const uint8_t *low = blocks + 64 * half, *high = blocks + 128 + 32 * half;
        uint8_t* to = natural + 128 * half;
        for (int l = 0; l < 32; ++l) {
          to[l] = static_cast<uint8_t>((low[l] & 15) | (high[l] & 3) << 4);
          to[l + 32] = static_cast<uint8_t>((low[l + 32] & 15) | (high[l] >> 2 & 3) << 4);
          to[l + 64] = static_cast<uint8_t>((low[l] >> 4) | (high[l] >> 4 & 3) << 4);
          to[l + 96] = static_cast<uint8_t>((low[l + 32] >> 4) | (high[l] >> 6) << 4);
        }
      }
      place_quads(natural, codes);
      store_nibbles(codes, row + 18);
      for (int r = 0; r < 64; ++r) {
        row[146 + r] = static_cast<uint8_t>(codes[r] >> 4 | codes[64 + r] >> 4 << 2 |
                                            codes[128 + r] >> 4 << 4 | codes[192 + r] >> 4 << 6);
      }
    }
    return sound;
  }

  static void unpack(const char* packed, int64_t k, float* out) {
    const uint8_t* row = reinterpret_cast<const uint8_t*>(packed);
    for (int64_t at = 0; at < k; at += 256, row += kBytes, out += 256) {
      const float d = half_to_float(load_half(row));
      uint8_t codes[256];
      load_nibbles(row + 18, codes);
      for (int place = 0; place < 256; ++place) {
        const int code = codes[place] | (row[146 + place % 64] >> (2 * (place / 64)) & 3) << 4;
        const int value = maps().quad[place], block = value / 16;
        const int8_t scale = static_cast<int8_t>(row[2 + block / 2 + 8 * (block % 2)]);
        out[value] = d * static_cast<float>(scale) * static_cast<float>(code - 32);
      }
    }
  }
};

}  // namespace

bool pack_q8_0(const uint8_t* b, int64_t k, uint8_t* r) { return Pairs<8, false>::pack(b, k, r); }
bool pack_q4_0(const uint8_t* b, int64_t k, uint8_t* r) { return Pairs<4, false>::pack(b, k, r); }
bool pack_q4_1(const uint8_t* b, int64_t k, uint8_t* r) { return Pairs<4, true>::pack(b, k, r); }
bool pack_q5_0(const uint8_t* b, int64_t k, uint8_t* r) { return Pairs<5, false>::pack(b, k, r); }
bool pack_q5_1(const uint8_t* b, int64_t k, uint8_t* r) { return Pairs<5, true>::pack(b, k, r); }
bool pack_q4_k(const uint8_t* b, int64_t k, uint8_t* r) { return QuadsMin<4>::pack(b, k, r); }
bool pack_q5_k(const uint8_t* b, int64_t k, uint8_t* r) { return QuadsMin<5>::pack(b, k, r); }
bool pack_q6_k(const uint8_t* b, int64_t k, uint8_t* r) { return Q6_K::pack(b, k, r); }

void unpack_f32(const char* row, int64_t k, float* out) { std::memcpy(out, row, 4 * k); }
void unpack_bf16(const char* row, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i) {
    const uint32_t bits = static_cast<uint32_t>(load_half(row + 2 * i)) << 16;
    std::memcpy(out + i, &bits, sizeof(bits));
  }
}
void unpack_f16(const char* row, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i) out[i] = half_to_float(load_half(row + 2 * i));
}
void unpack_q8_0(const char* r, int64_t k, float* out) { Pairs<8, false>::unpack(r, k, out); }
void unpack_q4_0(const char* r, int64_t k, float* out) { Pairs<4, false>::unpack(r, k, out); }
void unpack_q4_1(const char* r, int64_t k, float* out) { Pairs<4, true>::unpack(r, k, out); }
void unpack_q5_0(const char* r, int64_t k, float* out) { Pairs<5, false>::unpack(r, k, out); }
void unpack_q5_1(const char* r, int64_t k, float* out) { Pairs<5, true>::unpack(r, k, out); }
void unpack_q4_k(const char* r, int64_t k, float* out) { QuadsMin<4>::unpack(r, k, out); }
void unpack_q5_k(const char* r, int64_t k, float* out) { QuadsMin<5>::unpack(r, k, out); }
void unpack_q6_k(const char* r, int64_t k, float* out) { Q6_K::unpack(r, k, out); }

}  // namespace dynaspec::cpu
