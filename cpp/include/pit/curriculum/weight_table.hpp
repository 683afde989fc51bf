// Integer weights of n entries. An entry is found by its place in their running sum, which is what a weighted draw
// needs. Sums of blocks of entries, of blocks of blocks, and so on form a tree without pointers, one cache line per
// node, so finding or changing an entry touches one node per level. Sums are exact, whatever the order of changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace pit {

// Zeroed memory that starts at a cache line.
template <typename T>
class LineArray {
  public:
    explicit LineArray(std::size_t size) : size_(size), data_(allocate(size)) {
        for (std::size_t i = 0; i < size; ++i) {
            data_[i] = T{0};
        }
    }
    T& operator[](std::size_t i) { return data_[i]; }
    const T& operator[](std::size_t i) const { return data_[i]; }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    std::size_t size() const { return size_; }

  private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        void operator()(T* memory) const { ::operator delete[](memory, kLine); }
    };
    static std::unique_ptr<T[], Free> allocate(std::size_t size) {
        return std::unique_ptr<T[], Free>(static_cast<T*>(::operator new[](size * sizeof(T), kLine)));
    }

    std::size_t size_;
    std::unique_ptr<T[], Free> data_;
};

class WeightTable {
  public:
    // The sum of all weights stays below 2^63.
    static constexpr std::int64_t kMaxSize = std::int64_t{1} << 31;

    // Size in [1, 2^31]; every weight is 0. 4.6 bytes per entry.
    explicit WeightTable(std::int64_t size);

    std::int64_t size() const { return size_; }
    std::uint64_t total() const { return levels_.back()[0]; }
    // Error outside [0, size).
    std::uint32_t weight(std::int64_t entry) const;
    // Changes weights one after another, O(log size) each. Error, and no change, for an entry outside [0, size).
    void set(const std::int64_t* entries, const std::uint32_t* weights, std::int64_t count);
    // All weights at once, O(size).
    void assign(const std::uint32_t* weights);
    // For each place the entry e with sum(weights before e) <= place < that + weight(e), O(log size) each. Error unless
    // every place < total().
    void find(const std::uint64_t* places, std::int64_t count, std::int64_t* entries) const;

  private:
    static constexpr std::size_t kLeaf = 16;  // weights of a block
    static constexpr std::size_t kFan = 8;    // sums of a node

    // Walks in flight at the same time, to hide the latency of memory.
    static constexpr std::int64_t kTogether = 32;

    void check(std::int64_t entry) const;
    void check_place(std::uint64_t place) const;
    void set_one(std::size_t index, std::uint32_t weight);
    void find_together(const std::uint64_t* places, std::size_t count, std::int64_t* entries) const;

    std::int64_t size_;
    LineArray<std::uint32_t> weights_;              // padded with zeros to whole blocks
    std::vector<LineArray<std::uint64_t>> levels_;  // sums of blocks first, the total last; padded to whole nodes
};

}  // namespace pit
