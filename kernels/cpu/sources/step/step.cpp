// One decoded token of every row in one parallel region; native_step.py has checked the model.
//
// What is small (norms, selections, rotation, silu) every thread computes for itself, so that threads meet only
// behind products and attention: five times a block. They share what has bytes: units of products, heads and
// slots of the cache, rows of lm_head.

#include "products/rows.h"
#include "step/memory.h"
#include "signs.h"

#include <omp.h>

namespace {

// Rows that are one unit of dot products, whole steps of ROWS: large enough that what is asked for ahead, which ends
// where a unit does, is most of it, and so many units that threads end together.
constexpr int64_t DOT_ROWS = 64, UNITS_OF_A_THREAD = 8;
constexpr int64_t SIGN_ROWS = 256; // whose signs are one unit

class Thread {
public:
  Thread(Step &step, Own &own, int threads, int64_t slot)
      : step(step), model(step.model), own(own), threads(threads), slot(slot) {}

  void run(const int64_t *tokens, float *logits) {
    own.hidden.resize(model.batch * model.hidden);
    own.x.resize(model.batch * step.iota.size());
    for (int64_t b = 0; b < model.batch; ++b) row_of(model.embedding, tokens[b], own.hidden.data() + b * model.hidden);
    for (int64_t b = 0; b < model.block_count; ++b)
      model.cache_is_bfloat16 ? block<bfloat16>(model.blocks[b]) : block<float>(model.blocks[b]);
    norm(model.final_norm);
    if (model.head_site.count) return products(model.head_site, logits);
    own.arranged[0].fill(model.head.stored, own.x.data(), model.hidden, model.batch, model.hidden);
    rows(model.head, nullptr, model.vocabulary, own.arranged[0], logits, 1, model.vocabulary, false);
  }

private:
  // x = the normalised residual stream.
  void norm(const float *gains) {
    for (int64_t b = 0; b < model.batch; ++b)
      rms_norm(own.hidden.data() + b * model.hidden, model.hidden, gains, model.norm_epsilon,
               own.x.data() + b * model.hidden);
  }

  // x times a basis, for each thread to have, by way of `out`; as it is where there is none.
  void turn(const Site &basis, std::vector<float> &x, std::vector<float> &out) {
    if (!basis.count) return;
    products(basis, x, out.data());
    std::copy_n(out.begin(), model.batch * basis.columns, x.begin());
  }

  void add_to_stream(const std::vector<float> &out) {
    for (int64_t i = 0; i < model.batch * model.hidden; ++i) own.hidden[i] += out[i];
  }

  template <class Cached> void block(const Block &block) {
    norm(block.input_norm);
    turn(block.input_basis, own.x, step.turned);
    choose_groups(block);
    products(block.qkv, step.wide.data());
    const Attention<Cached> attention(model, block, slot, own.groups);
    share(attention.units(), [&](int64_t unit) {
      attention.run(unit, step.wide.data(), own.room, step.found.data());
    });
    attention.combine(step.found.data(), own.x.data());
    products(block.o, step.narrow.data());
    add_to_stream(step.narrow);
    norm(block.mlp_norm);
    turn(block.mlp_basis, own.x, step.turned);
    if (block.signs) {
      predicted(block);
    } else if (block.proxies.count) {
      proxied(block);
    } else if (block.neuron_router.rows) {
      routed(block);
    } else {
      products(block.gate_up, step.wide.data());
      block.gate_thresholds ? gated(block) : products_of_gated_values(block);
    }
    add_to_stream(step.narrow);
    turn(block.adapter, own.hidden, step.adapted);
  }

  void choose_groups(const Block &block) {
    if (!block.router_bias) return own.groups.look_at_all(model.batch, model.kv_heads);
    own.arranged[0].fill(block.router.stored, own.x.data(), model.hidden, model.batch, model.hidden);
    float *const logits = step.logits.data();
    rows(block.router, nullptr, model.heads, own.arranged[0], logits, 1, model.heads, false);
    own.groups.look_at_best(model.batch, logits, block.router_bias, model.heads, model.kv_heads, block.kept_groups);
  }

  void products_of_gated_values(const Block &block) {
    for (int64_t b = 0; b < model.batch; ++b) {
      const float *const gate = step.wide.data() + b * 2 * model.ffn, *const up = gate + model.ffn;
      multiplied(gate, up, own.x.data() + b * model.ffn);
    }
    products(block.down, step.narrow.data());
  }

  // out = the activated gate times up.
  void multiplied(const float *gate, const float *up, float *out) const {
    activate(gate, model.ffn, out);
    for (int64_t i = 0; i < model.ffn; ++i) out[i] *= up[i];
  }

  // Neurons that the gate keeps: their dot products with up, then their rows of down.
  void gated(const Block &block) {
    List &list = own.lists[0];
    own.arranged[0].fill(block.up_rows.stored, own.x.data(), model.hidden, model.batch, model.hidden);
    for (int64_t b = 0; b < model.batch; ++b)
      activate(step.wide.data() + b * model.ffn, model.ffn, own.x.data() + b * model.ffn);
    const Rule rule{THRESHOLD, block.gate_thresholds, 0, 0};
    Kept kept = select(rule, own.x.data(), model.ffn, list);
    rows(block.up_rows, kept.channels, kept.count, own.arranged[0], step.neurons.data(), model.batch, 1, false);
    for (int64_t i = 0; i < kept.count * model.batch; ++i) list.values[i] *= step.neurons[i];
    run(block.down, &kept, step.narrow.data());
  }

  // Neurons with few unlike signs: their dot products with gate; those that are not zero then, with up; and the
  // rows of down of these alone.
  void predicted(const Block &block) {
    List &list = own.lists[0];
    const int64_t words = sign_words(model.hidden);
    own.arranged[0].fill(block.up_rows.stored, own.x.data(), model.hidden, model.batch, model.hidden);
    own.signs.resize(model.batch * words);
    for (int64_t b = 0; b < model.batch; ++b)
      pack_signs(own.x.data() + b * model.hidden, model.hidden, own.signs.data() + b * words);
    share((model.ffn + SIGN_ROWS - 1) / SIGN_ROWS, [&](int64_t unit) {
      const int64_t last = std::min((unit + 1) * SIGN_ROWS, model.ffn);
      for (int64_t neuron = unit * SIGN_ROWS; neuron < last; ++neuron)
        for (int64_t b = 0; b < model.batch; ++b)
          step.predicted[b * model.ffn + neuron] =
              unlike_signs(block.signs + neuron * words, own.signs.data() + b * words, words) <= block.sign_limit;
    });
    const Rule nonzero{THRESHOLD, step.least.data(), 0, 0};
    Kept kept = select(nonzero, step.predicted.data(), model.ffn, list);
    rows(block.gate_rows, kept.channels, kept.count, own.arranged[0], step.gates.data(), model.batch, 1, false);
    own.room.resize(kept.count * model.batch);
    activate(step.gates.data(), kept.count * model.batch, own.room.data());
    kept.count = drop_zeros(kept.count, model.batch, own.room.data(), list);
    rows(block.up_rows, kept.channels, kept.count, own.arranged[0], step.neurons.data(), model.batch, 1, false);
    for (int64_t i = 0; i < kept.count * model.batch; ++i) list.values[i] *= step.neurons[i];
    run(block.down, &kept, step.narrow.data());
  }

  // The neurons of which proxies say that gate times up is largest: their dot products with gate and with up, and
  // their rows of down.
  void proxied(const Block &block) {
    List &list = own.lists[0];
    own.arranged[0].fill(block.up_rows.stored, own.x.data(), model.hidden, model.batch, model.hidden);
    products(block.proxies, step.wide.data());
    const int64_t columns = block.proxies.columns;
    for (int64_t b = 0; b < model.batch; ++b) {
      const float *const gate = step.wide.data() + b * columns;
      multiplied(gate, gate + columns / 2, own.x.data() + b * model.ffn);
    }
    computed(block, select({TOP_K, step.ones.data(), block.chosen, 0}, own.x.data(), model.ffn, list));
  }

  // The neurons of the groups whose logits are above a router's threshold, likewise.
  void routed(const Block &block) {
    own.arranged[0].fill(block.up_rows.stored, own.x.data(), model.hidden, model.batch, model.hidden);
    const int64_t groups = block.neuron_router.rows, each = model.ffn / groups;
    float *const logits = step.logits.data();
    rows(block.neuron_router, nullptr, groups, own.arranged[0], logits, 1, groups, false);
    for (int64_t b = 0; b < model.batch; ++b)
      for (int64_t i = 0; i < model.ffn; ++i)
        own.x[b * model.ffn + i] = logits[b * groups + i / each] > static_cast<float>(block.router_threshold);
    const Rule nonzero{THRESHOLD, step.least.data(), 0, 0};
    computed(block, select(nonzero, own.x.data(), model.ffn, own.lists[0]));
  }

  // Neurons that were chosen before their gate, in the first list, of an x that is arranged.
  void computed(const Block &block, const Kept &kept) {
    List &list = own.lists[0];
    for (auto [weight, out] : {std::pair(&block.gate_rows, &step.gates), std::pair(&block.up_rows, &step.neurons)})
      rows(*weight, kept.channels, kept.count, own.arranged[0], out->data(), model.batch, 1, false);
    own.room.resize(kept.count * model.batch);
    activate(step.gates.data(), kept.count * model.batch, own.room.data());
    for (int64_t i = 0; i < kept.count * model.batch; ++i) // a zero: another row has chosen this neuron
      if (list.values[i] != 0.0f) list.values[i] = own.room[i] * step.neurons[i];
    run(block.down, &kept, step.narrow.data());
  }

  void activate(const float *gate, int64_t count, float *out) const {
    model.relu ? relu(gate, count, out) : silu(gate, count, out);
  }

  void products(const Site &site, float *out) { products(site, own.x, out); }

  void products(const Site &site, const std::vector<float> &x, float *out) {
    Kept kept[MOST_PARTS];
    for (int64_t p = 0; p < site.count; ++p) {
      const bool same = p && site.parts[p].rule.keeping == ALL && site.parts[p - 1].rule.keeping == ALL;
      kept[p] = same ? kept[p - 1] : select(site.parts[p].rule, x.data(), site.channels, own.lists[p]);
    }
    run(site, kept, out);
  }

  Kept select(const Rule &rule, const float *x, int64_t channels, List &list) {
    if (rule.keeping == ALL && model.batch == 1) return {step.iota.data(), x, channels};
    list.channels.resize(channels);
    list.values.resize(channels * model.batch);
    list.row_counts.resize(model.batch);
    if (rule.keeping == ALL) {
      for (int64_t i = 0; i < channels; ++i)
        for (int64_t b = 0; b < model.batch; ++b) list.values[i * model.batch + b] = x[b * channels + i];
      return {step.iota.data(), list.values.data(), channels};
    }
    const Selection found{list.channels.data(), list.values.data(), list.row_counts.data()};
    const int64_t count = choose(rule, x, channels, model.batch, found);
    return {list.channels.data(), list.values.data(), count};
  }

  // out (batch, columns) = the products of the parts, each with its own kept channels.
  void run(const Site &site, const Kept *kept, float *out) {
    Product products[MOST_PARTS];
    int64_t last_unit[MOST_PARTS], units = 0, floats = 0, tiles = 0;
    for (int64_t p = 0; p < site.count; ++p) {
      const Part &part = site.parts[p];
      List &list = own.lists[p];
      list.scaled.resize(part.weight.row_scales ? kept[p].count * model.batch : 0);
      Kept scaled = kept[p];
      scaled.values = scaled_values(part.weight, kept[p], model.batch, list.scaled.data());
      products[p] = {part.weight, scaled, model.batch, site.bias ? site.bias + part.first_column : nullptr,
                     out + part.first_column, site.columns, product_tile(part.weight, model.batch, threads),
                     step.partial.data() + floats, step.done.get() + tiles};
      floats += partial_floats(part.weight, model.batch);
      tiles += product_tiles(part.weight, products[p].tile);
      last_unit[p] = units += product_units(products[p]);
    }
    share(units, [&](int64_t unit) {
      int64_t p = 0;
      while (unit >= last_unit[p]) ++p;
      run_unit(products[p], p ? unit - last_unit[p - 1] : unit);
    });
    for (int64_t p = 0; p < site.count; ++p)
      if (site.parts[p].rank) low_rank(site.parts[p], kept[p], site, out + site.parts[p].first_column);
  }

  // out += left · right · what the selection left out.
  void low_rank(const Part &part, const Kept &kept, const Site &site, float *out) {
    own.room.assign(own.x.begin(), own.x.begin() + model.batch * site.channels);
    for (int64_t i = 0; i < kept.count; ++i)
      for (int64_t b = 0; b < model.batch; ++b)
        own.room[b * site.channels + kept.channels[i]] -= kept.values[i * model.batch + b];
    Arranged &arranged = own.arranged[0];
    float *const middle = step.low_rank.data();
    arranged.fill(part.right.stored, own.room.data(), site.channels, model.batch, site.channels);
    rows(part.right, nullptr, part.rank, arranged, middle, 1, part.rank, false);
    arranged.fill(part.left.stored, middle, part.rank, model.batch, part.rank);
    rows(part.left, nullptr, part.left.rows, arranged, out, 1, site.columns, true);
  }

  // Dot products with `count` rows, shared by the threads; see Dots.
  void rows(const Weight &weight, const int32_t *channels, int64_t count, const Arranged &x, float *out,
            int64_t row_step, int64_t batch_step, bool add) {
    const int64_t even = count / (UNITS_OF_A_THREAD * threads) / ROWS * ROWS;
    const int64_t each = std::clamp<int64_t>(even, ROWS, DOT_ROWS);
    share((count + each - 1) / each, [&](int64_t unit) {
      const int64_t first = unit * each;
      run_dots({weight, channels ? channels + first : nullptr, first, std::min(each, count - first),
                out + first * row_step, row_step, batch_step, add},
               x);
    });
  }

  template <class Run> void share(int64_t units, Run &&run) { step.team.share(phase++, units, run); }

  Step &step;
  const Model &model;
  Own &own;
  int threads;
  int64_t slot, phase = 0;
};

} // namespace

extern "C" {

int64_t block_bytes() { return sizeof(Block); }
int64_t model_bytes() { return sizeof(Model); }

// The arrays that the model points to must outlive the step.
void *make_step(const Model *model) { return new Step(*model); }
void free_step(void *step) { delete static_cast<Step *>(step); }

// tokens: (batch,); slot: where the new token goes; logits: (batch, vocabulary).
void run_step(void *pointer, const int64_t *tokens, int64_t slot, float *logits, int threads) {
  Step &step = *static_cast<Step *>(pointer);
  if (static_cast<int>(step.owns.size()) < threads) step.owns.resize(threads);
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    step.team.start(omp_get_num_threads());
    Thread(step, step.owns[omp_get_thread_num()], omp_get_num_threads(), slot).run(tokens, logits);
  }
}

} // extern "C"
