// direct_product.cu as a function of a shared library, one cluster after the other.
#include "direct_product_emulator.h"
// after the macros of the emulator
#include "direct_product.cu"

extern "C" void run(int blocks, const unsigned short* weight, const void* source, const float* squares,
                    const unsigned short* gain, const float* bounds, const unsigned short* bias, void* out,
                    float* out_squares) {
    for (int first = 0; first < blocks; first += CLUSTER) {
        Cluster cluster(CLUSTER, WARPS, sizeof(Shared));
        std::vector<std::jthread> threads;
        for (int rank = 0; rank < CLUSTER; ++rank)
            for (int thread = 0; thread < THREADS; ++thread)
                threads.emplace_back([&, rank, thread] {
                    place = {thread, first + rank, cluster.blocks[rank].get(), &cluster, {}};
                    direct_product(weight, source, squares, gain, bounds, bias, out, out_squares);
                });
    }
}
