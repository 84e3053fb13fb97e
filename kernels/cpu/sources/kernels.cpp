// What Python calls of the products and selections, one at a time; gemv.py has checked every argument.

#include "products/dots.h"
#include "products/product.h"
#include "selection.h"

#include <omp.h>

#include <memory>

namespace {

constexpr int64_t SERIAL_WORK = 1 << 15; // weights below which waking the threads costs more than they save

// Calls `run` with the pointer as what it is.
template <class Run> auto with_type(const void *data, int is_bfloat16, Run run) {
  return is_bfloat16 ? run(static_cast<const bfloat16 *>(data)) : run(static_cast<const float *>(data));
}

} // namespace

extern "C" {

int64_t weight_bytes() { return sizeof(Weight); }

int64_t compact_by_threshold(const void *x, int is_bfloat16, int64_t stride, int64_t channels, int64_t batch,
                             const float *thresholds, int32_t *kept, float *values, int64_t *row_counts) {
  return with_type(x, is_bfloat16, [&](auto *input) {
    return compact_by_threshold(input, stride, channels, batch, thresholds, Selection{kept, values, row_counts});
  });
}

int64_t compact_by_top_k(const void *x, int is_bfloat16, int64_t stride, int64_t channels, int64_t batch,
                         const float *weights, int64_t k, int32_t *kept, float *values, int64_t *row_counts) {
  return with_type(x, is_bfloat16, [&](auto *input) {
    return compact_top_k(input, stride, channels, batch, weights, k, Selection{kept, values, row_counts});
  });
}

void gather_gemv(const int32_t *channels, const float *values, int64_t count, int64_t batch,
                 const Weight *weight, float *out, int threads) {
  thread_local std::vector<float> partial, scaled; // keep their memory from call to call
  partial.resize(partial_floats(*weight, batch));
  scaled.resize(weight->row_scales ? count * batch : 0);
  Kept kept{channels, values, count};
  kept.values = scaled_values(*weight, kept, batch, scaled.data());
  const bool serial = count * weight->columns < SERIAL_WORK;
  const int64_t tile = product_tile(*weight, batch, serial ? 1 : threads);
  const auto done = std::make_unique<std::atomic<int32_t>[]>(product_tiles(*weight, tile));
  const Product product{*weight, kept, batch, nullptr, out, weight->columns, tile, partial.data(), done.get()};
  const int64_t units = product_units(product);
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads) if (!serial)
  for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units;) run_unit(product, unit);
}

void row_dots(const int32_t *channels, int64_t count, int64_t batch, const void *x, int x_is_bfloat16,
              int64_t x_stride, const Weight *weight, float *values, int threads) {
  thread_local Arranged inputs;
  Arranged &arranged = inputs; // of this thread, for all threads
  with_type(x, x_is_bfloat16,
            [&](auto *input) { arranged.fill(weight->stored, input, x_stride, batch, weight->columns); });
#pragma omp parallel num_threads(threads) if (count * weight->columns >= SERIAL_WORK)
  {
    const int64_t team = omp_get_num_threads(), member = omp_get_thread_num();
    const int64_t begin = count * member / team, end = count * (member + 1) / team;
    run_dots({*weight, channels + begin, 0, end - begin, values + begin * batch, batch, 1, false}, arranged);
  }
}

} // extern "C"
