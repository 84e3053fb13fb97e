// Dot products of dots.h: lm_head, neurons that a gate keeps, factors of low-rank paths.
//
// Where lanes of a vector are added up, there are DOT_LANES of them, in as many registers as that takes, so that
// the width of the vectors does not matter; see product.cpp for what else does not.

#include "products/dots.h"
#include "products/rows.h"
#include "vectors.h"
#include "with_constants.h"

#include <algorithm>

namespace {

constexpr int DOT_BLOCK = 2 * DOT_LANES; // columns of one step

// Part `part` of DOT_BLOCK weights, which DOT_LANES alone arrange: their first vector, then their second.
inline Pair load_part(const float *block, int part) { return load(block + part * LANES, DOT_LANES); }
inline Pair load_part(const bfloat16 *block, int part) { return load(block + part * BLOCK); }

// values[i][b] = row i · x[b] for the first COUNT rows; the others are asked for meanwhile. x is `arranged`.
template <int COUNT, int BATCH, class Value>
inline void dot_rows(const Value *const (&rows)[2 * COUNT], int64_t columns, const Arranged &x,
                     float (&values)[COUNT][BATCH]) {
  Sixteen sums[COUNT][BATCH] = {};
  const uint8_t *later[COUNT];
  for (int i = 0; i < COUNT; ++i) later[i] = reinterpret_cast<const uint8_t *>(rows[COUNT + i]);
  const auto add_block = [&](auto &&block_of, int64_t column) {
#pragma GCC unroll 16
    for (int part = 0; part < DOT_PARTS; ++part) {
      Pair loaded[COUNT];
#pragma GCC unroll 16
      for (int i = 0; i < COUNT; ++i) loaded[i] = load_part(block_of(i), part);
#pragma GCC unroll 16
      for (int b = 0; b < BATCH; ++b) {
        const Pair input = load_part(x.values.data() + b * x.padded + column, part);
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; ++i) {
          Floats &sum = sums[i][b].parts[part];
          sum = multiply_add(loaded[i].second, input.second, multiply_add(loaded[i].first, input.first, sum));
        }
      }
    }
  };
  const int64_t whole = columns / DOT_BLOCK * DOT_BLOCK;
  for (int64_t column = 0; column < whole; column += DOT_BLOCK) {
    ask_ahead<COUNT>(later, column * sizeof(Value), DOT_BLOCK * sizeof(Value));
    add_block([&rows, column](int i) { return rows[i] + column; }, column);
  }
  if (const int64_t rest = columns - whole) {
    Value padding[COUNT][DOT_BLOCK] = {};
    for (int i = 0; i < COUNT; ++i) std::memcpy(padding[i], rows[i] + whole, rest * sizeof(Value));
    add_block([&padding](int i) { return padding[i]; }, whole);
  }
  for (int i = 0; i < COUNT; ++i)
    for (int b = 0; b < BATCH; ++b) {
      values[i][b] = sum_of(sums[i][b]);
    }
}

template <int COUNT, int BATCH, class Value> void some_rows(const Dots &dots, int64_t index, const Arranged &x) {
  const Value *rows[2 * COUNT]; // and those that are read after them
  float values[COUNT][BATCH];
  for (int i = 0; i < 2 * COUNT; ++i) {
    const int64_t place = std::min(index + i, dots.count - 1);
    const int64_t row = dots.channels ? dots.channels[place] : dots.first + place;
    rows[i] = reinterpret_cast<const Value *>(dots.weight.values + row * dots.weight.stride);
  }
  dot_rows<COUNT, BATCH>(rows, dots.weight.columns, x, values);
  for (int i = 0; i < COUNT; ++i)
    for (int b = 0; b < BATCH; ++b) {
      float &place = dots.out[(index + i) * dots.row_step + b * dots.batch_step];
      place = dots.add ? place + values[i][b] : values[i][b];
    }
}

template <int BATCH, class Value> void all_rows(const Dots &dots, const Arranged &x) {
  // Rows × batch × parts sums must fit the registers; for one row of x, 8 rows that stream are worth more.
  constexpr int rows = BATCH == 1 ? 8 : std::max(1, (BATCH <= 4 ? 4 : 2) / DOT_PARTS);
  int64_t index = 0;
  for (; index + rows <= dots.count; index += rows) some_rows<rows, BATCH, Value>(dots, index, x);
  for (; index < dots.count; ++index) some_rows<1, BATCH, Value>(dots, index, x);
}

// Which of DOT_BLOCK columns stands in place `place`, the first vectors before the second.
constexpr int column_of(int64_t stored, int place) {
  if (stored == FLOAT) return place;
  return place < DOT_LANES ? 2 * place : 2 * (place - DOT_LANES) + 1;
}

} // namespace

template <class Input>
void Arranged::fill(int64_t stored, const Input *x, int64_t stride, int64_t rows, int64_t columns) {
  batch = rows;
  padded = (columns + DOT_BLOCK - 1) / DOT_BLOCK * DOT_BLOCK;
  values.assign(padded * rows, 0.0f);
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t place = 0; place < padded; ++place) {
      const int64_t column = place / DOT_BLOCK * DOT_BLOCK + column_of(stored, place % DOT_BLOCK);
      if (column < columns) values[b * padded + place] = to_float(x[b * stride + column]);
    }
}
template void Arranged::fill(int64_t, const float *, int64_t, int64_t, int64_t);
template void Arranged::fill(int64_t, const bfloat16 *, int64_t, int64_t, int64_t);

void run_dots(const Dots &dots, const Arranged &x) {
  with_constant<LARGEST_BATCH + 1>(x.batch, [&](auto batch) {
    if constexpr (batch() > 0)
      (dots.weight.stored == FLOAT ? all_rows<batch(), float> : all_rows<batch(), bfloat16>)(dots, x);
  });
}
