// A GGUF file's rows of blocks -> rows as the kernels stream them, and back to float32.
#pragma once

#include <cstdint>

namespace dynaspec::cpu {

// One row of k values in the file's blocks (k is a multiple of the block's values) -> the same
// number of bytes in packed_layout.h's order. False if a scale is infinite or NaN.
using PackBlocks = bool (*)(const uint8_t* blocks, int64_t k, uint8_t* row);

// A packed row -> k values in float32, each rounded as the plain formula of its block says.
using UnpackRow = void (*)(const char* row, int64_t k, float* out);

bool pack_q8_0(const uint8_t* blocks, int64_t k, uint8_t* row);
bool pack_q4_0(const uint8_t* blocks, int64_t k, uint8_t* row);
bool pack_q4_1(const uint8_t* blocks, int64_t k, uint8_t* row);
bool pack_q5_0(const uint8_t* blocks, int64_t k, uint8_t* row);
bool pack_q5_1(const uint8_t* blocks, int64_t k, uint8_t* row);
bool pack_q4_k(const uint8_t* blocks, int64_t k, uint8_t* row);
bool pack_q5_k(const uint8_t* blocks, int64_t k, uint8_t* row);
bool pack_q6_k(const uint8_t* blocks, int64_t k, uint8_t* row);

void unpack_f32(const char* row, int64_t k, float* out);
void unpack_bf16(const char* row, int64_t k, float* out);
void unpack_f16(const char* row, int64_t k, float* out);
void unpack_q8_0(const char* row, int64_t k, float* out);
void unpack_q4_0(const char* row, int64_t k, float* out);
void unpack_q4_1(const char* row, int64_t k, float* out);
void unpack_q5_0(const char* row, int64_t k, float* out);
void unpack_q5_1(const char* row, int64_t k, float* out);
void unpack_q4_k(const char* row, int64_t k, float* out);
void unpack_q5_k(const char* row, int64_t k, float* out);
void unpack_q6_k(const char* row, int64_t k, float* out);

}  // namespace dynaspec::cpu
