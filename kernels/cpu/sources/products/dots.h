// Dot products of x with some rows of a matrix: dots.cpp.
#pragma once

#include "types.h"

#include <vector>

// Rows of x in float, padded with zeros to whole blocks, each in the order in which rows of `stored` are loaded.
struct Arranged {
  std::vector<float> values; // keeps its memory from call to call
  int64_t padded = 0, batch = 0;

  template <class Input>
  void fill(int64_t stored, const Input *x, int64_t stride, int64_t rows, int64_t columns);
};

// out[i · row_step + b · batch_step] = row channels[i] · x[b] for `count` rows; without channels, row first + i.
struct Dots {
  Weight weight; // FLOAT or BFLOAT16
  const int32_t *channels;
  int64_t first, count;
  float *out;
  int64_t row_step, batch_step;
  bool add; // to what is there
};
void run_dots(const Dots &dots, const Arranged &x);
