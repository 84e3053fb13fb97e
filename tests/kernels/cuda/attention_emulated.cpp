// attention.cu as a function of a shared library.
#include "emulator.h"
// after the macros of the emulator
#include "attention.cu"

extern "C" int run(int blocks, const float* sums, const unsigned short* bias, unsigned short* keys,
                   unsigned short* values, const float* cosines, const float* sines, const int* lengths,
                   const int* firsts, unsigned short* x_out, const unsigned short* query_gain,
                   const unsigned short* key_gain, const float* scores) {
    return run_clusters(blocks, CLUSTER, WARPS, sizeof(Shared), [&] {
        attention_kernel(sums, bias, keys, values, cosines, sines, lengths, firsts, x_out, query_gain,
                        key_gain, scores);
    });
}
