// Threads and memory shared by all passes.
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "frame.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace ff {
namespace {

// Free blocks by size; the newest is taken first because it is the warmest. Never destroyed: frames may outlive statics.
struct Pool {
    std::mutex mutex;
    std::multimap<size_t, void*> free;
    size_t held = 0;
};
constexpr size_t kMaxHeld = size_t(512) << 20;

Pool& pool() {
    static Pool* p = new Pool;
    return *p;
}

size_t rounded(size_t bytes) {   // at most a quarter is wasted
    size_t step = 4096;
    while (step * 4 < bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

}  // namespace

Buffer::~Buffer() {
    if (!data_) return;
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    if (p.held + size_ > kMaxHeld) {
        std::free(data_);
        return;
    }
    p.free.emplace(size_, data_);
    p.held += size_;
}

void* Buffer::reserve(size_t bytes) {
    bytes = rounded(bytes ? bytes : 1);
    if (data_ && size_ >= bytes) return data_;
    this->~Buffer();
    data_ = nullptr;
    {
        Pool& p = pool();
        std::lock_guard<std::mutex> lock(p.mutex);
        auto it = p.free.lower_bound(bytes);
        if (it != p.free.end() && it->first <= 2 * bytes) {
            data_ = it->second;
            size_ = it->first;
            p.held -= size_;
            p.free.erase(it);
            return data_;
        }
    }
    data_ = std::aligned_alloc(4096, bytes);
    if (!data_) throw std::bad_alloc();
    size_ = bytes;
    return data_;
}

void run_dynamic(int threads, int64_t count, Body body, void* context) {
#ifdef _OPENMP
    if (threads > 1 && count > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int64_t i = 0; i < count; i++) body(context, omp_get_thread_num(), i);
        return;
    }
#endif
    for (int64_t i = 0; i < count; i++) body(context, 0, i);
}

void run_accumulating(const Work& work, int64_t count, Body body, void* context) {
    if (!work.deterministic) return run_dynamic(work.threads, count, body, context);
    parallel_for(work.threads, kVirtualWorkers, [&](int, int64_t p) {
        for (int64_t i = p; i < count; i += kVirtualWorkers) body(context, (int)p, i);
    });
}

}  // namespace ff
