// Lists of kept channels or neurons: by a rule, and without zeros.
#pragma once

#include "selection.h"
#include "step/step.h"

// Room of one part's selection.
struct List {
  std::vector<int32_t> channels;
  std::vector<float> values, scaled;
  std::vector<int64_t> row_counts;
};

// The channels of x (batch, channels) that a rule keeps, which is not ALL. Returns how many there are.
inline int64_t choose(const Rule &rule, const float *x, int64_t channels, int64_t batch, const Selection &found) {
  if (rule.keeping == THRESHOLD) return compact_by_threshold(x, channels, channels, batch, rule.numbers, found);
  if (rule.keeping == BOUNDED)
    return compact_within_bounds(x, channels, batch, rule.numbers, rule.fewest, rule.top_k, found);
  if (rule.keeping == TOP_K || batch == 1)
    return compact_top_k(x, channels, channels, batch, rule.numbers, rule.top_k, found);
  return compact_shared_top_k(x, channels, batch, rule.numbers, rule.top_k, rule.keeping == SHARED_MAXIMUM, found);
}

// A list of neurons that are predicted becomes one of neurons that some row has above zero, with their values
// (count, batch). Returns how many there are.
inline int64_t drop_zeros(int64_t count, int64_t batch, const float *values, List &list) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    bool any = false;
    list.channels[found] = list.channels[i];
    for (int64_t b = 0; b < batch; ++b) {
      const float value = list.values[i * batch + b] == 0.0f ? 0.0f : values[i * batch + b];
      list.values[found * batch + b] = value;
      any |= value != 0.0f;
    }
    found += any;
  }
  return found;
}
