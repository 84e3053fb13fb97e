// What cuda/*.cu need of a GPU, on a CPU: a stack of its own for each GPU thread, all in one thread of the machine, which
// goes on with another one at every barrier. Exact about who waits for whom and who may read what: between two barriers
// a GPU thread runs alone, and which one runs first is drawn anew at each, so that whoever reads without waiting reads
// what is not there yet. A wait that nobody can end is reported. What it cannot show is two threads that add to one
// place without an atomic. No header of the standard library is included: they take longer to compile than the kernels.
#pragma once
using size_t = decltype(sizeof 0);
extern "C" {
float expf(float) noexcept;
float exp2f(float) noexcept;
float fabsf(float) noexcept;
float fmaxf(float, float) noexcept;
float sqrtf(float) noexcept;
}

struct Barrier {
    int threads, arrived;
    unsigned turn;
    unsigned arrive() {
        const unsigned mine = turn;
        if (++arrived == threads) arrived = 0, ++turn;
        return mine;
    }
    void wait(unsigned mine);
    void arrive_and_wait() { wait(arrive()); }
};
struct Warp {
    Barrier together;
    unsigned votes[32];
    unsigned values[32];
    unsigned left[32][4], right[32][2];
};
struct Block {
    Barrier together;
    Warp* warps;
    char* memory;  // of NaN at first
};
struct Cluster {
    Barrier together;
    Block* blocks;
};
struct Place {
    int thread, block;
    Block* own;
    Cluster* cluster;
    unsigned arrival;
    Warp& warp() const { return own->warps[thread / 32]; }
};
extern Place* place;  // of the GPU thread that runs
void run_another();   // until it is this one's turn again
void went_on();       // this one did, or ends

template <typename Condition>
inline void wait_while(Condition blocked) {
    while (blocked()) run_another();
    went_on();
}
inline void Barrier::wait(unsigned mine) {
    wait_while([&] { return turn == mine; });
}
template <typename To, typename From>
inline To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &value, sizeof to);
    return to;
}

struct alignas(16) Row {
    unsigned words[4];
};
struct alignas(16) Four {
    float values[4];
};

inline int thread_index() { return place->thread; }
inline int block_index() { return place->block; }
inline void block_barrier() { place->own->together.arrive_and_wait(); }
inline void warp_barrier() { place->warp().together.arrive_and_wait(); }
inline int bits_of(unsigned mask) { return __builtin_popcount(mask); }
inline unsigned bits_of_float(float value) { return same_bits<unsigned>(value); }
inline float float_of_bits(unsigned bits) { return same_bits<float>(bits); }
inline void count_in_block(int* at) { ++*at; }
inline void wait_for_producer() {}
inline void start_consumer() {}
inline void cluster_arrive() { place->arrival = place->cluster->together.arrive(); }
inline void cluster_announce() { cluster_arrive(); }
inline void cluster_wait() { place->cluster->together.wait(place->arrival); }

inline unsigned warp_ballot(bool vote) {
    Warp& warp = place->warp();
    warp.votes[place->thread % 32] = vote;
    warp.together.arrive_and_wait();
    unsigned mask = 0;
    for (int lane = 0; lane < 32; ++lane) mask |= warp.votes[lane] << lane;
    warp.together.arrive_and_wait();
    return mask;
}
template <typename T>
inline T warp_exchange(T value, int apart) {
    Warp& warp = place->warp();
    warp.values[place->thread % 32] = same_bits<unsigned>(value);
    warp.together.arrive_and_wait();
    const T other = same_bits<T>(warp.values[(place->thread % 32) ^ apart]);
    warp.together.arrive_and_wait();
    return other;
}
template <typename T>
inline T warp_sum(T value) {
    for (int apart = 16; apart > 0; apart /= 2) value += warp_exchange(value, apart);
    return value;
}
inline unsigned warp_max(unsigned value) {
    for (int apart = 16; apart > 0; apart /= 2) {
        const unsigned other = warp_exchange(value, apart);
        value = other > value ? other : value;
    }
    return value;
}
inline int rounded_integer(float value) { return __builtin_lrintf(value); }
inline unsigned chosen_bytes(unsigned word, unsigned choice) {
    unsigned found = 0;
    for (int byte = 0; byte < 4; ++byte) {
        const unsigned from = choice >> 4 * byte & 15u;
        found |= (from < 4 ? word >> 8 * from & 255u : 0u) << 8 * byte;
    }
    return found;
}
// As PTX lays the matrices of mma.m16n8k32 out: rows, columns and inner places by lane, register and byte.
inline void add_products(int (&sums)[4], const unsigned (&left)[4], unsigned right, unsigned right_behind) {
    Warp& warp = place->warp();
    const int lane = place->thread % 32;
    __builtin_memcpy(warp.left[lane], left, sizeof left);
    warp.right[lane][0] = right, warp.right[lane][1] = right_behind;
    warp.together.arrive_and_wait();
    for (int each = 0; each < 4; ++each) {
        const int row = lane / 4, behind = each / 2, column = lane % 4 * 2 + each % 2;
        for (int inner = 0; inner < 32; ++inner) {
            const int from = inner % 16 / 4, half = inner / 16, shift = inner % 4 * 8;
            const signed char one = warp.left[row * 4 + from][half * 2 + behind] >> shift;
            const signed char other = warp.right[column * 4 + from][half] >> shift;
            sums[each] += one * other;
        }
    }
    warp.together.arrive_and_wait();
}
template <typename T>
inline void store_in_block(T* at, int rank, T value) {
    const size_t offset = reinterpret_cast<char*>(at) - place->own->memory;
    __builtin_memcpy(place->cluster->blocks[rank].memory + offset, &value, sizeof value);
}

struct alignas(8) Arrivals {
    unsigned long long state;
};
inline void expect(Arrivals& arrivals, unsigned bytes) { arrivals.state = bytes; }
inline void wait_for_arrivals(Arrivals& arrivals) {
    wait_while([&] { return arrivals.state != 0; });
}
template <typename T>
inline void send_to_block(T* at, int rank, T value, Arrivals& arrivals) {
    store_in_block(at, rank, value);
    const size_t offset = reinterpret_cast<char*>(&arrivals) - place->own->memory;
    auto* there = reinterpret_cast<Arrivals*>(place->cluster->blocks[rank].memory + offset);
    there->state -= sizeof value;
}
inline Row streamed_row(const unsigned short* at) {
    Row row;
    __builtin_memcpy(&row, at, sizeof row);
    return row;
}
inline Row cached_row(const unsigned short* at) { return streamed_row(at); }
template <int COUNT>
struct alignas(4 * COUNT) Words {
    unsigned words[COUNT];
};
template <int COUNT>
inline Words<COUNT> streamed_words(const void* at, bool wanted) {
    return wanted ? *static_cast<const Words<COUNT>*>(at) : Words<COUNT>{};
}
inline void ask_for(const void* at) { (void)*static_cast<const volatile char*>(at); }
inline float of_half(unsigned short bits) { return static_cast<float>(same_bits<_Float16>(bits)); }
inline float from_producer(const float* at) { return *at; }
inline unsigned short from_producer(const unsigned short* at) { return *at; }

#if FLOAT16
inline float widened(unsigned bits) {
    const unsigned short half = bits;
    _Float16 value;
    __builtin_memcpy(&value, &half, sizeof value);
    return static_cast<float>(value);
}
inline unsigned short rounded(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    unsigned short bits;
    __builtin_memcpy(&bits, &half, sizeof bits);
    return bits;
}
#else
inline float widened(unsigned bits) { return same_bits<float>(bits << 16); }
inline unsigned short rounded(float value) {
    if (value != value) return 0x7fff;
    const unsigned bits = same_bits<unsigned>(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif

#define EMULATED
#define WS_DEVICE inline
#define WS_DEVICE_APART inline
#define WS_KERNEL(threads, resident) void
#define WS_SHARED(type, name) type& name = *reinterpret_cast<type*>(place->own->memory)

// Run a kernel, one cluster after the other. Returns how many GPU threads wait in vain.
int run_all(int blocks, int cluster_blocks, int warps, size_t bytes, void (*kernel)(const void*), const void* call);

template <typename Kernel>
inline int run_clusters(int blocks, int cluster_blocks, int warps, size_t bytes, Kernel kernel_call) {
    const auto kernel = [](const void* call) { (*static_cast<const Kernel*>(call))(); };
    return run_all(blocks, cluster_blocks, warps, bytes, kernel, &kernel_call);
}
