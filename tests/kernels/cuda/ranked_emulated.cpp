// ranked.cu as a function of a shared library.
#include "emulator.h"
// after the macros of the emulator
#include "ranked.cu"

extern "C" int run(int blocks, const unsigned short* x, const unsigned short* scores, const float* smallest,
                   const unsigned short* gate_rows, const unsigned short* up_rows, unsigned short* hidden) {
    return run_clusters(blocks, CLUSTER, WARPS, sizeof(Shared),
                        [&] { ranked_kernel(x, scores, smallest, gate_rows, up_rows, hidden); });
}
