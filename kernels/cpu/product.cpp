// Products of product.h. gemv.py and native_step.py have checked every argument.
//
// A row of the weight belongs to one input channel, so a dropped channel is a row that is never touched.
//
// Results do not depend on the width of the vectors, on how many rows a loop takes at once or on the CPU that
// the compiler tunes for. A product is fused with its addition where multiply_add says so, nowhere else
// (build.py: -ffp-contract=off): left to itself, GCC fuses in one loop and not in the next for Zen. So every CPU
// that can fuse gives one result, every CPU that cannot (x86-64-v2 and older) another. A single result for all
// would round every product before it is added: with bfloat16 weights on AVX-512 and cold caches, that costs
// 3 % of the speed for one row of x and 8 % for four.
//
// The sums of a wide tile of columns stay in the L1 cache while ROWS kept rows at a time stream past them. Why
// this shape: measured on one core of a Zen 4 at 50 % sparsity with cold caches, 4096 to 14336, it reads at 85
// to 95 % of the speed of a plain pass over the weight. Of its speed
// - tiles held in registers (64 to 384 columns, each row left after 1 KiB) reach half in float32, less in
//   bfloat16; software prefetch of the next kept rows does not make up for it;
// - 1, 2, 4 and 16 rows at a time reach about 50, 70, 90 and 85 %; 12 are no faster than 8;
// - tiles of 4096 and 2048 columns reach 90 and 85 %;
// - prefetching further ahead, or the first lines of the next kept rows, loses up to 10 % where rows are short;
// - huge pages for the weight would add 2 to 3 %, too little to ask for them.
//
// NaN and infinity must survive: never compile this with -ffast-math.

#include "product.h"
#include "vectors.h"
#include "with_constants.h"

#include <algorithm>

namespace {

constexpr int ROWS = 8;                // kept rows that stream at the same time
constexpr int64_t TILE_FLOATS = 8192;  // most sums of one tile, 32 KiB
constexpr int64_t NARROWEST = 512;     // columns of a tile that more threads do not make narrower
constexpr int64_t ROWS_OF_A_PART = 96; // fewer would have their sums added up for little
constexpr int MIDDLE = 8;              // zero point of groups without one

// A way to store weights: its bits, how a block is loaded, and whether a block has even columns before odd ones.
template <int64_t STORED> struct Format;
template <> struct Format<FLOAT> {
  static constexpr int bits = 32;
  static constexpr bool interleaved = false;
  static Pair block(const uint8_t *source, float) { return load(reinterpret_cast<const float *>(source)); }
};
template <> struct Format<BFLOAT16> {
  static constexpr int bits = 16;
  static constexpr bool interleaved = true;
  static Pair block(const uint8_t *source, float) { return load(reinterpret_cast<const bfloat16 *>(source)); }
};
template <> struct Format<INT8> {
  static constexpr int bits = 8;
  static constexpr bool interleaved = false;
  static Pair block(const uint8_t *source, float) { return load(reinterpret_cast<const int8_t *>(source)); }
};
template <> struct Format<INT4> {
  static constexpr int bits = 4;
  static constexpr bool interleaved = true;
  static Pair block(const uint8_t *source, float zero) { return load_nibbles(source, zero); }
};

// Some kept rows, from the first column of a tile on.
template <int COUNT> struct Rows {
  const uint8_t *starts[COUNT];
  int64_t channels[COUNT];
};

// target[row of the batch][lane] += the products of COUNT loaded rows. The rows of one step are added up apart
// from the running sum: shorter chains, smaller rounding error.
template <int COUNT, int BATCH, class Load, class Value>
inline void add_block(Load &&load_row, Value &&value, float *target) {
  Pair loaded[COUNT];
#pragma GCC unroll 16
  for (int i = 0; i < COUNT; ++i) loaded[i] = load_row(i);
#pragma GCC unroll 16
  for (int b = 0; b < BATCH; ++b) {
    const Pair first = value(0, b);
    Pair total = {loaded[0].first * first.first, loaded[0].second * first.second};
#pragma GCC unroll 16
    for (int i = 1; i < COUNT; ++i) {
      const Pair factor = value(i, b);
      total.first = multiply_add(loaded[i].first, factor.first, total.first);
      total.second = multiply_add(loaded[i].second, factor.second, total.second);
    }
    Pair sum = load(target + b * BLOCK);
    sum.first += total.first;
    sum.second += total.second;
    std::memcpy(target + b * BLOCK, &sum, sizeof sum);
  }
}

inline Pair everywhere(float value) { return {value - Floats{}, value - Floats{}}; }

// The columns [begin, end) of a tile, all of which a row multiplies by the same value.
template <int64_t STORED, int COUNT, int BATCH, class Value, class Zero>
inline void add_span(const Rows<COUNT> &rows, Value &&value, Zero &&zero, int64_t begin, int64_t end,
                     float *sums) {
  using Stored = Format<STORED>;
  constexpr int bytes = BLOCK * Stored::bits / 8;
  sums += begin * BATCH;
  int64_t column = begin;
  for (; column + BLOCK <= end; column += BLOCK, sums += BATCH * BLOCK) {
    const int64_t offset = column * Stored::bits / 8;
    const auto load_row = [&](int i) { // asking for lines a moment before they are used is worth 3 %
      for (int ahead = 0; ahead < bytes; ahead += 64) __builtin_prefetch(rows.starts[i] + offset + ahead);
      return Stored::block(rows.starts[i] + offset, zero(i));
    };
    add_block<COUNT, BATCH>(load_row, value, sums);
  }
  if (const int64_t rest = end - column)
    add_block<COUNT, BATCH>(
        [&](int i) {
          uint8_t padded[bytes] = {};
          std::memcpy(padded, rows.starts[i] + column * Stored::bits / 8, (rest * Stored::bits + 7) / 8);
          return Stored::block(padded, zero(i));
        },
        value, sums);
}

// Values of 4 bits in groups: a row has another factor in each of them.
template <int COUNT, int BATCH>
void add_groups(const Rows<COUNT> &rows, const float (&values)[COUNT][BATCH], const Weight &weight,
                int64_t begin, int64_t columns, float *sums) {
  constexpr int64_t most = TILE_FLOATS / BATCH / BLOCK + 1;
  const int64_t first = begin / weight.group, last = (begin + columns - 1) / weight.group + 1;
  float factors[COUNT][BATCH][most], zeros[COUNT][most];
  for (int i = 0; i < COUNT; ++i) {
    const int64_t place = rows.channels[i] * weight.scale_stride + first;
    for (int64_t g = 0; g < last - first; ++g) {
      const float scale = half_to_float(weight.scales[place + g]);
      for (int b = 0; b < BATCH; ++b) factors[i][b][g] = values[i][b] * scale;
      zeros[i][g] = weight.zeros ? weight.zeros[place + g] : MIDDLE;
    }
  }
  for (int64_t g = 0; g < last - first; ++g) {
    const int64_t from = std::max<int64_t>(0, (first + g) * weight.group - begin);
    const int64_t to = std::min(columns, (first + g + 1) * weight.group - begin);
    add_span<INT4, COUNT, BATCH>(
        rows, [&](int i, int b) { return everywhere(factors[i][b][g]); }, [&](int i) { return zeros[i][g]; },
        from, to, sums);
  }
}

// The same where groups end inside of blocks: a factor and a zero point for every lane.
template <int COUNT, int BATCH>
void add_odd_groups(const Rows<COUNT> &rows, const float (&values)[COUNT][BATCH], const Weight &weight,
                    int64_t begin, int64_t columns, float *sums) {
  for (int64_t column = 0; column < columns; column += BLOCK, sums += BATCH * BLOCK) {
    const int64_t lanes = std::min<int64_t>(BLOCK, columns - column);
    float weights[COUNT][BLOCK] = {}, scales[COUNT][BLOCK] = {};
    for (int i = 0; i < COUNT; ++i)
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t place = lane / 2 + lane % 2 * LANES; // even columns first, as Format<INT4>
        const int64_t group = rows.channels[i] * weight.scale_stride + (begin + column + lane) / weight.group;
        const int packed = rows.starts[i][(column + lane) / 2];
        const int zero = weight.zeros ? weight.zeros[group] : MIDDLE;
        weights[i][place] = static_cast<float>((lane % 2 ? packed >> 4 : packed & 15) - zero);
        scales[i][place] = half_to_float(weight.scales[group]);
      }
    add_block<COUNT, BATCH>(
        [&](int i) { return load(weights[i]); },
        [&](int i, int b) {
          const Pair scale = load(scales[i]);
          return Pair{scale.first * values[i][b], scale.second * values[i][b]};
        },
        sums);
  }
}

// sums[block][row of the batch][lane] += the products of COUNT kept rows with `columns` columns from `begin` on.
template <int64_t STORED, int COUNT, int BATCH>
void add_rows(const Kept &kept, int64_t index, const Weight &weight, int64_t begin, int64_t columns,
              float *sums) {
  Rows<COUNT> rows;
  float values[COUNT][BATCH];
  for (int i = 0; i < COUNT; ++i) {
    rows.channels[i] = kept.channels[index + i];
    rows.starts[i] = weight.values + rows.channels[i] * weight.stride + begin * Format<STORED>::bits / 8;
    for (int b = 0; b < BATCH; ++b) values[i][b] = kept.values[(index + i) * BATCH + b];
  }
  if constexpr (STORED == INT4)
    (weight.group % BLOCK ? add_odd_groups<COUNT, BATCH> : add_groups<COUNT, BATCH>)(rows, values, weight,
                                                                                     begin, columns, sums);
  else
    add_span<STORED, COUNT, BATCH>(
        rows, [&](int i, int b) { return everywhere(values[i][b]); }, [](int) { return 0.0f; }, 0, columns,
        sums);
}

template <int64_t STORED, int BATCH>
void add_all(const Kept &kept, int64_t index, int64_t last, const Weight &weight, int64_t begin,
             int64_t columns, float *sums) {
  for (; index + ROWS <= last; index += ROWS)
    add_rows<STORED, ROWS, BATCH>(kept, index, weight, begin, columns, sums);
  for (; index < last; ++index) add_rows<STORED, 1, BATCH>(kept, index, weight, begin, columns, sums);
}

int64_t parts_of(const Kept &kept) {
  return std::clamp<int64_t>(kept.count / ROWS_OF_A_PART, 1, LARGEST_PARTS);
}

int64_t blocks_of(int64_t columns) { return (columns + BLOCK - 1) / BLOCK; }

// One tile in the order of its columns: the parts added up, scaled, with its bias.
template <bool INTERLEAVED>
void write_tile(const Product &product, const float *sums, int64_t part_floats, int64_t parts, int64_t begin,
                int64_t columns) {
  const int64_t batch = product.batch;
  const float *const scales = product.weight.column_scales, *const bias = product.bias;
  for (int64_t column = 0; column < columns; column += BLOCK)
    for (int64_t b = 0; b < batch; ++b) {
      const float *const place = sums + column * batch + b * BLOCK;
      Pair total = load(place);
      for (int64_t part = 1; part < parts; ++part) {
        const Pair next = load(place + part * part_floats);
        total.first += next.first;
        total.second += next.second;
      }
      float lanes[BLOCK], ordered[BLOCK];
      std::memcpy(lanes, &total, sizeof lanes);
      for (int lane = 0; lane < BLOCK; ++lane)
        ordered[lane] = lanes[INTERLEAVED ? lane / 2 + lane % 2 * LANES : lane];
      const int64_t count = std::min<int64_t>(BLOCK, columns - column);
      if (scales)
        for (int64_t lane = 0; lane < count; ++lane) ordered[lane] *= scales[begin + column + lane];
      if (bias)
        for (int64_t lane = 0; lane < count; ++lane) ordered[lane] += bias[begin + column + lane];
      std::memcpy(product.out + b * product.out_stride + begin + column, ordered, count * sizeof(float));
    }
}

} // namespace

int64_t product_tile(const Weight &weight, int64_t batch, int64_t threads) {
  const int64_t widest = TILE_FLOATS / batch / BLOCK, blocks = blocks_of(weight.columns);
  const int64_t wanted = std::clamp(blocks / (2 * threads), std::min(NARROWEST / BLOCK, widest), widest);
  const int64_t tiles = std::max(blocks / wanted, (blocks + widest - 1) / widest); // as wide as each other
  return (blocks + tiles - 1) / std::max<int64_t>(tiles, 1) * BLOCK;
}

int64_t product_tiles(const Weight &weight, int64_t tile) { return (weight.columns + tile - 1) / tile; }

int64_t partial_floats(const Weight &weight, int64_t batch) {
  return LARGEST_PARTS * blocks_of(weight.columns) * BLOCK * batch;
}

int64_t product_units(const Product &product) {
  return product_tiles(product.weight, product.tile) * parts_of(product.kept);
}

void run_unit(const Product &product, int64_t unit) {
  const Weight &weight = product.weight;
  const Kept &kept = product.kept;
  const int64_t tiles = product_tiles(weight, product.tile), parts = parts_of(kept);
  const int64_t tile = unit % tiles, part = unit / tiles;
  const int64_t begin = tile * product.tile, columns = std::min(product.tile, weight.columns - begin);
  const int64_t steps = kept.count / ROWS, part_floats = blocks_of(weight.columns) * BLOCK * product.batch;
  const int64_t first = steps * part / parts * ROWS;
  const int64_t last = part + 1 == parts ? kept.count : steps * (part + 1) / parts * ROWS;
  float *const sums = product.partial + begin * product.batch;
  alignas(64) float own[TILE_FLOATS]; // what stays in the L1 cache must not share lines with others
  const int64_t floats = blocks_of(columns) * BLOCK * product.batch;
  std::memset(own, 0, floats * sizeof(float));
  with_constant<INT4 + 1>(weight.stored, [&](auto stored) {
    with_constant<LARGEST_BATCH + 1>(product.batch, [&](auto batch) {
      if constexpr (batch() > 0) add_all<stored(), batch()>(kept, first, last, weight, begin, columns, own);
    });
  });
  std::memcpy(sums + part * part_floats, own, floats * sizeof(float));
  if (product.done[tile].fetch_add(1, std::memory_order_acq_rel) + 1 < parts) return;
  product.done[tile].store(0, std::memory_order_relaxed);
  const bool interleaved = weight.stored == BFLOAT16 || weight.stored == INT4;
  (interleaved ? write_tile<true> : write_tile<false>)(product, sums, part_floats, parts, begin, columns);
}

const float *scaled_values(const Weight &weight, const Kept &kept, int64_t batch, float *room) {
  if (!weight.row_scales) return kept.values;
  for (int64_t i = 0; i < kept.count; ++i)
    for (int64_t b = 0; b < batch; ++b)
      room[i * batch + b] = kept.values[i * batch + b] * weight.row_scales[kept.channels[i]];
  return room;
}
