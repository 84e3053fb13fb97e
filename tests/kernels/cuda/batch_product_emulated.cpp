// batch_product.cu as a function of a shared library.
#include "emulator.h"
// after the macros of the emulator
#include "batch_product.cu"

extern "C" int run(int blocks, const unsigned short* weight, const unsigned short* source, const float* magnitudes,
                   const float* score_weights, const float* smallest, const unsigned short* bias, void* out,
                   float* out_squares, float* out_magnitudes) {
    return run_clusters(blocks, CLUSTER, WARPS, sizeof(Shared),
                        [&] { batch_product_kernel(weight, source, magnitudes, score_weights, smallest, bias, out, out_squares, out_magnitudes); });
}
