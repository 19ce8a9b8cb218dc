// Threads and memory shared by all passes.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "frame.h"

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

namespace {

// One parallel call. The caller works too, so a call always finishes even if no helper wakes up in time.
struct Job {
    Body body;
    void* context;
    int64_t count;
    int helpers_wanted;
    std::atomic<int64_t> next{0};
    int joined = 0, running = 0;   // guarded by Team::mutex
    std::condition_variable done;
    std::mutex failure_mutex;
    std::exception_ptr failure;   // the first one, such as no memory; thrown again in the calling thread

    void work(int worker) {
        try {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(context, worker, i);
        } catch (...) {
            std::lock_guard<std::mutex> lock(failure_mutex);
            if (!failure) failure = std::current_exception();
            next.store(count);
        }
    }
};

// Helper threads of the process, shared by all calls: they sleep when idle, never spin, and are not OpenMP's, so they
// do not quarrel with the runtime that torch brings. Never destroyed: helpers may sleep in it at exit.
class Team {
public:
    static Team& instance() {
        static Team* team = new Team;
        return *team;
    }

    void run(Job& job) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            try {
                for (; helpers_ < job.helpers_wanted; helpers_++) std::thread([this] { help(); }).detach();
            } catch (const std::system_error&) {
                job.helpers_wanted = helpers_;   // the process may not have more threads: those it has will do
            }
            jobs_.push_back(&job);
        }
        for (int i = 0; i < job.helpers_wanted; i++) wake_.notify_one();
        job.work(0);
        std::unique_lock<std::mutex> lock(mutex_);
        jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
        job.done.wait(lock, [&] { return job.running == 0; });
        if (job.failure) std::rethrow_exception(job.failure);
    }

private:
    Job* open_job() {
        for (Job* job : jobs_)
            if (job->joined < job->helpers_wanted && job->next.load(std::memory_order_relaxed) < job->count) return job;
        return nullptr;
    }

    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            Job* job = nullptr;
            wake_.wait(lock, [&] { return (job = open_job()) != nullptr; });
            const int worker = ++job->joined;
            job->running++;
            lock.unlock();
            job->work(worker);
            lock.lock();
            if (--job->running == 0) job->done.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<Job*> jobs_;
    int helpers_ = 0;
};

}  // namespace

void run_dynamic(int threads, int64_t count, Body body, void* context) {
    if (threads <= 1 || count <= 1) {
        for (int64_t i = 0; i < count; i++) body(context, 0, i);
        return;
    }
    Job job;
    job.body = body;
    job.context = context;
    job.count = count;
    job.helpers_wanted = (int)std::min<int64_t>(threads, count) - 1;
    Team::instance().run(job);
}

void run_accumulating(const Work& work, int64_t count, Body body, void* context) {
    if (!work.deterministic) return run_dynamic(work.threads, count, body, context);
    parallel_for(work.threads, kVirtualWorkers, [&](int, int64_t p) {
        for (int64_t i = p; i < count; i += kVirtualWorkers) body(context, (int)p, i);
    });
}

}  // namespace ff
