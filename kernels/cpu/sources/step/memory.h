// What the threads of a decode step work with: room of their own, and what they share.
#pragma once

#include "products/dots.h"
#include "products/product.h"
#include "step/attention.h"
#include "step/lists.h"
#include "step/team.h"

#include <numeric>

namespace {

constexpr int64_t MOST_PARTS = 3;   // q, k and v
constexpr int64_t PHASES = 23;      // most of a block: seven low-rank paths add two each, a router one, bases three

// One row of a weight in floating point.
void row_of(const Weight &weight, int64_t row, float *out) {
  const uint8_t *const values = weight.values + row * weight.stride;
  for (int64_t i = 0; i < weight.columns; ++i)
    out[i] = weight.stored == FLOAT ? reinterpret_cast<const float *>(values)[i]
                                    : to_float(reinterpret_cast<const bfloat16 *>(values)[i]);
}

// What each thread has for itself.
struct Own {
  List lists[MOST_PARTS];
  std::vector<float> hidden, x, room;
  Groups groups;
  Arranged arranged[MOST_PARTS];
  std::vector<uint64_t> signs;
};

struct Step {
  explicit Step(const Model &given)
      : model(given), team((given.block_count + 1) * PHASES),
        iota(std::max({given.hidden, given.ffn, given.heads * given.head_dim})),
        least(given.ffn, std::numeric_limits<float>::min()), ones(given.ffn, 1.0f) {
    std::iota(iota.begin(), iota.end(), 0);
    int64_t columns = 0, partials = 0, groups = model.heads;
    const auto measure = [&](const Site &site) {
      int64_t floats = 0, ranks = 0;
      for (int64_t p = 0; p < site.count; ++p) {
        floats += partial_floats(site.parts[p].weight, model.batch);
        ranks += site.parts[p].rank * model.batch;
      }
      columns = std::max(columns, site.columns);
      partials = std::max(partials, floats);
      if (ranks > static_cast<int64_t>(low_rank.size())) low_rank.resize(ranks);
    };
    for (int64_t b = 0; b < model.block_count; ++b) {
      const Block &block = model.blocks[b];
      for (const Site *site : {&block.qkv, &block.o, &block.gate_up, &block.down, &block.input_basis,
                               &block.mlp_basis, &block.adapter, &block.proxies})
        measure(*site);
      groups = std::max(groups, block.neuron_router.rows);
    }
    if (model.head_site.count) measure(model.head_site);
    partial.resize(partials);
    done.reset(new std::atomic<int32_t>[columns + MOST_PARTS]());
    for (auto *out : {&wide, &narrow}) out->resize(model.batch * columns);
    for (auto *out : {&turned, &adapted}) out->resize(model.batch * model.hidden);
    for (auto *of_neurons : {&neurons, &gates, &predicted}) of_neurons->resize(model.batch * model.ffn);
    const int64_t splits = (model.capacity + SPLIT - 1) / SPLIT;
    logits.resize(model.batch * groups);
    found.resize(model.batch * model.heads * splits * Attention<float>::floats_of_a_split(model));
  }

  Model model;
  Team team;
  std::vector<int32_t> iota; // every channel
  std::vector<float> least;  // thresholds that zero alone does not reach
  std::vector<float> ones;   // weights of scores that are |x| alone
  std::vector<float> partial, low_rank, wide, narrow, neurons, found;
  std::vector<float> turned, adapted; // see Thread::turn: what no product that follows at once writes to
  std::vector<float> gates, predicted; // of chosen neurons: see Thread::predicted
  std::vector<float> logits;           // of heads or of groups of neurons, by a router
  std::unique_ptr<std::atomic<int32_t>[]> done;
  std::vector<Own> owns;
};

} // namespace
