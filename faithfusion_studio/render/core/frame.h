// What one camera's rasterisation leaves behind, and the plain structs that cross between the passes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace ff {

constexpr int kTile = 16;          // pixels per tile side; a tile is 16 blocks of 4x4 pixels
constexpr int kBatch = 32;         // list entries handled together
constexpr int64_t kChunk = 1024;   // Gaussians projected together; their visible ones are stored densely
constexpr int kRow = 16;           // floats per Gaussian in the backward sums
constexpr int kVirtualWorkers = 8; // fixed partition of the tiles in deterministic mode
constexpr float kAlphaMin = 1.0f / 255.0f;
constexpr float kAlphaMax = 0.999f;
constexpr float kStop = 1e-4f;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLog2AlphaMin = -7.99435343685885793f;
constexpr float kLog2AlphaMax = -0.00144341686f;

// Memory from a process-wide pool: pages already touched are used again by the next frame.
class Buffer {
public:
    Buffer() = default;
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    void* reserve(size_t bytes);
    template <class T>
    inline __attribute__((always_inline)) T* get(size_t count) { return (T*)reserve(count * sizeof(T)); }
    template <class T>
    inline __attribute__((always_inline)) T* as() const { return (T*)data_; }

private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

struct Inputs {
    int64_t n = 0;
    const float *means = nullptr, *quats = nullptr, *scales = nullptr, *opacities = nullptr;
    const float* colors = nullptr;   // [n, features], or with sh_degree the first coefficient of every Gaussian, 3 floats
    const float* bands = nullptr;    // the higher SH coefficients of every Gaussian, 3 floats each
    int64_t color_stride = 0, band_stride = 0;   // floats from one Gaussian to the next
    int features = 0;                // colour channels without depth
    int sh_degree = -1;
    bool depth_channel = false;      // depth is appended as the last channel
    int channels() const { return features + (depth_channel ? 1 : 0); }
};

struct Camera {
    float R[9], t[3], origin[3];
    float fx, fy, cx, cy;
    int width, height;
    float near_plane, far_plane, radius_clip, eps2d;
    bool antialiased;
};

// One visible Gaussian on the screen, one cache line. d = pixel - mean; a, b, c = conic * log2(e) / 2, so that
// alpha = 2^(log2_opacity - d.(a b; b c).d). The last four describe its ellipse {alpha >= 1/255} (slightly enlarged):
// at height dy it spans slope dy +- sqrt(width2 - bend dy^2), and it reaches furthest right at dy = peak.
struct Record {
    float mx, my, a, b, c, log2_opacity, opacity, depth;
    float color[4];
    float slope, width2, bend, peak;
};
static_assert(sizeof(Record) == 64, "one cache line");

struct TileBox {   // tiles a Gaussian may touch, both ends included; empty when last_row < first_row
    int16_t first_row, last_row, first_col, last_col;
};

struct Frame {
    Inputs in;   // pointers are valid only while the call that set them runs
    Camera cam;
    int64_t chunks = 0, visible = 0, pairs = 0;
    int tiles_x = 0, tiles_y = 0;
    Buffer records;        // Record [chunks * kChunk], dense from the start of each chunk ("slots")
    Buffer gaussians;      // int32 [slots]: index of the Gaussian
    Buffer boxes;          // TileBox [slots]
    Buffer radii;          // int32 [slots, 2]
    Buffer clamped;        // uint8 [slots]: bit ch set where the colour was clamped at 0
    Buffer chunk_counts;   // int32 [chunks]
    Buffer order;          // uint32 [visible]: slots by depth, then index
    Buffer tile_starts;    // int64 [tiles + 1] into entries
    Buffer entries;        // uint32 [pairs]: slots, front to back in each tile
    Buffer batch_starts;   // int64 [tiles + 1]
    Buffer contributed;    // uint32 [batches, 16]: which of 32 entries touched each block
    Buffer final_t;        // float [tiles, 256]: remaining transmittance, block by block
    Buffer stops;          // float [tiles, 256]: list position at which the pixel stopped
    // Made when a second pass first asks: the slots that reached any pixel, each chunk's from its own first slot.
    mutable Buffer reached;          // int32 [slots]
    mutable Buffer reached_counts;   // int32 [chunks]
    mutable bool reached_known = false;
    int64_t tiles() const { return (int64_t)tiles_x * tiles_y; }
    int64_t slots() const { return chunks * kChunk; }
};

struct Gradients {   // all [n, ...]; null = not wanted
    bool fresh = true;   // overwrite the arrays (which may hold anything) instead of adding to them
    float *means = nullptr, *quats = nullptr, *scales = nullptr, *opacities = nullptr, *colors = nullptr;
    float *bands = nullptr;     // as Inputs: [n, K - 1, 3] apart from colors, or inside [n, K, 3]
    float *viewmat = nullptr;   // [4, 4]
    float *means2d = nullptr, *absgrad = nullptr;   // [n, 2], overwritten
};

struct Work {   // how a call is to be run
    int threads = 1;
    bool deterministic = false;
    int workers() const { return deterministic ? kVirtualWorkers : threads; }
};

using Body = void (*)(void* context, int worker, int64_t index);
// Calls body(worker, index) for all indices, dynamically scheduled; worker < threads.
void run_dynamic(int threads, int64_t count, Body body, void* context);
// Splits the tiles among work.workers() accumulators: dynamic, or a fixed partition when deterministic.
void run_accumulating(const Work& work, int64_t count, Body body, void* context);

template <class Fn>
inline __attribute__((always_inline)) void parallel_for(int threads, int64_t count, Fn&& fn) {
    using T = typename std::remove_reference<Fn>::type;
    run_dynamic(threads, count, [](void* c, int w, int64_t i) { (*(T*)c)(w, i); }, (void*)&fn);
}
template <class Fn>
inline __attribute__((always_inline)) void parallel_accumulate(const Work& work, int64_t count, Fn&& fn) {
    using T = typename std::remove_reference<Fn>::type;
    run_accumulating(work, count, [](void* c, int w, int64_t i) { (*(T*)c)(w, i); }, (void*)&fn);
}

void bin_tiles(Frame& frame, const Work& work);   // tiles.cpp: depth order and tile lists

struct Reached {   // visible Gaussians that were blended into at least one pixel
    const int32_t* slots;
    const int32_t* counts;
    // Calls visit(slots, count, next) for up to sixteen of a chunk at a time; `next` more follow behind them.
    template <class Visit>
    inline __attribute__((always_inline)) void for_each_sixteen(int64_t chunk, Visit&& visit) const {
        const int32_t* own = slots + chunk * kChunk;
        for (int i = 0, n = counts[chunk]; i < n; i += 16) {
            const int count = n - i < 16 ? n - i : 16, left = n - i - count;
            visit(own + i, count, left < 16 ? left : 16);
        }
    }
};
Reached reached(const Frame& frame, int threads);   // tiles.cpp

}  // namespace ff
