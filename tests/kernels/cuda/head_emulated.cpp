// head.cu as a function of a shared library.
#include "emulator.h"
// after the macros of the emulator
#include "head.cu"

extern "C" int run(int blocks, const unsigned short* weight, const void* source, const float* squares,
                   const unsigned short* gain, int* length, float* logits) {
    return run_clusters(blocks, CLUSTER, WARPS, sizeof(Shared),
                        [&] { head_kernel(weight, source, squares, gain, length, logits); });
}
