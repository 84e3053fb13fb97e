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
// The sums of a wide tile of columns stay in the L1 cache while ROWS kept rows at a time stream past them, and the
// second cache is asked for the ROWS after them. Why this shape: measured on a Zen 4, cold caches,
// - tiles held in registers (64 to 384 columns, each row left after 1 KiB) reach half of its speed in float32,
//   less in bfloat16;
// - 1, 2, 4 and 16 rows at a time reached about 50, 70, 90 and 85 % of a plain pass; 12 are no faster than 8;
// - on two cores at SmolLM2's sizes, asking ahead is worth 10 % in float32, 25 % in bfloat16 and 45 % in 8 bits;
//   asking the first cache instead loses all of that, and asking two or four times as far ahead a tenth of it;
// - pages of 2 MB for the weights gained nothing that could be told from the noise.
//
// NaN and infinity must survive: never compile this with -ffast-math.

#include "products/product.h"
#include "products/few_bits.h"
#include "vectors.h"
#include "with_constants.h"
#include "products/words.h"

#include <algorithm>

namespace {

constexpr int64_t NARROWEST = 512;     // columns of a tile that more threads do not make narrower
constexpr int64_t NARROWEST_IN_FEW_BITS = 2048; // 5 % faster than 512 at SmolLM2's sizes: longer pieces of rows
constexpr int64_t ROWS_OF_A_PART = 96; // fewer would have their sums added up for little
constexpr int64_t ROWS_OF_AN_EVEN_PART = 128; // of integers; two threads share an even number of parts evenly

// A way to store weights: its bits, how a block is loaded, and how its sums are put in the order of the columns.
template <int64_t STORED> struct Format;
template <> struct Format<FLOAT> {
  static constexpr int bits = 32, block = BLOCK;
  static Pair load_block(const uint8_t *source) { return load(reinterpret_cast<const float *>(source)); }
  static void put_in_order(const float *sums, float *ordered) { std::memcpy(ordered, sums, block * sizeof(float)); }
};
template <> struct Format<BFLOAT16> {
  static constexpr int bits = 16, block = BLOCK;
  static Pair load_block(const uint8_t *source) { return load(reinterpret_cast<const bfloat16 *>(source)); }
  static void put_in_order(const float *sums, float *ordered) {
    for (int lane = 0; lane < LANES; ++lane) {
      ordered[2 * lane] = sums[lane];
      ordered[2 * lane + 1] = sums[LANES + lane];
    }
  }
};
template <> struct Format<INT8> {
  static constexpr int bits = 8, block = BLOCK;
  static Pair load_block(const uint8_t *source) { return load(reinterpret_cast<const int8_t *>(source)); }
  static void put_in_order(const float *sums, float *ordered) { std::memcpy(ordered, sums, block * sizeof(float)); }
};
template <> struct Format<INT4> {
  static constexpr int bits = 4, block = WORD_BLOCK;
  static void put_in_order(const float *sums, float *ordered) {
    for (int column = 0; column < block; ++column) ordered[column] = sums[column % WORD * LANES + column / WORD];
  }
};
template <> struct Format<INT8_BY_INTEGERS> {
  static constexpr int bits = 8, block = VECTOR_BYTES;
  static void put_in_order(const float *sums, float *ordered) { columns_in_order<1>(sums, ordered); }
};
template <> struct Format<INT4_BY_INTEGERS> {
  static constexpr int bits = 4, block = 2 * VECTOR_BYTES;
  static void put_in_order(const float *sums, float *ordered) { columns_in_order<2>(sums, ordered); }
};

// sums += the products of the first COUNT rows, BLOCK columns at a time. The rows of one step are added up apart from the
// running sum: shorter chains, smaller rounding error.
template <int64_t STORED, int COUNT, int BATCH>
inline void add_pairs(const uint8_t *const (&rows)[2 * COUNT], const float (&values)[COUNT][BATCH],
                      int64_t columns, float *sums) {
  using Stored = Format<STORED>;
  constexpr int bytes = BLOCK * Stored::bits / 8;
  const auto add_block = [&](auto &&load_row) {
    Pair loaded[COUNT];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i) loaded[i] = load_row(i);
#pragma GCC unroll 16
    for (int b = 0; b < BATCH; ++b) {
      Pair total = {loaded[0].first * values[0][b], loaded[0].second * values[0][b]};
#pragma GCC unroll 16
      for (int i = 1; i < COUNT; ++i) {
        const Floats value = values[i][b] - Floats{};
        total.first = multiply_add(loaded[i].first, value, total.first);
        total.second = multiply_add(loaded[i].second, value, total.second);
      }
      Pair sum = load(sums + b * BLOCK);
      sum.first += total.first;
      sum.second += total.second;
      store(sum, sums + b * BLOCK);
    }
    sums += BATCH * BLOCK;
  };
  int64_t column = 0;
  for (; column + BLOCK <= columns; column += BLOCK) {
    const int64_t offset = column * Stored::bits / 8;
    ask_ahead<COUNT>(rows + COUNT, offset, bytes);
    add_block([&](int i) { return Stored::load_block(rows[i] + offset); });
  }
  if (const int64_t rest = columns - column)
    add_block([&](int i) {
      uint8_t padded[bytes] = {};
      std::memcpy(padded, rows[i] + column * Stored::bits / 8, rest * Stored::bits / 8);
      return Stored::load_block(padded);
    });
}

// The first byte of a tile's columns in the first row.
template <int64_t STORED> const uint8_t *tile_of(const Weight &weight, int64_t begin) {
  return weight.values + begin * Format<STORED>::bits / 8;
}

// sums[block][row of the batch][lane] += the products of COUNT kept rows with `columns` columns from `begin` on.
template <int64_t STORED, int COUNT, int BATCH>
void add_rows(const Kept &kept, int64_t index, int64_t last, const Weight &weight, int64_t begin,
              int64_t columns, float *sums) {
  const uint8_t *rows[2 * COUNT]; // and those that are read after them
  find_rows<2 * COUNT>(kept, index, last, tile_of<STORED>(weight, begin), weight.stride, rows);
  float values[COUNT][BATCH];
  for (int i = 0; i < COUNT; ++i)
    for (int b = 0; b < BATCH; ++b) values[i][b] = kept.values[(index + i) * BATCH + b];
  if constexpr (STORED == INT4)
    (weight.zeros ? add_words<false, COUNT, BATCH> : add_words<true, COUNT, BATCH>)(
        rows, kept.channels + index, values, weight, begin, columns, sums);
  else
    add_pairs<STORED>(rows, values, columns, sums);
}

template <int64_t STORED, int BATCH>
void add_all(const Kept &kept, int64_t index, int64_t last, const Weight &weight, int64_t begin,
             int64_t columns, float *sums) {
  if constexpr (STORED == INT8_BY_INTEGERS || STORED == INT4_BY_INTEGERS) {
    Run<STORED, BATCH == 1> run(weight, BATCH, tile_of<STORED>(weight, begin), begin, columns);
    for (; index < last; index += RUN) run.add(kept, index, last, sums);
  } else {
    for (; index + ROWS <= last; index += ROWS)
      add_rows<STORED, ROWS, BATCH>(kept, index, last, weight, begin, columns, sums);
    for (; index < last; ++index) add_rows<STORED, 1, BATCH>(kept, index, last, weight, begin, columns, sums);
  }
}

int64_t parts_of(const Weight &weight, const Kept &kept) {
  if (weight.stored < INT8_BY_INTEGERS) return std::clamp<int64_t>(kept.count / ROWS_OF_A_PART, 1, LARGEST_PARTS);
  return std::clamp<int64_t>((kept.count / ROWS_OF_AN_EVEN_PART + 1) / 2 * 2, 1, LARGEST_PARTS);
}

int64_t block_of(const Weight &weight) {
  int64_t block = 0;
  with_constant<INT4_BY_INTEGERS + 1>(weight.stored, [&](auto stored) { block = Format<stored()>::block; });
  return block;
}

// Columns filled up to whole blocks.
int64_t padded(const Weight &weight, int64_t columns) {
  return (columns + block_of(weight) - 1) / block_of(weight) * block_of(weight);
}

// One tile in the order of its columns: the parts added up, scaled, with its bias.
template <int64_t STORED>
void write_tile(const Product &product, const float *sums, int64_t part_floats, int64_t parts, int64_t begin,
                int64_t columns) {
  constexpr int block = Format<STORED>::block;
  const float *const scales = product.weight.column_scales, *const bias = product.bias;
  for (int64_t column = 0; column < columns; column += block)
    for (int64_t b = 0; b < product.batch; ++b, sums += block) {
      float total[block], ordered[block];
      std::memcpy(total, sums, sizeof total);
      for (int64_t part = 1; part < parts; ++part)
        for (int lane = 0; lane < block; ++lane) total[lane] += sums[part * part_floats + lane];
      Format<STORED>::put_in_order(total, ordered);
      const int64_t count = std::min<int64_t>(block, columns - column), first = begin + column;
      if (scales)
        for (int64_t lane = 0; lane < count; ++lane) ordered[lane] *= scales[first + lane];
      if (bias)
        for (int64_t lane = 0; lane < count; ++lane) ordered[lane] += bias[first + lane];
      std::memcpy(product.out + b * product.out_stride + first, ordered, count * sizeof(float));
    }
}

} // namespace

int64_t product_tile(const Weight &weight, int64_t batch, int64_t threads) {
  const int64_t block = block_of(weight), blocks = padded(weight, weight.columns) / block;
  const int64_t widest = TILE_FLOATS / batch / block;
  const int64_t narrowest = (weight.stored < INT8 ? NARROWEST : NARROWEST_IN_FEW_BITS) / block;
  const int64_t wanted = std::clamp(blocks / (2 * threads), std::min(narrowest, widest), widest);
  const int64_t tiles = std::max(blocks / wanted, (blocks + widest - 1) / widest); // as wide as each other
  return (blocks + tiles - 1) / std::max<int64_t>(tiles, 1) * block;
}

int64_t product_tiles(const Weight &weight, int64_t tile) { return (weight.columns + tile - 1) / tile; }

int64_t partial_floats(const Weight &weight, int64_t batch) {
  return LARGEST_PARTS * padded(weight, weight.columns) * batch;
}

int64_t product_units(const Product &product) {
  return product_tiles(product.weight, product.tile) * parts_of(product.weight, product.kept);
}

void run_unit(const Product &product, int64_t unit) {
  const Weight &weight = product.weight;
  const Kept &kept = product.kept;
  const int64_t tiles = product_tiles(weight, product.tile), parts = parts_of(weight, kept);
  const int64_t tile = unit % tiles, part = unit / tiles;
  const int64_t begin = tile * product.tile, columns = std::min(product.tile, weight.columns - begin);
  const int64_t steps = kept.count / ROWS, part_floats = padded(weight, weight.columns) * product.batch;
  const int64_t first = steps * part / parts * ROWS;
  const int64_t last = part + 1 == parts ? kept.count : steps * (part + 1) / parts * ROWS;
  float *const sums = product.partial + begin * product.batch;
  alignas(64) float own[TILE_FLOATS]; // what stays in the L1 cache must not share lines with others
  const int64_t floats = padded(weight, columns) * product.batch;
  std::memset(own, 0, floats * sizeof(float));
  with_constant<INT4_BY_INTEGERS + 1>(weight.stored, [&](auto stored) {
    with_constant<LARGEST_BATCH + 1>(product.batch, [&](auto batch) {
      if constexpr (batch() > 0) add_all<stored(), batch()>(kept, first, last, weight, begin, columns, own);
    });
  });
  std::memcpy(sums + part * part_floats, own, floats * sizeof(float));
  if (product.done[tile].fetch_add(1, std::memory_order_acq_rel) + 1 < parts) return;
  product.done[tile].store(0, std::memory_order_relaxed);
  with_constant<INT4_BY_INTEGERS + 1>(weight.stored, [&](auto stored) {
    write_tile<stored()>(product, sums, part_floats, parts, begin, columns);
  });
}

const float *scaled_values(const Weight &weight, const Kept &kept, int64_t batch, float *room) {
  if (!weight.row_scales) return kept.values;
  for (int64_t i = 0; i < kept.count; ++i)
    for (int64_t b = 0; b < batch; ++b)
      room[i * batch + b] = kept.values[i * batch + b] * weight.row_scales[kept.channels[i]];
  return room;
}
