// Matrix-vector products that read only the kept rows of a weight stored (in, out), for CPUs.
//
// Compiled by build.py, called by compiled.py; gemv.py has checked every argument.
//
// A row of the weight belongs to one input channel, so a dropped channel is a row that is never touched.
// Threads split the output columns, never the channels: no partial sums, no atomics, and every column is added
// up in the same order whatever the number of threads, so results are the same to the bit.
//
// Nor do they depend on the width of the vectors, on how many rows a loop takes at once or on the CPU that the
// compiler tunes for. Where lanes of a vector are added up (row_dots), there are DOT_LANES of them, in as many
// registers as that takes. And a product is fused with its addition where multiply_add says so, nowhere else
// (build.py: -ffp-contract=off): left to itself, GCC fuses in one loop and not in the next for Zen. So every CPU
// that can fuse gives one result, every CPU that cannot (x86-64-v2 and older) another. A single result for all
// would round every product before it is added: with bfloat16 weights on AVX-512 and cold caches, that costs
// 3 % of the speed for one row of x and 8 % for four.
//
// Inside a thread the sums of a wide tile of columns stay in the L1 cache while ROWS kept rows at a time stream
// past them. Why this shape: measured on one core of a Zen 4 at 50 % sparsity with cold caches, 4096 to 14336,
// it reads at 85 to 95 % of the speed of a plain pass over the weight. Of its speed
// - tiles held in registers (64 to 384 columns, each row left after 1 KiB) reach half in float32, less in
//   bfloat16; software prefetch of the next kept rows does not make up for it;
// - 1, 2, 4 and 16 rows at a time reach about 50, 70, 90 and 85 %; 12 are no faster than 8;
// - tiles of 4096 and 2048 columns reach 90 and 85 %;
// - prefetching further ahead, or the first lines of the next kept rows, loses up to 10 % where rows are short;
// - huge pages for the weight would add 2 to 3 %, too little to ask for them.
//
// Vectors are GCC's vector extensions, of the widest registers that the flags allow: one source for AVX-512,
// AVX2 and plain machines. NaN and infinity must survive: never compile this with -ffast-math.

#include "types.h"

#include <omp.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANES = VECTOR_BYTES / 4;
constexpr int BLOCK = 2 * LANES;         // columns of one step: with bfloat16, one register of the weight
constexpr int DOT_LANES = 16;            // partial sums of a row's dot product, on every machine
constexpr int ROWS = 8;                  // kept rows that stream at the same time
constexpr int64_t TILE_FLOATS = 8192;    // sums of one tile, 32 KiB
constexpr int64_t SERIAL_WORK = 1 << 15; // weights below which waking the threads costs more than they save

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));

// a · b + sum, fused on machines that can.
inline Floats multiply_add(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, sum);
#elif defined(__aarch64__)
  return vfmaq_f32(sum, a, b);
#else
  return a * b + sum;
#endif
}

// BLOCK weights as two vectors of float. Which column a lane holds depends on the type: column_of.
struct Pair {
  Floats first, second;
};

// The second vector lies `distance` floats behind the first.
inline Pair load(const float *source, int distance = LANES) {
  Pair pair;
  std::memcpy(&pair.first, source, sizeof pair.first);
  std::memcpy(&pair.second, source + distance, sizeof pair.second);
  return pair;
}

// A bfloat16 is the upper half of a float. Taking even and odd columns apart costs a shift and a mask for two
// vectors; widening them in order costs two permutations and two shifts, 12 % of the whole product's speed. The
// sums are put in order once, at the end.
inline Pair load(const bfloat16 *source) {
  Words words, even, odd;
  std::memcpy(&words, source, sizeof words);
  even = words << 16;
  odd = words & 0xffff0000u;
  Pair pair;
  std::memcpy(&pair.first, &even, sizeof even);
  std::memcpy(&pair.second, &odd, sizeof odd);
  return pair;
}

// Which of `2 * lanes` columns stands in place `place`, the first vectors before the second.
template <class Weight> constexpr int column_of(int place, int lanes) {
  if (sizeof(Weight) == sizeof(float)) return place;
  return place < lanes ? 2 * place : 2 * (place - lanes) + 1;
}

template <class Weight> struct Matrix {
  const Weight *data;
  int64_t stride, columns;
};
template <class Weight> Matrix(const Weight *, int64_t, int64_t) -> Matrix<Weight>;

struct Kept {
  const int32_t *channels; // (count,)
  const float *values;     // (count, batch)
  int64_t count;
};

// sums[block][row of the batch][lane] += the products of COUNT kept rows with the columns [begin, end).
template <class Weight, int COUNT, int BATCH>
inline void add_rows(const Kept &kept, int64_t index, const Matrix<Weight> &weight, int64_t begin, int64_t end,
                     float *sums) {
  const Weight *rows[COUNT];
  float values[COUNT][BATCH];
  for (int i = 0; i < COUNT; ++i) {
    rows[i] = weight.data + kept.channels[index + i] * weight.stride + begin;
    for (int b = 0; b < BATCH; ++b) values[i][b] = kept.values[(index + i) * BATCH + b];
  }
  const auto add_block = [&](auto &&load_row, float *target) {
    Pair loaded[COUNT];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i) loaded[i] = load_row(rows[i]);
#pragma GCC unroll 16
    for (int b = 0; b < BATCH; ++b) {
      // The rows of one step are added up apart from the running sum: shorter chains, smaller rounding error.
      Pair total = {loaded[0].first * values[0][b], loaded[0].second * values[0][b]};
#pragma GCC unroll 16
      for (int i = 1; i < COUNT; ++i) {
        const Floats value = values[i][b] - Floats{};
        total.first = multiply_add(loaded[i].first, value, total.first);
        total.second = multiply_add(loaded[i].second, value, total.second);
      }
      Pair sum = load(target + b * BLOCK);
      sum.first += total.first;
      sum.second += total.second;
      std::memcpy(target + b * BLOCK, &sum, sizeof sum);
    }
  };
  const int64_t whole = (end - begin) / BLOCK * BLOCK;
  for (int64_t column = 0; column < whole; column += BLOCK, sums += BATCH * BLOCK)
    add_block(
        [column](const Weight *row) { // asking for the lines a moment before they are used is worth 3 %
          for (int64_t i = 0; i < BLOCK; i += 64 / sizeof(Weight)) __builtin_prefetch(row + column + i);
          return load(row + column);
        },
        sums);
  if (const int64_t rest = end - begin - whole)
    add_block(
        [whole, rest](const Weight *row) {
          Weight padded[BLOCK] = {};
          std::memcpy(padded, row + whole, rest * sizeof(Weight));
          return load(padded);
        },
        sums);
}

// out[b][begin, end) = the sums of a tile, its columns in order again.
template <class Weight, int BATCH>
inline void write_tile(const float *sums, int64_t begin, int64_t end, int64_t columns, float *out) {
  for (int64_t column = begin; column < end; column += BLOCK, sums += BATCH * BLOCK)
    for (int b = 0; b < BATCH; ++b) {
      float ordered[BLOCK];
      for (int lane = 0; lane < BLOCK; ++lane) ordered[column_of<Weight>(lane, LANES)] = sums[b * BLOCK + lane];
      std::memcpy(out + b * columns + column, ordered, std::min<int64_t>(BLOCK, end - column) * sizeof(float));
    }
}

template <int BATCH, class Weight>
void gather_gemv(const Kept &kept, const Matrix<Weight> &weight, float *out, int threads) {
  constexpr int64_t tile_blocks = TILE_FLOATS / (BATCH * BLOCK);
  const int64_t blocks = (weight.columns + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(threads) if (kept.count * weight.columns >= SERIAL_WORK)
  {
    const int64_t team = omp_get_num_threads(), member = omp_get_thread_num();
    const int64_t first = blocks * member / team, last = blocks * (member + 1) / team;
    const int64_t tiles = (last - first + tile_blocks - 1) / tile_blocks;
    alignas(64) float sums[TILE_FLOATS];
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t begin = (first + (last - first) * tile / tiles) * BLOCK;
      const int64_t end = std::min(weight.columns, (first + (last - first) * (tile + 1) / tiles) * BLOCK);
      std::memset(sums, 0, (end - begin + BLOCK - 1) / BLOCK * BLOCK * BATCH * sizeof(float));
      int64_t index = 0;
      for (; index + ROWS <= kept.count; index += ROWS)
        add_rows<Weight, ROWS, BATCH>(kept, index, weight, begin, end, sums);
      for (; index < kept.count; ++index) add_rows<Weight, 1, BATCH>(kept, index, weight, begin, end, sums);
      write_tile<Weight, BATCH>(sums, begin, end, weight.columns, out);
    }
  }
}

constexpr int DOT_BLOCK = 2 * DOT_LANES; // columns of one step of a dot product
constexpr int PARTS = DOT_LANES / LANES; // registers that hold DOT_LANES

// Part `part` of DOT_BLOCK weights, which DOT_LANES alone arrange: their first vector, then their second.
inline Pair load_part(const float *block, int part) { return load(block + part * LANES, DOT_LANES); }
inline Pair load_part(const bfloat16 *block, int part) { return load(block + part * BLOCK); }

// values[i][b] = row i · x[b] for COUNT kept rows; x is `arranged`.
template <class Weight, int COUNT, int BATCH>
inline void dot_rows(const int32_t *channels, const Matrix<Weight> &weight, const float *x, int64_t padded,
                     float *values) {
  const Weight *rows[COUNT];
  Floats sums[COUNT][BATCH][PARTS] = {};
  for (int i = 0; i < COUNT; ++i) rows[i] = weight.data + channels[i] * weight.stride;
  const auto add_block = [&](auto &&block_of, int64_t column) {
#pragma GCC unroll 16
    for (int part = 0; part < PARTS; ++part) {
      Pair loaded[COUNT];
#pragma GCC unroll 16
      for (int i = 0; i < COUNT; ++i) loaded[i] = load_part(block_of(i), part);
#pragma GCC unroll 16
      for (int b = 0; b < BATCH; ++b) {
        const Pair input = load_part(x + b * padded + column, part);
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; ++i) {
          Floats &sum = sums[i][b][part];
          sum = multiply_add(loaded[i].second, input.second, multiply_add(loaded[i].first, input.first, sum));
        }
      }
    }
  };
  const int64_t whole = weight.columns / DOT_BLOCK * DOT_BLOCK;
  for (int64_t column = 0; column < whole; column += DOT_BLOCK)
    add_block([&rows, column](int i) { return rows[i] + column; }, column);
  if (const int64_t rest = weight.columns - whole) {
    Weight padding[COUNT][DOT_BLOCK] = {};
    for (int i = 0; i < COUNT; ++i) std::memcpy(padding[i], rows[i] + whole, rest * sizeof(Weight));
    add_block([&padding](int i) { return padding[i]; }, whole);
  }
  for (int i = 0; i < COUNT; ++i)
    for (int b = 0; b < BATCH; ++b) {
      float lanes[DOT_LANES];
      std::memcpy(lanes, sums[i][b], sizeof lanes);
      for (int width = DOT_LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
      values[i * BATCH + b] = lanes[0];
    }
}

// x as dot_rows wants it: float, padded with zeros to whole blocks, each in the order of column_of.
template <class Weight, class Input>
std::vector<float> &arranged(const Input *x, int64_t stride, int64_t batch, int64_t columns) {
  const int64_t padded = (columns + DOT_BLOCK - 1) / DOT_BLOCK * DOT_BLOCK;
  thread_local std::vector<float> result; // keeps its memory from call to call
  result.assign(padded * batch, 0.0f);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t place = 0; place < padded; ++place) {
      const int64_t column = place / DOT_BLOCK * DOT_BLOCK + column_of<Weight>(place % DOT_BLOCK, DOT_LANES);
      if (column < columns) result[b * padded + place] = to_float(x[b * stride + column]);
    }
  return result;
}

template <int BATCH, class Weight>
void row_dots(const int32_t *channels, int64_t count, const Matrix<Weight> &weight, const std::vector<float> &x,
              float *values, int threads) {
  // Rows × batch × parts sums must fit the registers; for one row of x, 8 rows that stream are worth more.
  constexpr int rows = BATCH == 1 ? 8 : std::max(1, (BATCH <= 4 ? 4 : 2) / PARTS);
  const int64_t padded = x.size() / BATCH;
#pragma omp parallel num_threads(threads) if (count * weight.columns >= SERIAL_WORK)
  {
    const int64_t team = omp_get_num_threads(), member = omp_get_thread_num();
    const int64_t last = count * (member + 1) / team;
    int64_t index = count * member / team;
    for (; index + rows <= last; index += rows)
      dot_rows<Weight, rows, BATCH>(channels + index, weight, x.data(), padded, values + index * BATCH);
    for (; index < last; ++index)
      dot_rows<Weight, 1, BATCH>(channels + index, weight, x.data(), padded, values + index * BATCH);
  }
}

// Calls `run` with the batch, 1 to LARGEST_BATCH, as a constant of the compiler's.
template <class Run, int... SIZES>
void with_batch_of(int64_t batch, Run run, std::integer_sequence<int, SIZES...>) {
  ((batch == SIZES + 1 ? run(std::integral_constant<int, SIZES + 1>{}) : void()), ...);
}
template <class Run> void with_batch(int64_t batch, Run run) {
  with_batch_of(batch, run, std::make_integer_sequence<int, LARGEST_BATCH>{});
}

// Calls `run` with the pointer as what it is.
template <class Run> void with_type(const void *data, int is_bfloat16, Run run) {
  is_bfloat16 ? run(static_cast<const bfloat16 *>(data)) : run(static_cast<const float *>(data));
}

} // namespace

extern "C" {

void gather_gemv(const int32_t *channels, const float *values, int64_t count, int64_t batch, const void *weight,
                 int is_bfloat16, int64_t stride, int64_t columns, float *out, int threads) {
  with_type(weight, is_bfloat16, [&](auto *data) {
    with_batch(batch, [&](auto size) {
      gather_gemv<size()>(Kept{channels, values, count}, Matrix{data, stride, columns}, out, threads);
    });
  });
}

void row_dots(const int32_t *channels, int64_t count, int64_t batch, const void *x, int x_is_bfloat16,
              int64_t x_stride, const void *weight, int is_bfloat16, int64_t stride, int64_t columns,
              float *values, int threads) {
  with_type(weight, is_bfloat16, [&](auto *data) {
    const Matrix matrix{data, stride, columns};
    with_type(x, x_is_bfloat16, [&](auto *input) {
      const auto &inputs = arranged<std::remove_const_t<std::remove_pointer_t<decltype(data)>>>(
          input, x_stride, batch, columns);
      with_batch(batch, [&](auto size) { row_dots<size()>(channels, count, matrix, inputs, values, threads); });
    });
  });
}

} // extern "C"
