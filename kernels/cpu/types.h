// What the CPU sources share.
#pragma once

#include <cstdint>
#include <cstring>

constexpr int LARGEST_BATCH = 8; // as in kept_channels.py

typedef uint16_t bfloat16; // its bits, which are the upper half of a float's

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
