// Vectors of the widest registers that the flags allow, and of sixteen floats on every machine.
//
// GCC's vector extensions: one source for AVX-512, AVX2 and plain machines. Sixteen lies in as many registers as it
// takes, so that sums of its lanes have one order everywhere. A vector of the compiler's that is wider than a
// register would go through memory at every step.
#pragma once

#include "types.h"

#include <algorithm>

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANES = VECTOR_BYTES / 4;
constexpr int BLOCK = 2 * LANES; // columns of one step: with bfloat16, one register of the weight

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));

// a · b + sum, fused on machines that can.
inline Floats multiply_add(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, sum);
#elif defined(__aarch64__)
  return vfmaq_f32(sum, a, b);
#else
  return a * b + sum;
#endif
}

template <class Vector, class Value> inline Vector load_vector(const Value *source) {
  Vector result;
  std::memcpy(&result, source, sizeof result);
  return result;
}

template <class Vector, class Value> inline void store_vector(Vector vector, Value *place) {
  std::memcpy(place, &vector, sizeof vector);
}

// BLOCK weights as two vectors of float. Which column a lane holds depends on how they are stored: column_of.
struct Pair {
  Floats first, second;
};

// The second vector lies `distance` floats behind the first.
inline Pair load(const float *source, int distance = LANES) {
  Pair pair;
  std::memcpy(&pair.first, source, sizeof pair.first);
  std::memcpy(&pair.second, source + distance, sizeof pair.second);
  return pair;
}

// A bfloat16 is the upper half of a float. Taking even and odd columns apart costs a shift and a mask for two
// vectors; widening them in order costs two permutations and two shifts, 12 % of the whole product's speed. The
// sums are put in order once, at the end.
inline Pair load(const bfloat16 *source) {
  Words words, even, odd;
  std::memcpy(&words, source, sizeof words);
  even = words << 16;
  odd = words & 0xffff0000u;
  Pair pair;
  std::memcpy(&pair.first, &even, sizeof even);
  std::memcpy(&pair.second, &odd, sizeof odd);
  return pair;
}

inline void store(const Pair &pair, float *target) {
  store_vector(pair.first, target);
  store_vector(pair.second, target + LANES);
}

// One to four values of 16 bits, zeros behind them, in a register: read in two pieces from memory, a vector that
// was written in others would wait for these to arrive there.
inline int64_t up_to_four(const uint16_t *source, int64_t count) {
  uint64_t all;
  uint32_t two;
  if (count == 4) return std::memcpy(&all, source, sizeof all), all;
  if (count == 1) return source[0];
  std::memcpy(&two, source, sizeof two);
  return count == 2 ? two : two | static_cast<uint64_t>(source[2]) << 32;
}

// LANES float16, whose conversion is exact; of them `count` may be read, and zeros stand for those behind.
inline Floats load_halves(const uint16_t *source, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const __mmask16 readable = count >= LANES ? 0xffff : (1u << count) - 1;
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(readable, source));
#else
#if defined(__F16C__) && !defined(__AVX512F__)
  if (count >= LANES) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(source)));
  const int64_t lower = count >= 4 ? up_to_four(source, 4) : up_to_four(source, count);
  return _mm256_cvtph_ps(_mm_set_epi64x(count > 4 ? up_to_four(source + 4, count - 4) : 0, lower));
#else
  uint16_t halves[LANES] = {};
  std::memcpy(halves, source, sizeof(uint16_t) * (count >= LANES ? LANES : count));
  Floats result;
  for (int lane = 0; lane < LANES; ++lane) result[lane] = half_to_float(halves[lane]);
  return result;
#endif
#endif
}

// LANES bytes as integers, with their signs or without.
template <class Byte> inline Integers widened(const Byte *source) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(source));
  return reinterpret_cast<Integers>(static_cast<Byte>(-1) < 0 ? _mm512_cvtepi8_epi32(bytes)
                                                               : _mm512_cvtepu8_epi32(bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(source));
  return reinterpret_cast<Integers>(static_cast<Byte>(-1) < 0 ? _mm256_cvtepi8_epi32(bytes)
                                                               : _mm256_cvtepu8_epi32(bytes));
#else
  Integers result;
  for (int lane = 0; lane < LANES; ++lane) result[lane] = source[lane];
  return result;
#endif
}

inline Floats as_floats(Integers values) { return __builtin_convertvector(values, Floats); }

inline Pair load(const int8_t *source) {
  return {as_floats(widened(source)), as_floats(widened(source + LANES))};
}

// LANES words, of which `bytes` may be read; zeros stand for those behind.
inline Words load_words(const uint8_t *source, int64_t bytes) {
  if (bytes >= VECTOR_BYTES) {
    Words words;
    std::memcpy(&words, source, sizeof words);
    return words;
  }
#if defined(__AVX512BW__)
  const __mmask64 readable = (__mmask64{1} << bytes) - 1;
  return reinterpret_cast<Words>(_mm512_maskz_loadu_epi8(readable, source));
#else
  Words words = {};
  std::memcpy(&words, source, bytes);
  return words;
#endif
}

// Values number `place` of each word, less their zero points, all exact. SYMMETRIC: these are 8.
template <bool SYMMETRIC> inline Floats nibbles(Words words, int place, Floats zeros) {
#if defined(__AVX512F__)
  const Floats levels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const __m512i lowest = reinterpret_cast<__m512i>(words >> 4 * place); // four bits of which are looked at
  if (SYMMETRIC) return _mm512_permutexvar_ps(lowest, levels - 8.0f);
  return reinterpret_cast<Floats>(_mm512_permutexvar_ps(lowest, levels)) - zeros;
#else
  if (SYMMETRIC) { // as numbers with a sign, which shifts extend
    const Words flipped = (words ^ 0x88888888u) << (28 - 4 * place);
    return as_floats(reinterpret_cast<Integers>(flipped) >> 28);
  }
  return as_floats(reinterpret_cast<Integers>(words >> 4 * place & 15u)) - zeros;
#endif
}

constexpr int DOT_LANES = 16;                // partial sums of a row's dot product, on every machine
constexpr int DOT_PARTS = DOT_LANES / LANES; // registers that hold them
typedef float Four __attribute__((vector_size(16)));

struct Sixteen {
  Floats parts[DOT_PARTS];
};

// The sixteen whose part number p is of_part(p).
template <class OfPart> inline Sixteen sixteen_of(OfPart &&of_part) {
  Sixteen result;
#pragma GCC unroll 4
  for (int part = 0; part < DOT_PARTS; ++part) result.parts[part] = of_part(part);
  return result;
}

// LANES values as floats.
inline Floats load_one(const float *source) { return load_vector<Floats>(source); }
inline Floats load_one(const bfloat16 *source) {
  typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
  return (Floats)(__builtin_convertvector(load_vector<Halves>(source), Words) << 16);
}
template <class Value> inline Sixteen load_sixteen(const Value *source) {
  return sixteen_of([source](int part) { return load_one(source + part * LANES); });
}

// The first `count` of sixteen values, zeros behind them.
template <class Value> inline Sixteen load_some(const Value *source, int64_t count) {
  if (count >= DOT_LANES) return load_sixteen(source);
  Value padded[DOT_LANES] = {};
  std::memcpy(padded, source, count * sizeof(Value));
  return load_sixteen(padded);
}

// The first `count` of them, or all.
inline void store_some(const Sixteen &values, float *place, int64_t count = DOT_LANES) {
  std::memcpy(place, values.parts, sizeof(float) * (count < DOT_LANES ? count : DOT_LANES));
}

inline Sixteen multiply_add(const Sixteen &a, const Sixteen &b, const Sixteen &sum) {
  return sixteen_of([&](int part) { return multiply_add(a.parts[part], b.parts[part], sum.parts[part]); });
}

template <int NUMBER> inline Four quarter(const Sixteen &values) {
  constexpr int at = 4 * NUMBER % LANES;
  const Floats part = values.parts[4 * NUMBER / LANES];
  return __builtin_shufflevector(part, part, at, at + 1, at + 2, at + 3);
}

// Sums of sixteen lanes: the lower half plus the upper, until one is left.
inline Four quarter_sums(const Sixteen &values) {
  return (quarter<0>(values) + quarter<2>(values)) + (quarter<1>(values) + quarter<3>(values));
}
inline float sum_of(const Sixteen &values) {
  const Four sums = quarter_sums(values);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}
inline Four sums_of(const Sixteen (&rows)[4]) {
  const Four a = quarter_sums(rows[0]), b = quarter_sums(rows[1]);
  const Four c = quarter_sums(rows[2]), d = quarter_sums(rows[3]);
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// e^x, to two units in the last place; infinity, 0 and NaN where they belong. Polynomial of Cephes' expf, never
// fused: it has the same bits on every machine.
inline Floats exponential(Floats x) {
  x = x < -104.0f ? Floats{} - 104.0f : x; // NaN stays: no comparison with it is true
  x = x > 89.0f ? Floats{} + 89.0f : x;
  const Floats n = x * 1.44269504088896341f + 12582912.0f - 12582912.0f; // 1.5 · 2^23 rounds to integers
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  // 2^n in two factors, since 2^128 and 2^-150 are no floats.
  const Integers power = __builtin_convertvector(n, Integers), half = power >> 1;
  return y * (Floats)((half + 127) << 23) * (Floats)((power - half + 127) << 23);
}

// The values above zero and NaN; zero for the others. In place or not.
inline void relu(const float *x, int64_t count, float *out) {
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] <= 0.0f ? 0.0f : x[i];
}

// x · sigmoid(x) of `count` values, in place or not.
inline void silu(const float *x, int64_t count, float *out) {
  for (int64_t i = 0; i < count; i += DOT_LANES) {
    const Sixteen values = load_some(x + i, count - i);
    store_some(sixteen_of([&values](int part) {
                 return values.parts[part] / (exponential(-values.parts[part]) + 1.0f);
               }),
               out + i, count - i);
  }
}
