// Norms, rotation and attention of one decoded token. All sums are of sixteen lanes, in one order everywhere.
#pragma once

#include "step/groups.h"
#include "step/step.h"
#include "vectors.h"
#include "with_constants.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

// out = x / √(mean of x² + epsilon) · gains, of `count` values; may be in place.
inline void rms_norm(const float *x, int64_t count, const float *gains, double epsilon, float *out) {
  Sixteen squares = {};
  for (int64_t i = 0; i < count; i += DOT_LANES) {
    const Sixteen values = load_some(x + i, count - i);
    squares = multiply_add(values, values, squares);
  }
  const float mean = sum_of(squares) / static_cast<float>(count);
  const float scale = 1.0f / std::sqrt(mean + static_cast<float>(epsilon));
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] * scale * gains[i];
}

inline void put(float value, float &place) { place = value; }
inline void put(float value, bfloat16 &place) { place = to_bfloat16(value); }

// The slots of one split, of one key-value head and the query heads that share it.
constexpr int64_t SPLIT = 64;
constexpr int64_t SLOTS_AT_ONCE = 4; // whose scores are one vector
constexpr int64_t HEADS_AT_ONCE = 4; // whose sums of values fit the registers

// What a split found for one query head; its weighted sum of values stands behind.
struct SplitSums {
  float largest, total; // score; sum of e^(score - largest)
};

template <class Cached> class Attention {
public:
  Attention(const Model &model, const Block &block, int64_t slot, const Groups &groups)
      : model(model), block(block), groups(groups), slot(slot), heads_each(model.heads / model.kv_heads),
        floats((model.head_dim + DOT_LANES - 1) / DOT_LANES * DOT_LANES) {}

  // Splits that any row sees.
  int64_t first_split() const {
    return begin_of(*std::min_element(model.first, model.first + model.batch)) / SPLIT;
  }
  int64_t splits() const { return slot / SPLIT + 1 - first_split(); }
  int64_t units() const { return model.batch * (groups.kept * splits() + model.kv_heads - groups.kept); }
  static int64_t floats_of_a_split(const Model &model) { return 2 + model.head_dim; }

  // Unit: row of the batch, key-value head that it looks at, split; behind them, row and one of the other heads.
  // qkv: (batch, columns); found: (batch, heads, splits, …).
  void run(int64_t unit, const float *qkv, std::vector<float> &room, float *found) const {
    room.assign(heads_each * (floats + SPLIT) + SLOTS_AT_ONCE * floats, 0.0f);
    const int64_t looking = model.batch * groups.kept * splits(), others = model.kv_heads - groups.kept;
    if (unit >= looking) {
      const int64_t row = (unit - looking) / others, place = groups.kept + (unit - looking) % others;
      append(row, groups.at(row, place), qkv + row * block.qkv.columns, room.data());
      return;
    }
    const int64_t row = unit / splits() / groups.kept, head = groups.at(row, unit / splits() % groups.kept);
    look(row, head, unit % splits(), qkv + row * block.qkv.columns, room.data(), found);
  }

  // The context of every row, (batch, heads · head_dim), from what the splits found; zero at heads of other groups.
  void combine(const float *found, float *context) const {
    const int64_t each = splits() * floats_of_a_split(model);
    for (int64_t row = 0; row < model.batch; ++row)
      for (int64_t place = 0; place < model.kv_heads; ++place)
        for (int64_t h = 0; h < heads_each; ++h) {
          const int64_t head = (row * model.kv_heads + groups.at(row, place)) * heads_each + h;
          float *const of_head = context + head * model.head_dim;
          std::fill_n(of_head, model.head_dim, 0.0f);
          if (place < groups.kept) combine_head(found + head * each, of_head);
        }
  }

private:
  template <class Value> Value *of_head(void *cache, int64_t row, int64_t head) const {
    return static_cast<Value *>(cache) + (row * model.kv_heads + head) * model.capacity * model.head_dim;
  }

  // The new token's key and value, into the cache.
  void append(int64_t row, int64_t head, const float *qkv, float *rotated) const {
    const int64_t size = model.head_dim;
    rotate(qkv + (model.heads + head) * size, block.key_norm, slot - model.first[row], rotated);
    const float *const value = qkv + (model.heads + model.kv_heads + head) * size;
    Cached *const keys = of_head<Cached>(block.keys, row, head) + slot * size;
    Cached *const values = of_head<Cached>(block.values, row, head) + slot * size;
    for (int64_t i = 0; i < size; ++i) {
      put(rotated[i], keys[i]);
      put(value[i], values[i]);
    }
  }

  // What the query heads of one head find in one split. room: zeros.
  void look(int64_t row, int64_t head, int64_t split, const float *qkv, float *room, float *found) const {
    const int64_t from = (first_split() + split) * SPLIT, to = std::min(from + SPLIT, slot + 1);
    const int64_t begin = std::max(from, begin_of(model.first[row]));
    const int64_t place = slot - model.first[row], size = model.head_dim;
    const Cached *const keys = of_head<Cached>(block.keys, row, head);
    const Cached *const values = of_head<Cached>(block.values, row, head);
    float *const queries = room, *const scores = queries + heads_each * floats;
    float *const rows = scores + heads_each * SPLIT;
    if (to == slot + 1) append(row, head, qkv, rows); // in the split of the new token
    for (int64_t h = 0; h < heads_each; ++h) {
      rotate(qkv + (head * heads_each + h) * size, block.query_norm, place, queries + h * floats);
      for (int64_t i = 0; i < size; ++i) { // as exact as a key
        Cached rounded;
        put(queries[h * floats + i], rounded);
        queries[h * floats + i] = to_float(rounded);
      }
    }
    const int64_t count = std::max<int64_t>(0, to - begin);
    score(keys + begin * size, count, queries, rows, scores);
    const int64_t stride = splits() * floats_of_a_split(model), first_head = row * model.heads + head * heads_each;
    float *const sums = found + first_head * stride + split * floats_of_a_split(model);
    for (int64_t h = 0; h < heads_each; ++h) {
      const SplitSums of_head = weigh(scores + h * SPLIT, count);
      std::memcpy(sums + h * stride, &of_head, sizeof of_head);
    }
    for (int64_t h = 0; h < heads_each; h += HEADS_AT_ONCE)
      with_constant<HEADS_AT_ONCE + 1>(std::min(HEADS_AT_ONCE, heads_each - h), [&](auto heads) {
        add_values<heads()>(values + begin * size, scores + h * SPLIT, count, sums + h * stride + 2, stride);
      });
  }

  // Adds what the splits found for one query head to zeros.
  void combine_head(const float *found, float *context) const {
    const int64_t size = model.head_dim, each = floats_of_a_split(model), parts = splits();
    float largest = found[0];
    for (int64_t part = 1; part < parts; ++part) largest = std::max(largest, found[part * each]);
    float total = 0.0f;
    for (int64_t part = 0; part < parts; ++part) {
      const float *const sums = found + part * each;
      const float weight = exponential((sums[0] - largest) - Floats{})[0];
      total += sums[1] * weight;
      for (int64_t i = 0; i < size; ++i) context[i] += sums[2 + i] * weight;
    }
    for (int64_t i = 0; i < size; ++i) {
      Cached rounded;
      put(context[i] / total, rounded);
      context[i] = to_float(rounded);
    }
  }

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

  // scores[head][slot] = key · query / √head_dim; those of SLOTS_AT_ONCE slots behind the last are overwritten.
  void score(const Cached *keys, int64_t count, const float *queries, float *rows, float *scores) const {
    const float scale = 1.0f / std::sqrt(static_cast<float>(model.head_dim));
    for (int64_t t = 0; t < count; t += SLOTS_AT_ONCE) {
      const float *padded[SLOTS_AT_ONCE];
      for (int64_t i = 0; i < SLOTS_AT_ONCE; ++i)
        padded[i] = in_float(keys + std::min(t + i, count - 1) * model.head_dim, rows + i * floats);
      for (int64_t h = 0; h < heads_each; ++h) {
        Sixteen sums[SLOTS_AT_ONCE] = {};
        for (int64_t i = 0; i < floats; i += DOT_LANES) {
          const Sixteen query = load_sixteen(queries + h * floats + i);
#pragma GCC unroll 4
          for (int slot = 0; slot < SLOTS_AT_ONCE; ++slot)
            sums[slot] = multiply_add(load_sixteen(padded[slot] + i), query, sums[slot]);
        }
        store_vector(sums_of(sums) * scale, scores + h * SPLIT + t);
      }
    }
  }

  // A row of the cache in float, with zeros up to whole sixteens: where it lies, or else in `room`.
  const float *in_float(const Cached *row, float *room) const {
    if constexpr (std::is_same_v<Cached, float>)
      if (floats == model.head_dim) return row;
    for (int64_t i = 0; i < floats; i += DOT_LANES) store_some(load_some(row + i, model.head_dim - i), room + i);
    return room;
  }

  // Scores become e^(score - largest).
  static SplitSums weigh(float *scores, int64_t count) {
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t t = 0; t < count; ++t) largest = scores[t] > largest ? scores[t] : largest;
    Sixteen total = {};
    for (int64_t t = 0; t < count; t += DOT_LANES) {
      const Sixteen differences = load_some(scores + t, count - t);
      store_some(sixteen_of([&](int part) { return exponential(differences.parts[part] - largest); }), scores + t);
      std::fill(scores + std::min(count, t + DOT_LANES), scores + t + DOT_LANES, 0.0f);
      const Sixteen weights = load_sixteen(scores + t);
      total = sixteen_of([&](int part) { return total.parts[part] + weights.parts[part]; });
    }
    return {largest, sum_of(total)};
  }

  // Sums of the values of HEADS heads from `first` on, by their weights. Some dimensions at a time, so that their
  // sums stay in registers while all slots pass.
  template <int HEADS>
  void add_values(const Cached *values, const float *weights, int64_t count, float *outs, int64_t stride) const {
    for (int64_t i = 0; i < model.head_dim; i += DOT_LANES) {
      const int64_t lanes = std::min<int64_t>(DOT_LANES, model.head_dim - i);
      Sixteen sums[HEADS] = {};
      for (int64_t t = 0; t < count; ++t) {
        const Sixteen value = load_some(values + t * model.head_dim + i, lanes);
#pragma GCC unroll 4
        for (int h = 0; h < HEADS; ++h) {
          const float weight = weights[h * SPLIT + t];
          sums[h] = multiply_add(value, sixteen_of([weight](int) { return weight - Floats{}; }), sums[h]);
        }
      }
      for (int h = 0; h < HEADS; ++h) store_some(sums[h], outs + h * stride + i, lanes);
    }
  }

  const Model &model;
  const Block &block;
  const Groups &groups;
  int64_t slot, heads_each, floats;
};
