// What *.cu need of a GPU of compute capability 9.0 or newer.
#pragma once

#define WS_DEVICE __device__ __forceinline__
#define WS_DEVICE_APART __device__ __noinline__
#define WS_KERNEL(threads, resident) extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(threads, resident)
#define WS_SHARED(type, name) __shared__ type name

// Sixteen bytes of a row, eight columns.
struct alignas(16) Row {
    unsigned words[4];
};
struct alignas(16) Four {
    float values[4];
};

WS_DEVICE int thread_index() { return threadIdx.x; }
WS_DEVICE int block_index() { return blockIdx.x; }
WS_DEVICE void block_barrier() { __syncthreads(); }
WS_DEVICE void warp_barrier() { __syncwarp(); }
WS_DEVICE unsigned warp_ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }
template <typename T>
WS_DEVICE T warp_exchange(T value, int apart) {
    return __shfl_xor_sync(0xffffffffu, value, apart);
}
WS_DEVICE int bits_of(unsigned mask) { return __popc(mask); }
WS_DEVICE unsigned bits_of_float(float value) { return __float_as_uint(value); }
WS_DEVICE float float_of_bits(unsigned bits) { return __uint_as_float(bits); }
WS_DEVICE void count_in_block(int* at) { atomicAdd(at, 1); }

// The sum of a value over the lanes, the same in all of them.
template <typename T>
WS_DEVICE T warp_sum(T value) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) value += warp_exchange(value, apart);
    return value;
}

WS_DEVICE unsigned warp_max(unsigned value) { return __reduce_max_sync(0xffffffffu, value); }
WS_DEVICE int rounded_integer(float value) { return __float2int_rn(value); }

// Bytes 0 to 3 of a word, and 0 for 4, by the four lowest nibbles of a choice.
WS_DEVICE unsigned chosen_bytes(unsigned word, unsigned choice) { return __byte_perm(word, 0u, choice); }

// Add to sums (16, 8) the product of signed bytes (16, 32) and (32, 8), laid out over a warp as mma.m16n8k32 says.
WS_DEVICE void add_products(int (&sums)[4], const unsigned (&left)[4], unsigned right, unsigned right_behind) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right), "r"(right_behind));
}

// Programmatic dependent launch: wait for the kernel before, and let the one behind start.
WS_DEVICE void wait_for_producer() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
WS_DEVICE void start_consumer() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Say that this thread block runs. Nothing is ordered by that, which an arrival below waits for all its stores to be.
WS_DEVICE void cluster_announce() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
WS_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Where the same place lies in the shared memory of another thread block of the cluster.
WS_DEVICE unsigned place_in_block(const void* at, int rank) {
    unsigned here = static_cast<unsigned>(__cvta_generic_to_shared(at)), there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    return there;
}

// A count of bytes that other thread blocks of the cluster will have stored here; no barrier of all stores is needed.
struct alignas(8) Arrivals {
    unsigned long long state;
};
WS_DEVICE void expect(Arrivals& arrivals, unsigned bytes) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(&arrivals));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
WS_DEVICE void wait_for_arrivals(Arrivals& arrivals) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(&arrivals));
    unsigned done = 0;
    while (!done)
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(at)
                     : "memory");
}
WS_DEVICE void send_to_block(float* at, int rank, float value, Arrivals& arrivals) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                     place_in_block(at, rank)),
                 "f"(value), "r"(place_in_block(&arrivals, rank))
                 : "memory");
}
WS_DEVICE void send_to_block(Four* at, int rank, Four value, Arrivals& arrivals) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     place_in_block(at, rank)),
                 "f"(value.values[0]), "f"(value.values[1]), "f"(value.values[2]), "f"(value.values[3]),
                 "r"(place_in_block(&arrivals, rank))
                 : "memory");
}

// Weights are read once a token: they need not stay in the first cache.
WS_DEVICE Row streamed_row(const unsigned short* at) {
    Row row;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(row.words[0]), "=r"(row.words[1]), "=r"(row.words[2]), "=r"(row.words[3])
        : "l"(at));
    return row;
}

template <int COUNT>
struct alignas(4 * COUNT) Words {
    unsigned words[COUNT];
};
// Zeros where it is not wanted, without a branch; asked for where it stands.
template <int COUNT>
WS_DEVICE Words<COUNT> streamed_words(const void* at, bool wanted) {
    Words<COUNT> read{};
    if constexpr (COUNT == 4)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];}"
            : "+r"(read.words[0]), "+r"(read.words[1]), "+r"(read.words[2]), "+r"(read.words[3])
            : "l"(at), "r"(static_cast<unsigned>(wanted)));
    else if constexpr (COUNT == 2)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];}"
            : "+r"(read.words[0]), "+r"(read.words[1])
            : "l"(at), "r"(static_cast<unsigned>(wanted)));
    else
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.L1::no_allocate.u32 %0, [%1];}"
            : "+r"(read.words[0])
            : "l"(at), "r"(static_cast<unsigned>(wanted)));
    return read;
}

WS_DEVICE void ask_for(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// What earlier launches wrote and this one may append to, from the second cache; asked for where it stands.
WS_DEVICE Row cached_row(const unsigned short* at) {
    Row row;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(row.words[0]), "=r"(row.words[1]), "=r"(row.words[2]), "=r"(row.words[3])
                 : "l"(at));
    return row;
}

// What another kernel wrote, from the second cache, which all multiprocessors share.
WS_DEVICE float from_producer(const float* at) {
    float value;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(at) : "memory");
    return value;
}
WS_DEVICE unsigned short from_producer(const unsigned short* at) {
    unsigned short bits;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(bits) : "l"(at) : "memory");
    return bits;
}

WS_DEVICE float of_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

#if FLOAT16
WS_DEVICE float widened(unsigned bits) { return of_half(static_cast<unsigned short>(bits)); }
WS_DEVICE unsigned short rounded(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
WS_DEVICE float widened(unsigned bits) { return __uint_as_float(bits << 16); }
WS_DEVICE unsigned short rounded(float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif
