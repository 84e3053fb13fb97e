// predicted.cu as a function of a shared library.
#include "emulator.h"
// after the macros of the emulator
#include "predicted.cu"

extern "C" int run(int blocks, const void* source, const float* squares, const unsigned short* gain,
                   const unsigned* signs, const int* limit, const unsigned short* gate_rows,
                   const unsigned short* up_rows, unsigned short* hidden) {
    return run_clusters(blocks, CLUSTER, WARPS, sizeof(Shared),
                        [&] { predicted_kernel(source, squares, gain, signs, limit, gate_rows, up_rows, hidden); });
}
