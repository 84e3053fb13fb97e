// Which channels are kept, as an ascending list: static thresholds and per-row top-k, for CPUs.
//
// One thread: 14336 channels take about 1 % of the time of the product that follows. A comparison with NaN is
// never true, so NaN is kept, as is infinity: never compile this with -ffast-math.

#pragma once

#include "types.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

constexpr int64_t CHUNK = 512; // channels at a time, so that what is known of them stays in the L1 cache

struct Selection {
  int32_t *channels;   // room for all channels
  float *values;       // (channels, batch)
  int64_t *row_counts; // (batch,)
};

// The channels that any row of the batch keeps. `dropped(row, channel, |x|)` says what a row drops. Returns how
// many are kept.
template <class Input, class Dropped>
int64_t compact(const Input *x, int64_t stride, int64_t channels, int64_t batch, Dropped dropped,
                Selection kept) {
  int64_t count = 0;
  std::fill_n(kept.row_counts, batch, 0);
  for (int64_t begin = 0; begin < channels; begin += CHUNK) {
    const int size = static_cast<int>(std::min(CHUNK, channels - begin));
    float inputs[LARGEST_BATCH][CHUNK];
    uint32_t any[CHUNK] = {};
    for (int64_t row = 0; row < batch; ++row) {
      const Input *const part = x + row * stride + begin;
      int row_count = 0;
      for (int i = 0; i < size; ++i) {
        const float value = to_float(part[i]);
        const bool keep = !dropped(row, begin + i, __builtin_fabsf(value));
        inputs[row][i] = keep ? value : 0.0f;
        any[i] |= keep;
        row_count += keep;
      }
      kept.row_counts[row] += row_count;
    }
    for (int i = 0; i < size; ++i) { // always written, and written over if not kept: no branch to mispredict
      kept.channels[count] = static_cast<int32_t>(begin + i);
      for (int64_t row = 0; row < batch; ++row) kept.values[count * batch + row] = inputs[row][i];
      count += any[i];
    }
  }
  return count;
}

// Bits that sort as numpy does: by value, NaN above everything.
inline uint32_t sort_key(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  const uint32_t ordered = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return score != score ? 0xffffffffu : ordered;
}

inline float score_of(uint32_t key) {
  const uint32_t bits = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// The k-th highest key, 1 ≤ k ≤ count; `keys` is overwritten. A histogram over the upper bits leaves few keys
// to select among: std::nth_element over all of them takes several times as long.
inline uint32_t kth_highest(uint32_t *keys, int64_t count, int64_t k) {
  constexpr int shift = 21;
  uint32_t histogram[1 << (32 - shift)] = {};
  for (int64_t i = 0; i < count; ++i) ++histogram[keys[i] >> shift];
  uint32_t bin = (1 << (32 - shift)) - 1;
  for (; k > histogram[bin]; --bin) k -= histogram[bin];
  int64_t candidates = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = keys[i];
    keys[candidates] = key;
    candidates += key >> shift == bin;
  }
  std::nth_element(keys, keys + (candidates - k), keys + candidates);
  return keys[candidates - k];
}

// The least score that is kept of `keys`, 0 ≤ k; a zero never is. `keys` is overwritten.
inline float smallest_kept(std::vector<uint32_t> &keys, int64_t k) {
  constexpr float positive = std::numeric_limits<float>::min();
  const int64_t channels = keys.size();
  if (k >= channels) return positive;
  if (k == 0) return std::numeric_limits<float>::infinity();
  return score_of(std::max(kth_highest(keys.data(), channels, k), sort_key(positive)));
}

// Each row's top k of |x| · weights.
template <class Input>
int64_t compact_top_k(const Input *x, int64_t stride, int64_t channels, int64_t batch, const float *weights,
                      int64_t k, Selection kept) {
  thread_local std::vector<uint32_t> keys;
  keys.resize(channels);
  float smallest[LARGEST_BATCH];
  for (int64_t row = 0; row < batch; ++row) {
    for (int64_t channel = 0; channel < channels; ++channel)
      keys[channel] = sort_key(__builtin_fabsf(to_float(x[row * stride + channel])) * weights[channel]);
    smallest[row] = smallest_kept(keys, k);
  }
  const auto dropped = [weights, &smallest](int64_t row, int64_t channel, float magnitude) {
    return magnitude * weights[channel] < smallest[row];
  };
  return compact(x, stride, channels, batch, dropped, kept);
}

// One top k for all rows, of the sum or the maximum of their |x|, times weights.
inline int64_t compact_shared_top_k(const float *x, int64_t channels, int64_t batch, const float *weights,
                                    int64_t k, bool maximum, Selection kept) {
  thread_local std::vector<uint32_t> keys;
  thread_local std::vector<float> scores;
  keys.resize(channels);
  scores.resize(channels);
  for (int64_t channel = 0; channel < channels; ++channel) {
    float together = 0.0f;
    for (int64_t row = 0; row < batch; ++row) {
      const float magnitude = __builtin_fabsf(x[row * channels + channel]);
      if (!maximum) together += magnitude;
      else if (!(magnitude <= together)) together = magnitude; // NaN, too
    }
    scores[channel] = together * weights[channel];
    keys[channel] = sort_key(scores[channel]);
  }
  const float smallest = smallest_kept(keys, k);
  const auto dropped = [smallest, found = scores.data()](int64_t, int64_t channel, float) {
    return found[channel] < smallest;
  };
  return compact(x, channels, channels, batch, dropped, kept);
}

#if defined(__AVX512F__)
// One row of float, sixteen channels at a time: what is kept moves together in a register.
inline int64_t compact_row(const float *x, int64_t channels, const float *thresholds, Selection kept) {
  int64_t count = 0, channel = 0;
  __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; channel + 16 <= channels; channel += 16) { // never writes behind the channels that it has read
    const __m512 values = _mm512_loadu_ps(x + channel), least = _mm512_loadu_ps(thresholds + channel);
    const __mmask16 keep = _mm512_cmp_ps_mask(_mm512_abs_ps(values), least, _CMP_NLT_UQ);
    _mm512_storeu_ps(kept.values + count, _mm512_maskz_compress_ps(keep, values));
    _mm512_storeu_si512(kept.channels + count, _mm512_maskz_compress_epi32(keep, places));
    places = _mm512_add_epi32(places, _mm512_set1_epi32(16));
    count += __builtin_popcount(keep);
  }
  for (; channel < channels; ++channel) {
    kept.channels[count] = static_cast<int32_t>(channel);
    kept.values[count] = x[channel];
    count += !(__builtin_fabsf(x[channel]) < thresholds[channel]);
  }
  kept.row_counts[0] = count;
  return count;
}
#endif

// The channels where |x| ≥ thresholds.
template <class Input>
int64_t compact_by_threshold(const Input *x, int64_t stride, int64_t channels, int64_t batch,
                             const float *thresholds, Selection kept) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Input, float>)
    if (batch == 1) return compact_row(x, channels, thresholds, kept);
#endif
  const auto dropped = [thresholds](int64_t, int64_t channel, float magnitude) {
    return magnitude < thresholds[channel];
  };
  return compact(x, stride, channels, batch, dropped, kept);
}

// The channels where |x| ≥ thresholds, of normal numbers; of a row that keeps fewer than `fewest` or more than `most`
// so, these of the highest |x| / thresholds.
inline int64_t compact_within_bounds(const float *x, int64_t channels, int64_t batch, const float *thresholds,
                                     int64_t fewest, int64_t most, Selection kept) {
  const int64_t count = compact_by_threshold(x, channels, channels, batch, thresholds, kept);
  thread_local std::vector<uint32_t> keys;
  float smallest[LARGEST_BATCH];
  bool within = true;
  for (int64_t row = 0; row < batch; ++row) {
    const int64_t reached = kept.row_counts[row];
    smallest[row] = 1.0f;
    if (fewest <= reached && reached <= most) continue;
    within = false;
    keys.resize(channels);
    for (int64_t channel = 0; channel < channels; ++channel)
      keys[channel] = sort_key(__builtin_fabsf(x[row * channels + channel]) / thresholds[channel]);
    smallest[row] = smallest_kept(keys, std::clamp(reached, fewest, most));
  }
  if (within) return count;
  const auto dropped = [thresholds, &smallest](int64_t row, int64_t channel, float magnitude) {
    return magnitude / thresholds[channel] < smallest[row];
  };
  return compact(x, channels, channels, batch, dropped, kept);
}
