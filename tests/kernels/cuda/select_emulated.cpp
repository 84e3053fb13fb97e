// select.cu as a function of a shared library.
#include "emulator.h"
// after the macros of the emulator
#include "select.cu"

extern "C" int run(int blocks, const void* source, const float* squares, const unsigned short* gain,
                   const float* score_weights, const int* kept, const int* fewest, float* smallest,
                   unsigned short* x_out) {
    return run_clusters(blocks, CLUSTER, WARPS, sizeof(Shared),
                        [&] { select_kernel(source, squares, gain, score_weights, kept, fewest, smallest, x_out); });
}
