// product.cu as a function of a shared library.
#include "emulator.h"
// after the macros of the emulator
#include "product.cu"

extern "C" int run(int blocks, const void* values, const void* scales, const unsigned char* zeros,
                   const float* column_scales, const void* source, const float* squares,
                   const unsigned short* gain, const float* bounds, const float* smallest,
                   const unsigned short* bias, void* out, float* out_squares) {
    return run_clusters(blocks, CLUSTER, WARPS, sizeof(Shared),
                        [&] { product_kernel(values, scales, zeros, column_scales, source, squares, gain, bounds, smallest, bias, out, out_squares); });
}
