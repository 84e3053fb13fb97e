// What the CPU sources share with each other and with Python: weights, kept channels, types of values.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

constexpr int LARGEST_BATCH = 8; // as in kept_channels.py

typedef uint16_t bfloat16; // its bits, which are the upper half of a float's

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// To the nearest, ties to even; NaN stays NaN.
inline bfloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<bfloat16>(bits >> 16 | 0x40);
  return static_cast<bfloat16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A float16's value, exactly; infinite where that is, and NaN.
inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  const uint32_t magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
  float value;
  std::memcpy(&value, &magnitude, sizeof value);
  value *= 0x1p112f; // from the exponents of float16 to those of float, subnormal ones too
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits |= sign | ((half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u);
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// How a weight is stored, and in few bits how it is multiplied: by floats, or by integers of 16 bits that
// activations are rounded to (few_bits.h). weights.py numbers them likewise.
enum Stored : int64_t { FLOAT, BFLOAT16, INT8, INT4, INT8_BY_INTEGERS, INT4_BY_INTEGERS };

// A weight (in, out), a row for each input channel; weights.py fills it. All fields are 8 bytes wide.
struct Weight {
  const uint8_t *values;
  int64_t stored;
  int64_t stride; // bytes from row to row
  int64_t rows, columns;
  const float *row_scales;    // 8 bits: (rows,)
  const float *column_scales; // 8 bits: (columns,)
  const uint16_t *scales;     // 4 bits: (rows, groups) float16
  const uint8_t *zeros;       // 4 bits: (rows, groups); null: 8 for all
  int64_t group;              // 4 bits: columns that share a scale
  int64_t scale_stride;       // 4 bits: groups from row to row
};

// Channels whose rows a product reads, and what they are multiplied by.
struct Kept {
  const int32_t *channels; // (count,)
  const float *values;     // (count, batch)
  int64_t count;
};
