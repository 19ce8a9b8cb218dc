// Depth order and tile lists: one stable radix sort of the Gaussians, then a stable counting sort into tiles.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <vector>

#include "frame.h"

namespace ff {
namespace {

struct Key {
    uint32_t depth, slot;
};

uint32_t sortable(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Three stable passes of 11 bits over static ranges, one per thread: the order does not depend on the thread count.
void radix_sort(Key* keys, Key* spare, int64_t n, int threads) {
    constexpr int kBins = 2048;
    const int parts = n < 16384 ? 1 : threads;
    Buffer memory;
    int64_t* histogram = memory.get<int64_t>((size_t)parts * kBins);
    for (int shift = 0; shift < 33; shift += 11) {
        parallel_for(threads, parts, [&](int, int64_t p) {
            int64_t* h = histogram + p * kBins;
            std::fill(h, h + kBins, 0);
            for (int64_t i = n * p / parts; i < n * (p + 1) / parts; i++) h[keys[i].depth >> shift & (kBins - 1)]++;
        });
        int64_t total = 0;
        for (int bin = 0; bin < kBins; bin++)
            for (int p = 0; p < parts; p++) {
                int64_t c = histogram[p * kBins + bin];
                histogram[p * kBins + bin] = total;
                total += c;
            }
        parallel_for(threads, parts, [&](int, int64_t p) {
            int64_t* h = histogram + p * kBins;
            for (int64_t i = n * p / parts; i < n * (p + 1) / parts; i++)
                spare[h[keys[i].depth >> shift & (kBins - 1)]++] = keys[i];
        });
        std::swap(keys, spare);
    }
}

struct Pair {
    uint32_t tile, slot;
};

// Pairs in the order they were found, in blocks from the memory pool.
class PairList {
public:
    static constexpr size_t kBlock = 1 << 16;
    void add(uint32_t tile, uint32_t slot) {
        if (used_ == kBlock) {
            blocks_.emplace_back();
            end_ = blocks_.back().get<Pair>(kBlock);
            used_ = 0;
        }
        end_[used_++] = {tile, slot};
    }
    template <class Visit>
    void for_each(Visit&& visit) const {
        for (const Buffer& block : blocks_) {
            const Pair* pairs = block.as<Pair>();
            const size_t n = &block == &blocks_.back() ? used_ : kBlock;
            for (size_t i = 0; i < n; i++) visit(pairs[i]);
        }
    }

private:
    std::deque<Buffer> blocks_;   // a deque never moves its elements
    Pair* end_ = nullptr;
    size_t used_ = kBlock;
};

// Calls visit(tile) for the tiles of a box whose pixel centres the ellipse may touch, row by row.
template <class Visit>
inline void for_each_tile(const Frame& f, const Record& r, const TileBox& box, Visit&& visit) {
    for (int row = box.first_row; row <= box.last_row; row++) {
        const float top = row * kTile + 0.49f - r.my, bottom = row * kTile + 15.51f - r.my;
        const float right_at = std::min(std::max(r.peak, top), bottom), left_at = std::min(std::max(-r.peak, top), bottom);
        const float right2 = r.width2 - r.bend * right_at * right_at, left2 = r.width2 - r.bend * left_at * left_at;
        if (right2 < 0 || left2 < 0) continue;
        const float right = r.mx + r.slope * right_at + std::sqrt(right2), left = r.mx + r.slope * left_at - std::sqrt(left2);
        const float x_first = std::max(0.0f, std::ceil(left - 0.51f));
        const float x_last = std::min((float)f.cam.width - 1, std::floor(right - 0.49f));
        if (!(x_first <= x_last)) continue;
        const int64_t base = (int64_t)row * f.tiles_x;
        for (int col = (int)x_first / kTile; col <= (int)x_last / kTile; col++) visit(base + col);
    }
}

// The tiles of sorted Gaussians [begin, end), counted per tile. A box one tile high or wide needs no closer look.
void find_pairs(const Frame& f, int64_t begin, int64_t end, int64_t* counts, PairList& found) {
    const uint32_t* order = f.order.as<uint32_t>();
    const TileBox* boxes = f.boxes.as<TileBox>();
    const Record* records = f.records.as<Record>();
    constexpr int kFar = 32, kNear = 12;
    for (int64_t i = begin; i < end; i++) {
        if (i + kFar < end) __builtin_prefetch(boxes + order[i + kFar]);
        if (i + kNear < end) {
            const uint32_t next = order[i + kNear];
            if (boxes[next].last_row > boxes[next].first_row && boxes[next].last_col > boxes[next].first_col)
                __builtin_prefetch(records + next);
        }
        const uint32_t slot = order[i];
        const TileBox box = boxes[slot];
        auto take = [&](int64_t tile) {
            counts[tile]++;
            found.add((uint32_t)tile, slot);
        };
        if (box.last_row > box.first_row && box.last_col > box.first_col)
            for_each_tile(f, records[slot], box, take);
        else
            for (int row = box.first_row; row <= box.last_row; row++)
                for (int col = box.first_col; col <= box.last_col; col++) take((int64_t)row * f.tiles_x + col);
    }
}

void sort_by_depth(Frame& f, const Work& work) {
    const int32_t* counts = f.chunk_counts.as<int32_t>();
    Buffer starts_memory, keys_memory, spare_memory;
    int64_t* starts = starts_memory.get<int64_t>(f.chunks + 1);
    starts[0] = 0;
    for (int64_t c = 0; c < f.chunks; c++) starts[c + 1] = starts[c] + counts[c];
    f.visible = starts[f.chunks];
    Key *keys = keys_memory.get<Key>(f.visible), *spare = spare_memory.get<Key>(f.visible);
    parallel_for(work.threads, f.chunks, [&](int, int64_t c) {
        const Record* records = f.records.as<Record>() + c * kChunk;
        for (int i = 0; i < counts[c]; i++)
            keys[starts[c] + i] = {sortable(records[i].depth), (uint32_t)(c * kChunk + i)};
    });
    radix_sort(keys, spare, f.visible, work.threads);
    uint32_t* order = f.order.get<uint32_t>(f.visible);
    for (int64_t i = 0; i < f.visible; i++) order[i] = spare[i].slot;   // three passes end in the spare array
}

}  // namespace

void bin_tiles(Frame& f, const Work& work) {
    f.tiles_x = (f.cam.width + kTile - 1) / kTile;
    f.tiles_y = (f.cam.height + kTile - 1) / kTile;
    const int64_t tiles = f.tiles();
    sort_by_depth(f, work);
    const int parts = f.visible < 4096 ? 1 : work.threads;
    Buffer memory;
    int64_t* histogram = memory.get<int64_t>((size_t)parts * tiles);
    std::vector<PairList> found(parts);
    parallel_for(work.threads, parts, [&](int, int64_t p) {
        int64_t* h = histogram + p * tiles;
        std::fill(h, h + tiles, 0);
        find_pairs(f, f.visible * p / parts, f.visible * (p + 1) / parts, h, found[p]);
    });
    int64_t *starts = f.tile_starts.get<int64_t>(tiles + 1), *batches = f.batch_starts.get<int64_t>(tiles + 1);
    int64_t total = 0, batch_total = 0;
    for (int64_t tile = 0; tile < tiles; tile++) {
        starts[tile] = total;
        batches[tile] = batch_total;
        for (int p = 0; p < parts; p++) {
            int64_t c = histogram[p * tiles + tile];
            histogram[p * tiles + tile] = total;
            total += c;
        }
        batch_total += (total - starts[tile] + kBatch - 1) / kBatch;
    }
    starts[tiles] = f.pairs = total;
    batches[tiles] = batch_total;
    uint32_t* entries = f.entries.get<uint32_t>(total);
    f.contributed.get<uint32_t>(16 * batch_total);
    f.final_t.get<float>(256 * tiles);
    f.stops.get<float>(256 * tiles);
    parallel_for(work.threads, parts, [&](int, int64_t p) {
        int64_t* next = histogram + p * tiles;
        found[p].for_each([&](const Pair& pair) { entries[next[pair.tile]++] = pair.slot; });
    });
}

// Most visible Gaussians of a street hide behind a facade: what is done per Gaussian after a blend can leave them out.
Reached reached(const Frame& f, int threads) {
    if (f.reached_known) return {f.reached.as<int32_t>(), f.reached_counts.as<int32_t>()};
    Buffer memory;
    uint8_t* seen = memory.get<uint8_t>(f.slots());
    const int32_t* visible = f.chunk_counts.as<int32_t>();
    parallel_for(threads, f.chunks, [&](int, int64_t c) { std::memset(seen + c * kChunk, 0, visible[c]); });
    parallel_for(threads, f.tiles(), [&](int, int64_t tile) {
        const uint32_t* entries = f.entries.as<uint32_t>() + f.tile_starts.as<int64_t>()[tile];
        const int64_t first = f.batch_starts.as<int64_t>()[tile], end = f.batch_starts.as<int64_t>()[tile + 1];
        for (int64_t batch = first; batch < end; batch++, entries += kBatch) {
            const uint32_t* masks = f.contributed.as<uint32_t>() + batch * 16;
            uint32_t touched = 0;
            for (int b = 0; b < 16; b++) touched |= masks[b];
            for (; touched; touched &= touched - 1) __atomic_store_n(seen + entries[__builtin_ctz(touched)], 1, __ATOMIC_RELAXED);
        }
    });
    int32_t *slots = f.reached.get<int32_t>(f.slots()), *counts = f.reached_counts.get<int32_t>(f.chunks);
    parallel_for(threads, f.chunks, [&](int, int64_t c) {
        int n = 0;
        for (int64_t slot = c * kChunk; slot < c * kChunk + visible[c]; slot++) {
            slots[c * kChunk + n] = (int32_t)slot;
            n += seen[slot];
        }
        counts[c] = n;
    });
    f.reached_known = true;
    return {slots, counts};
}

}  // namespace ff
