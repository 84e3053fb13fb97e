// Integer dot products of bytes, four rows of a weight at a time: few_bits.h.
//
// A factor is an integer of 16 bits. VNNI multiplies bytes with bytes, so a factor is split into two signed digits
// there; elsewhere it is multiplied as it is. Sums are exact, modulo 2^32, so all machines give the same bits.
#pragma once

#include "vectors.h"

#include <utility>

typedef uint8_t Bytes __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES)));

#if (defined(__AVX512VNNI__) && defined(__AVX512BW__)) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
#define WISPARSE_DIGITS
#endif

constexpr int QUAD = 4;                   // rows whose bytes share a word
constexpr int LARGEST_FACTOR = 127 * 257; // two digits from -128 to 127, the upper one rounded up

// Elements of 16 bytes each of two vectors take turns, from the lower halves of these or the upper ones.
template <class Elements, bool UPPER, int... J>
inline Elements take_turns(Elements a, Elements b, std::integer_sequence<int, J...>) {
  constexpr int count = sizeof(Elements) / sizeof(a[0]), each = 16 / sizeof(a[0]);
  constexpr auto from = [](int j) { return j / each * each + j % each / 2 + UPPER * each / 2 + j % 2 * count; };
  return __builtin_shufflevector(a, b, from(J)...);
}
template <class Elements, bool UPPER> inline Words take_turns(Words a, Words b) {
  constexpr int count = sizeof(Elements) / sizeof(Elements{}[0]);
  return (Words)take_turns<Elements, UPPER>((Elements)a, (Elements)b, std::make_integer_sequence<int, count>{});
}

// Bytes of four rows by column: word `lane` of vector k has those of column 16 · (lane / 4) + 4 k + lane % 4. The
// second and third row change places: the halves of a word of two factors are then even and odd bytes.
inline void interleave(const Words *rows, Words (&columns)[QUAD]) {
  const Words lower[2] = {take_turns<Bytes, false>(rows[0], rows[2]), take_turns<Bytes, false>(rows[1], rows[3])};
  const Words upper[2] = {take_turns<Bytes, true>(rows[0], rows[2]), take_turns<Bytes, true>(rows[1], rows[3])};
  columns[0] = take_turns<Halves, false>(lower[0], lower[1]);
  columns[1] = take_turns<Halves, true>(lower[0], lower[1]);
  columns[2] = take_turns<Halves, false>(upper[0], upper[1]);
  columns[3] = take_turns<Halves, true>(upper[0], upper[1]);
}

// Factors of four rows, in the lower 16 bits of each word, as dot_quads takes them.
struct Factors {
  Words first, second; // lower and upper digits; elsewhere pairs of rows
};

inline Factors factors_of(const Words (&rows)[QUAD]) {
  const Words first = (rows[0] & 0xffffu) | rows[1] << 16, second = (rows[2] & 0xffffu) | rows[3] << 16;
#if defined(WISPARSE_DIGITS)
  constexpr uint32_t even = 0x00ff00ffu;
  const Words first_upper = (Words)((Halves)first + 0x80), second_upper = (Words)((Halves)second + 0x80);
  return {(first & even) | (second & even) << 8, (first_upper >> 8 & even) | (second_upper & ~even)};
#else
  return {first, second};
#endif
}

// Which byte of a word is the row's, of four.
constexpr int place_of_row(int row) { return row == 1 ? 2 : row == 2 ? 1 : row; }

// The factor of one of four rows.
inline int factor_of_row([[maybe_unused]] uint32_t first, [[maybe_unused]] uint32_t second, int row) {
#if defined(WISPARSE_DIGITS)
  const int shift = 8 * place_of_row(row);
  return static_cast<int8_t>(first >> shift) + 256 * static_cast<int8_t>(second >> shift);
#else
  return static_cast<int16_t>((row < 2 ? first : second) >> row % 2 * 16);
#endif
}

// Where the sum of a column stands in its block, of VALUES columns a byte: see interleave.
template <int VALUES> constexpr int place_of(int column) {
  const int byte = column / VALUES;
  return (byte / 4 % 4 * VALUES + column % VALUES) * LANES + byte / 16 * 4 + byte % 4;
}

// The sums of a block in the order of its columns: those of four bytes beside each other at a time.
template <int VALUES> inline void columns_in_order(const float *sums, float *ordered) {
  for (int byte = 0; byte < VECTOR_BYTES; byte += 4, ordered += 4 * VALUES) {
    Four of_bytes[VALUES];
    for (int value = 0; value < VALUES; ++value)
      std::memcpy(of_bytes + value, sums + place_of<VALUES>(byte * VALUES + value), sizeof *of_bytes);
    if (VALUES == 2) {
      const Four lower = of_bytes[0], upper = of_bytes[VALUES - 1];
      of_bytes[0] = __builtin_shufflevector(lower, upper, 0, 4, 1, 5);
      of_bytes[VALUES - 1] = __builtin_shufflevector(lower, upper, 2, 6, 3, 7);
    }
    std::memcpy(ordered, of_bytes, sizeof of_bytes);
  }
}

// sum + the bytes without sign of `weights` times the factors, of COUNT quads of rows.
template <int COUNT>
inline Integers dot_quads(Integers sum, const Words (&weights)[COUNT], const Factors (&factors)[COUNT]) {
#if defined(WISPARSE_DIGITS)
  const auto dot = [](Integers to, Words bytes, Words digits) {
#if defined(__AVX512F__)
    return (Integers)_mm512_dpbusd_epi32((__m512i)to, (__m512i)bytes, (__m512i)digits);
#else
    return (Integers)_mm256_dpbusd_avx_epi32((__m256i)to, (__m256i)bytes, (__m256i)digits);
#endif
  };
  Integers upper = {};
  for (int q = 0; q < COUNT; ++q) upper = dot(upper, weights[q], factors[q].second);
  sum += upper << 8;
  for (int q = 0; q < COUNT; ++q) sum = dot(sum, weights[q], factors[q].first);
#else
  for (int q = 0; q < COUNT; ++q) {
    const Words even = weights[q] & 0x00ff00ffu, odd = (Words)((Halves)weights[q] >> 8);
#if defined(__AVX512BW__)
    sum += (Integers)_mm512_madd_epi16((__m512i)even, (__m512i)factors[q].first);
    sum += (Integers)_mm512_madd_epi16((__m512i)odd, (__m512i)factors[q].second);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    sum += (Integers)_mm256_madd_epi16((__m256i)even, (__m256i)factors[q].first);
    sum += (Integers)_mm256_madd_epi16((__m256i)odd, (__m256i)factors[q].second);
#elif defined(__SSE2__) && !defined(__AVX__)
    sum += (Integers)_mm_madd_epi16((__m128i)even, (__m128i)factors[q].first);
    sum += (Integers)_mm_madd_epi16((__m128i)odd, (__m128i)factors[q].second);
#else
    const auto pair = [](Words bytes, Words two) {
      const Integers both = (Integers)two, lower = both << 16 >> 16, upper = both >> 16;
      return (Integers)(bytes & 0xffffu) * lower + (Integers)(bytes >> 16) * upper;
    };
    sum += pair(even, factors[q].first) + pair(odd, factors[q].second);
#endif
  }
#endif
  return sum;
}
