// Norms, rotation and attention of one decoded token. All sums are of sixteen lanes, in one order everywhere.
#pragma once

#include "step.h"
#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

// out = x / √(mean of x² + epsilon) · gains, of `count` values; may be in place.
inline void rms_norm(const float *x, int64_t count, const float *gains, double epsilon, float *out) {
  Sixteen squares = {};
  for (int64_t i = 0; i < count; i += DOT_LANES) {
    const Sixteen values = load_some(x + i, count - i);
    squares += values * values;
  }
  const float mean = sum_of(squares) / static_cast<float>(count);
  const float scale = 1.0f / std::sqrt(mean + static_cast<float>(epsilon));
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] * scale * gains[i];
}

inline void put(float value, float &place) { place = value; }
inline void put(float value, bfloat16 &place) { place = to_bfloat16(value); }

// The slots of one split, of one key-value head and the query heads that share it.
constexpr int64_t SPLIT = 64;

// What a split found for one query head; its weighted sum of values stands behind.
struct SplitSums {
  float largest, total; // score; sum of e^(score - largest)
};

template <class Cached> class Attention {
public:
  Attention(const Model &model, const Block &block, int64_t slot)
      : model(model), block(block), slot(slot), heads_each(model.heads / model.kv_heads),
        floats((model.head_dim + DOT_LANES - 1) / DOT_LANES * DOT_LANES) {}

  // Splits that any row sees.
  int64_t first_split() const {
    return begin_of(*std::min_element(model.first, model.first + model.batch)) / SPLIT;
  }
  int64_t splits() const { return slot / SPLIT + 1 - first_split(); }
  int64_t units() const { return model.batch * model.kv_heads * splits(); }
  static int64_t floats_of_a_split(const Model &model) { return 2 + model.head_dim; }

  // Unit: row of the batch, key-value head, split. qkv: (batch, columns); found: (batch, heads, splits, …).
  void run(int64_t unit, const float *qkv, std::vector<float> &room, float *found) const {
    const int64_t split = unit % splits(), row = unit / splits() / model.kv_heads;
    const int64_t head = unit / splits() % model.kv_heads, size = model.head_dim;
    const int64_t from = (first_split() + split) * SPLIT, to = std::min(from + SPLIT, slot + 1);
    const int64_t begin = std::max(from, begin_of(model.first[row]));
    qkv += row * block.qkv.columns;
    const int64_t place = slot - model.first[row];
    const int64_t head_slots = (row * model.kv_heads + head) * model.capacity;
    Cached *const keys = static_cast<Cached *>(block.keys) + head_slots * size;
    Cached *const values = static_cast<Cached *>(block.values) + head_slots * size;
    room.assign(heads_each * (floats + SPLIT) + 2 * floats, 0.0f);
    float *const queries = room.data(), *const scores = queries + heads_each * floats;
    float *const rotated = scores + heads_each * SPLIT;
    if (to == slot + 1) { // the split of the new token takes its key and value into the cache
      rotate(qkv + (model.heads + head) * size, block.key_norm, place, rotated);
      const float *const value = qkv + (model.heads + model.kv_heads + head) * size;
      for (int64_t i = 0; i < size; ++i) {
        put(rotated[i], keys[slot * size + i]);
        put(value[i], values[slot * size + i]);
      }
    }
    for (int64_t h = 0; h < heads_each; ++h) {
      rotate(qkv + (head * heads_each + h) * size, block.query_norm, place, queries + h * floats);
      for (int64_t i = 0; i < size; ++i) { // as exact as a key
        Cached rounded;
        put(queries[h * floats + i], rounded);
        queries[h * floats + i] = to_float(rounded);
      }
    }
    const int64_t count = std::max<int64_t>(0, to - begin);
    score(keys + begin * size, count, queries, scores);
    for (int64_t h = 0; h < heads_each; ++h) {
      const int64_t query_head = row * model.heads + head * heads_each + h;
      float *const place_found = found + (query_head * splits() + split) * floats_of_a_split(model);
      const SplitSums sums = weigh(scores + h * SPLIT, count);
      std::memcpy(place_found, &sums, sizeof sums);
      add_values(values + begin * size, scores + h * SPLIT, count, place_found + 2);
    }
  }

  // The context of every row, (batch, heads · head_dim), from what the splits found.
  void combine(const float *found, float *context) const {
    const int64_t size = model.head_dim, each = floats_of_a_split(model), parts = splits();
    for (int64_t head = 0; head < model.batch * model.heads; ++head, context += size, found += parts * each) {
      float largest = found[0];
      for (int64_t part = 1; part < parts; ++part) largest = std::max(largest, found[part * each]);
      float total = 0.0f;
      std::fill_n(context, size, 0.0f);
      for (int64_t part = 0; part < parts; ++part) {
        const float *const sums = found + part * each;
        const float weight = exponential(Sixteen{} + (sums[0] - largest))[0];
        total += sums[1] * weight;
        for (int64_t i = 0; i < size; ++i) context[i] += sums[2 + i] * weight;
      }
      for (int64_t i = 0; i < size; ++i) {
        Cached rounded;
        put(context[i] / total, rounded);
        context[i] = to_float(rounded);
      }
    }
  }

private:
  int64_t begin_of(int64_t first) const {
    return block.window ? std::max(first, slot + 1 - block.window) : first;
  }

  // A head, normalised where the family does so, turned by the angles of its place.
  void rotate(const float *head, const float *gains, int64_t place, float *out) const {
    const int64_t size = model.head_dim, half = size / 2;
    float normed[1024]; // native_step.py refuses larger heads
    if (gains) {
      rms_norm(head, size, gains, model.norm_epsilon, normed);
      head = normed;
    }
    const float *const cosines = model.cosines + place * size, *const sines = model.sines + place * size;
    for (int64_t i = 0; i < half; ++i) out[i] = head[i] * cosines[i] + -head[i + half] * sines[i];
    for (int64_t i = half; i < size; ++i) out[i] = head[i] * cosines[i] + head[i - half] * sines[i];
  }

  // scores[head][slot] = key · query / √head_dim
  void score(const Cached *keys, int64_t count, const float *queries, float *scores) const {
    const float scale = 1.0f / std::sqrt(static_cast<float>(model.head_dim));
    for (int64_t t = 0; t < count; ++t, keys += model.head_dim)
      for (int64_t h = 0; h < heads_each; ++h) {
        Sixteen sum = {};
        for (int64_t i = 0; i < model.head_dim; i += DOT_LANES)
          sum += load_some(keys + i, model.head_dim - i) * load_sixteen(queries + h * floats + i);
        scores[h * SPLIT + t] = sum_of(sum) * scale;
      }
  }

  // Scores become e^(score - largest).
  static SplitSums weigh(float *scores, int64_t count) {
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t t = 0; t < count; ++t) largest = scores[t] > largest ? scores[t] : largest;
    Sixteen total = {};
    for (int64_t t = 0; t < count; t += DOT_LANES) {
      Sixteen weights = exponential(load_sixteen(scores + t) - largest);
      std::memcpy(scores + t, &weights, sizeof weights);
      std::fill(scores + std::min(count, t + DOT_LANES), scores + t + DOT_LANES, 0.0f);
      total += load_sixteen(scores + t);
    }
    return {largest, sum_of(total)};
  }

  void add_values(const Cached *values, const float *weights, int64_t count, float *out) const {
    for (int64_t i = 0; i < model.head_dim; i += DOT_LANES) {
      const int64_t lanes = std::min<int64_t>(DOT_LANES, model.head_dim - i);
      Sixteen sum = {};
      for (int64_t t = 0; t < count; ++t)
        sum += load_some(values + t * model.head_dim + i, lanes) * weights[t];
      std::memcpy(out + i, &sum, lanes * sizeof(float));
    }
  }

  const Model &model;
  const Block &block;
  int64_t slot, heads_each, floats;
};
