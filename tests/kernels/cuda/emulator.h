// What cuda/*.cu need of a GPU, on a CPU: one thread for each thread, one barrier for each group of them.
// Slow, and exact about who waits for whom and who may read what.
#pragma once
#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

struct Warp {
    std::barrier<> together{32};
    unsigned votes[32];
    unsigned values[32];
};
struct Block {
    explicit Block(int warps, size_t bytes) : together(warps * 32), warps(warps), memory(bytes, std::byte{0xff}) {}
    std::barrier<> together;
    std::vector<Warp> warps;
    std::vector<std::byte> memory;  // of NaN at first
};
struct Cluster {
    Cluster(int blocks, int warps, size_t bytes) : together(blocks * warps * 32) {
        for (int each = 0; each < blocks; ++each) this->blocks.push_back(std::make_unique<Block>(warps, bytes));
    }
    std::barrier<> together;
    std::vector<std::unique_ptr<Block>> blocks;
};
struct Place {
    int thread, block;
    Block* own;
    Cluster* cluster;
    std::optional<std::barrier<>::arrival_token> arrival;
    Warp& warp() const { return own->warps[thread / 32]; }
};
inline thread_local Place place;

struct alignas(16) Row {
    unsigned words[4];
};
struct alignas(16) Four {
    float values[4];
};

inline int thread_index() { return place.thread; }
inline int block_index() { return place.block; }
inline void block_barrier() { place.own->together.arrive_and_wait(); }
inline void warp_barrier() { place.warp().together.arrive_and_wait(); }
inline int bits_of(unsigned mask) { return std::popcount(mask); }
inline unsigned bits_of_float(float value) { return std::bit_cast<unsigned>(value); }
inline float float_of_bits(unsigned bits) { return std::bit_cast<float>(bits); }
inline void count_in_block(int* at) { std::atomic_ref(*at).fetch_add(1); }
inline void wait_for_producer() {}
inline void start_consumer() {}
inline void cluster_arrive() { place.arrival.emplace(place.cluster->together.arrive()); }
inline void cluster_announce() { cluster_arrive(); }
inline void cluster_wait() { place.cluster->together.wait(std::move(*place.arrival)); }

inline unsigned warp_ballot(bool vote) {
    Warp& warp = place.warp();
    warp.votes[place.thread % 32] = vote;
    warp.together.arrive_and_wait();
    unsigned mask = 0;
    for (int lane = 0; lane < 32; ++lane) mask |= warp.votes[lane] << lane;
    warp.together.arrive_and_wait();
    return mask;
}
template <typename T>
inline T warp_exchange(T value, int apart) {
    Warp& warp = place.warp();
    warp.values[place.thread % 32] = std::bit_cast<unsigned>(value);
    warp.together.arrive_and_wait();
    const T other = std::bit_cast<T>(warp.values[(place.thread % 32) ^ apart]);
    warp.together.arrive_and_wait();
    return other;
}
template <typename T>
inline T warp_sum(T value) {
    for (int apart = 16; apart > 0; apart /= 2) value += warp_exchange(value, apart);
    return value;
}
template <typename T>
inline void store_in_block(T* at, int rank, T value) {
    const size_t offset = reinterpret_cast<std::byte*>(at) - place.own->memory.data();
    std::memcpy(place.cluster->blocks[rank]->memory.data() + offset, &value, sizeof value);
}

struct alignas(8) Arrivals {
    unsigned long long state;
};
inline void expect(Arrivals& arrivals, unsigned bytes) { arrivals.state = bytes; }
inline void wait_for_arrivals(Arrivals& arrivals) {
    while (std::atomic_ref(arrivals.state).load() != 0) std::this_thread::yield();
}
template <typename T>
inline void send_to_block(T* at, int rank, T value, Arrivals& arrivals) {
    store_in_block(at, rank, value);
    const size_t offset = reinterpret_cast<std::byte*>(&arrivals) - place.own->memory.data();
    auto* there = reinterpret_cast<Arrivals*>(place.cluster->blocks[rank]->memory.data() + offset);
    std::atomic_ref(there->state).fetch_sub(sizeof value);
}
inline Row streamed_row(const unsigned short* at) {
    Row row;
    std::memcpy(&row, at, sizeof row);
    return row;
}
inline Row cached_row(const unsigned short* at) { return streamed_row(at); }
inline float from_producer(const float* at) { return *at; }
inline unsigned short from_producer(const unsigned short* at) { return *at; }

#if FLOAT16
inline float widened(unsigned bits) {
    const unsigned short half = bits;
    _Float16 value;
    std::memcpy(&value, &half, sizeof value);
    return static_cast<float>(value);
}
inline unsigned short rounded(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    unsigned short bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}
#else
inline float widened(unsigned bits) { return std::bit_cast<float>(bits << 16); }
inline unsigned short rounded(float value) {
    if (std::isnan(value)) return 0x7fff;
    const unsigned bits = std::bit_cast<unsigned>(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif

#define EMULATED
#define WS_DEVICE inline
#define WS_KERNEL(threads, resident) void
#define WS_SHARED(type, name) type& name = *reinterpret_cast<type*>(place.own->memory.data())

// Run a kernel, one cluster after the other.
template <typename Kernel>
inline void run_clusters(int blocks, int cluster_blocks, int warps, size_t bytes, Kernel kernel_call) {
    for (int first = 0; first < blocks; first += cluster_blocks) {
        Cluster cluster(cluster_blocks, warps, bytes);
        std::vector<std::jthread> threads;
        for (int rank = 0; rank < cluster_blocks; ++rank)
            for (int thread = 0; thread < warps * 32; ++thread)
                threads.emplace_back([&, rank, thread] {
                    place = {thread, first + rank, cluster.blocks[rank].get(), &cluster, {}};
                    kernel_call();
                });
    }
}
