// The part of the emulator that is the same for all kernels: who runs when.
#include "emulator.h"

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include <ucontext.h>

namespace {
constexpr size_t STACK = 1 << 16;

struct Thread : Place {
    ucontext_t context;
    bool finished;
};
ucontext_t scheduler;
bool moved;  // whether any thread went on since each was last asked
void (*kernel)(const void*);
const void* call;

void run_thread() {
    kernel(call);
    went_on();
    static_cast<Thread*>(place)->finished = true;
}
}  // namespace

Place* place;
void run_another() { swapcontext(&static_cast<Thread*>(place)->context, &scheduler); }
void went_on() { moved = true; }

int run_all(int blocks, int cluster_blocks, int warps, size_t bytes, void (*of)(const void*), const void* with) {
    kernel = of, call = with;
    const int block_threads = warps * 32, count = cluster_blocks * block_threads;
    std::vector<Thread> threads(count);
    const std::unique_ptr<char[]> stacks(new char[count * STACK]);
    std::minstd_rand drawn;  // the same at every run
    for (int first = 0; first < blocks; first += cluster_blocks) {
        const Warp fresh{{32, 0, 0}, {}, {}};
        std::vector<Warp> all_warps(cluster_blocks * warps, fresh);
        std::vector<std::vector<char>> memories(cluster_blocks, std::vector<char>(bytes + 64, '\xff'));
        std::vector<Block> own(cluster_blocks);
        for (int rank = 0; rank < cluster_blocks; ++rank) {
            void* aligned = memories[rank].data();
            size_t space = bytes + 64;
            own[rank] = {{block_threads, 0, 0}, &all_warps[rank * warps], nullptr};
            own[rank].memory = static_cast<char*>(std::align(64, bytes, aligned, space));
        }
        Cluster cluster{{count, 0, 0}, own.data()};
        std::vector<Thread*> left;
        for (int each = 0; each < count; ++each) {
            const int rank = each / block_threads;
            Thread& one = threads[each];
            static_cast<Place&>(one) = {each % block_threads, first + rank, &own[rank], &cluster, 0};
            one.finished = false;
            getcontext(&one.context);
            one.context.uc_stack.ss_sp = stacks.get() + each * STACK;
            one.context.uc_stack.ss_size = STACK;
            one.context.uc_link = &scheduler;
            makecontext(&one.context, run_thread, 0);
            left.push_back(&one);
        }
        while (!left.empty()) {
            moved = false;
            std::shuffle(left.begin(), left.end(), drawn);
            for (Thread* one : left) {
                place = one;
                swapcontext(&scheduler, &one->context);
            }
            left.erase(std::remove_if(left.begin(), left.end(), [](Thread* one) { return one->finished; }),
                       left.end());
            if (!moved) return left.size();
        }
    }
    return 0;
}
