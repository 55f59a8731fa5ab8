// 16-bit floating-point types of the device headers, converted by round to nearest even.
#pragma once

#include <cstdint>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(0x7fff)};
  u += 0x7fffu + ((u >> 16) & 1u);
  return {static_cast<uint16_t>(u >> 16)};
}
inline float __half2float(__half x) {
  _Float16 h;
  __builtin_memcpy(&h, &x.bits, 2);
  return static_cast<float>(h);
}
inline __half __float2half(float f) {
  _Float16 h = static_cast<_Float16>(f);
  __half x;
  __builtin_memcpy(&x.bits, &h, 2);
  return x;
}
