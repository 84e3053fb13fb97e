// How many products of an input and a row of weights are negative, by the signs of both alone (SparseInfer,
// arXiv 2411.12692): packed signs, 64 in a word, 1 where negative.
//
// One function for all machines, and the same whole number on each: with AVX-512's count of bits eight words at a
// time, with AVX2 by a table of the 16 halves of a byte, else one word at a time.
#pragma once

#include "types.h"

#include <algorithm>

constexpr int64_t SIGNS_OF_WORD = 64;

inline int64_t sign_words(int64_t channels) { return (channels + SIGNS_OF_WORD - 1) / SIGNS_OF_WORD; }

// The signs of x; what pads the last word is positive, as it is in the weights'.
inline void pack_signs(const float *x, int64_t channels, uint64_t *words) {
  for (int64_t word = 0; word < sign_words(channels); ++word) {
    uint64_t bits = 0;
    const int64_t first = word * SIGNS_OF_WORD, count = std::min(SIGNS_OF_WORD, channels - first);
    for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint64_t>(x[first + i] < 0.0f) << i;
    words[word] = bits;
  }
}

inline int64_t unlike_signs(const uint64_t *weights, const uint64_t *x, int64_t words) {
  int64_t count = 0, word = 0;
#if defined(__AVX512F__) && defined(__AVX512VPOPCNTDQ__)
  __m512i sums = _mm512_setzero_si512();
  for (; word + 8 <= words; word += 8) {
    const __m512i unlike = _mm512_xor_si512(_mm512_loadu_si512(weights + word), _mm512_loadu_si512(x + word));
    sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(unlike));
  }
  count = _mm512_reduce_add_epi64(sums);
#elif defined(__AVX2__)
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  __m256i sums = _mm256_setzero_si256();
  for (; word + 4 <= words; word += 4) {
    const __m256i unlike = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights + word)),
                                            _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + word)));
    const __m256i bytes = _mm256_add_epi8(
        _mm256_shuffle_epi8(table, _mm256_and_si256(unlike, low)),
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(unlike, 4), low)));
    sums = _mm256_add_epi64(sums, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
  }
  int64_t parts[4];
  std::memcpy(parts, &sums, sizeof parts);
  count = parts[0] + parts[1] + parts[2] + parts[3];
#endif
  for (; word < words; ++word) count += __builtin_popcountll(weights[word] ^ x[word]);
  return count;
}
