// Products of activations in floating point with weights of 4 bits, a word of eight columns at a time: product.cpp.
//
// A row multiplies each group of columns by a factor of its own, its activation times the group's scale. Where
// groups fill blocks or blocks groups, a lane's eight columns lie in one group: its factor is one lane of a vector.
#pragma once

#include "products/rows.h"
#include "vectors.h"

#include <algorithm>

constexpr int WORD = 8;                 // columns of a word
constexpr int WORD_BLOCK = WORD * LANES; // columns of one step
constexpr int MIDDLE = 8;               // zero point of groups without one

// sums of one block += the products of COUNT rows. weight(i, place): values number `place` of row i's words;
// factor(i, b, place): what they are multiplied by. A few places at a time, so that sums stay in registers.
template <int COUNT, int BATCH, class Weights, class Factor>
inline void add_word_block(Weights &&weight, Factor &&factor, float *sums) {
  constexpr int places = std::max(1, WORD / BATCH);
  for (int from = 0; from < WORD; from += places) {
    Floats totals[places][BATCH];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 16
      for (int k = 0; k < places; ++k) {
        const Floats values = weight(i, from + k);
#pragma GCC unroll 16
        for (int b = 0; b < BATCH; ++b) {
          Floats &total = totals[k][b];
          total = i ? multiply_add(values, factor(i, b, from + k), total) : values * factor(i, b, from + k);
        }
      }
#pragma GCC unroll 16
    for (int k = 0; k < places; ++k)
#pragma GCC unroll 16
      for (int b = 0; b < BATCH; ++b) {
        float *const place = sums + b * WORD_BLOCK + (from + k) * LANES;
        const Floats sum = load_one(place) + totals[k][b];
        store_vector(sum, place);
      }
  }
}

template <bool SYMMETRIC, int COUNT, int BATCH>
void add_even_groups(const uint8_t *const *rows, const int32_t *channels, const float (&values)[COUNT][BATCH], const Weight &weight,
                     int64_t begin, int64_t columns, float *sums) {
  constexpr int64_t most = TILE_FLOATS / BATCH / WORD + 2 * LANES; // room to load a vector behind the last
  const int64_t first = begin / weight.group, groups = (begin + columns - 1) / weight.group + 1 - first;
  float factors[COUNT][BATCH][most], zeros[COUNT][SYMMETRIC ? 1 : most];
  for (int i = 0; i < COUNT; ++i) {
    const int64_t place = channels[i] * weight.scale_stride + first;
    for (int64_t g = 0; g < groups; g += LANES) {
      const Floats scales = load_halves(weight.scales + place + g, groups - g);
      for (int b = 0; b < BATCH; ++b) store_vector(scales * values[i][b], factors[i][b] + g);
    }
    for (int64_t g = 0; !SYMMETRIC && g < groups; ++g) zeros[i][g] = weight.zeros[place + g];
  }
  Integers lane_group; // of a block's lanes, from the group of its first
  for (int lane = 0; lane < LANES; ++lane) lane_group[lane] = static_cast<int32_t>(lane * WORD / weight.group);
  for (int64_t column = 0; column < columns; column += WORD_BLOCK, sums += BATCH * WORD_BLOCK) {
    ask_ahead<COUNT>(rows + COUNT, column / 2, WORD_BLOCK / 2);
    const int64_t g = (begin + column) / weight.group - first;
    Words words[COUNT];
    Floats own_zeros[COUNT], own_factors[COUNT][BATCH];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i) {
      words[i] = load_words(rows[i] + column / 2, (columns - column + 1) / 2);
      own_zeros[i] = SYMMETRIC ? Floats{} : __builtin_shuffle(load_one(zeros[i] + g), lane_group);
      for (int b = 0; b < BATCH; ++b)
        own_factors[i][b] = __builtin_shuffle(load_one(factors[i][b] + g), lane_group);
    }
    add_word_block<COUNT, BATCH>(
        [&](int i, int place) { return nibbles<SYMMETRIC>(words[i], place, own_zeros[i]); },
        [&](int i, int b, int) { return own_factors[i][b]; }, sums);
  }
}

// The same where groups end inside of words: every value by itself.
template <int COUNT, int BATCH>
void add_odd_groups(const uint8_t *const *rows, const int32_t *channels, const float (&values)[COUNT][BATCH], const Weight &weight,
                    int64_t begin, int64_t columns, float *sums) {
  for (int64_t column = 0; column < columns; column += WORD_BLOCK, sums += BATCH * WORD_BLOCK) {
    float weights[COUNT][WORD][LANES] = {}, scales[COUNT][WORD][LANES] = {};
    for (int i = 0; i < COUNT; ++i)
      for (int64_t c = 0; c < std::min<int64_t>(WORD_BLOCK, columns - column); ++c) {
        const int64_t group = channels[i] * weight.scale_stride + (begin + column + c) / weight.group;
        const int packed = rows[i][(column + c) / 2];
        const int zero = weight.zeros ? weight.zeros[group] : MIDDLE;
        weights[i][c % WORD][c / WORD] = static_cast<float>((c % 2 ? packed >> 4 : packed & 15) - zero);
        scales[i][c % WORD][c / WORD] = half_to_float(weight.scales[group]);
      }
    add_word_block<COUNT, BATCH>([&](int i, int place) { return load_one(weights[i][place]); },
                                 [&](int i, int b, int place) { return load_one(scales[i][place]) * values[i][b]; },
                                 sums);
  }
}

// sums[block][row of the batch][place of a word][lane] += the products of COUNT rows with `columns` columns.
template <bool SYMMETRIC, int COUNT, int BATCH>
void add_words(const uint8_t *const *rows, const int32_t *channels, const float (&values)[COUNT][BATCH], const Weight &weight, int64_t begin,
               int64_t columns, float *sums) {
  const bool even = weight.group % WORD_BLOCK == 0 || (WORD_BLOCK % weight.group == 0 && weight.group % WORD == 0);
  (even ? add_even_groups<SYMMETRIC, COUNT, BATCH> : add_odd_groups<COUNT, BATCH>)(rows, channels, values, weight,
                                                                                  begin, columns, sums);
}
