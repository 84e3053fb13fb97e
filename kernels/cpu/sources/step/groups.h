// Which key-value groups attention looks at: Polar Sparsity (arXiv 2505.14884), kernels/plan/heads.py.
#pragma once

#include "selection.h"

#include <algorithm>
#include <numeric>
#include <vector>

// Groups of each row, those first that it looks at.
struct Groups {
  std::vector<int32_t> order; // (batch, count)
  std::vector<uint32_t> keys; // of one row's groups, by their scores
  int64_t count = 0, kept = 0;

  void look_at_all(int64_t batch, int64_t groups) {
    order.resize(batch * groups);
    count = kept = groups;
    for (int64_t row = 0; row < batch; ++row) std::iota(of_row(row), of_row(row + 1), 0);
  }

  // Those whose best head has the highest logits, of equal ones the first. logits: (batch, heads); bias: (heads,).
  void look_at_best(int64_t batch, const float *logits, const float *bias, int64_t heads, int64_t groups,
                    int64_t chosen) {
    look_at_all(batch, groups);
    kept = chosen;
    for (int64_t row = 0; row < batch; ++row, logits += heads) {
      keys.assign(groups, 0); // of no score
      for (int64_t head = 0; head < heads; ++head) {
        uint32_t &key = keys[head / (heads / groups)];
        key = std::max(key, sort_key(logits[head] + bias[head]));
      }
      std::stable_sort(of_row(row), of_row(row + 1), [this](int32_t a, int32_t b) { return keys[a] > keys[b]; });
    }
  }

  int64_t at(int64_t row, int64_t place) const { return order[row * count + place]; }

private:
  std::vector<int32_t>::iterator of_row(int64_t row) { return order.begin() + row * count; }
};
