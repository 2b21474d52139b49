// Tiles of a matrix product whose sums stay in registers, and transposition on the way into scratch memory.
#pragma once
#include "jobs.h"
#include "reading.h"

namespace {

// Pixels by vectors in registers at once: 28 sums of 32 registers, or 12 of 16.
constexpr int kPixels = GW_REGISTERS >= 32 ? 14 : 6;
constexpr int kVectors = 2;
// Input channels by two vectors of a tile of the kernel's gradient; twice as many by one. 6 of 16 registers' instead of
// 4 made the gradient of 1,024 channels 1.2 times as fast.
constexpr int kChannels = GW_REGISTERS >= 32 ? 8 : 6;
constexpr int kMostRows = 2 * kChannels;
// Floats of copied rows that leave room in the second-level cache for weights, outputs and the rows to come.
constexpr int64_t kBlockFloats = 64 << 10;
// Steps of a tile between two times that something is asked for.
constexpr int64_t kStepsTogether = 16;
// As many lines may be asked for at once: more of them kept all else waiting.
constexpr int64_t kFewLines = 12;
// Floats of a kernel's gradient whose sums a task keeps there.
constexpr int64_t kSumFloats = 64 << 10;

// A run of `steps` through both factors: where it begins in the memory of one, and at which step of the other.
struct Product {
  const float* a;
  int64_t b, steps;
};

// Several of them, and what they have in common: where a tile's factors begin in each, and the floats of a step.
struct Products {
  const Product* first;
  int64_t count;
  int64_t a_offset, a_step;
  const float* b;
  int64_t b_step;
  float* copy = nullptr;  // where the factors b that are read are written one after the other, unless it is null
};

// What is asked for while a tile is computed: pieces of one array or two.
struct Aheads {
  Ahead* arrays;
  int64_t count;

  // Whether that is much: asked for at once, it kept all else waiting; a little is asked for with less ado.
  bool are_much() const { return arrays->lines(1) > kFewLines; }
  void ask() const {
    for (int64_t i = 0; i < count; ++i) arrays[i].ask(arrays[i].lines(1));
  }
};

// What a tile does beside its sums: asks for some lines from time to time, copies its factors b.
enum class Beside { kNothing, kAsking, kCopying };

// Where a tile reads its factors, and writes those that it copies.
struct Factors {
  const float *a, *b;
  float* copy;
};

// sums[p][q] += a[p] * b[q], over some steps.
template <int Rows, int Vectors, bool Copies>
GW_INLINE void multiply(Vector* sums, Factors& at, int64_t steps, const Products& products) {
  for (; steps > 0; --steps, at.a += products.a_step, at.b += products.b_step) {
    Vector factors[Vectors];
    // Of small tiles GCC loaded them anew for each row: 3 by 2 took 1.28 times as long.
#pragma GCC unroll 2
    for (int q = 0; q < Vectors; ++q) factors[q] = kept(load(at.b + q * kLanes));
    if constexpr (Copies) {
#pragma GCC unroll 2
      for (int q = 0; q < Vectors; ++q) store(at.copy + q * kLanes, factors[q]);
      at.copy += Vectors * kLanes;
    }
#pragma GCC unroll 16
    for (int p = 0; p < Rows; ++p) {
      const Vector factor = splat(at.a[p]);
#pragma GCC unroll 2
      for (int q = 0; q < Vectors; ++q) sums[p * Vectors + q] += factor * factors[q];
    }
  }
}

// The same over all steps of all products.
template <int Rows, int Vectors, Beside Also>
GW_INLINE void multiply(Vector* sums, const Products& products, const Aheads& aheads) {
  constexpr bool asks = Also != Beside::kNothing, copies = Also == Beside::kCopying;
  int64_t times = 0, lines[2] = {};
  for (int64_t i = 0; asks && i < products.count; ++i) times += divide_up(products.first[i].steps, kStepsTogether);
  for (int64_t i = 0; asks && i < aheads.count; ++i) lines[i] = aheads.arrays[i].lines(times);
  for (const Product *p = products.first, *end = p + products.count; p != end; ++p) {
    Factors at{p->a + products.a_offset, products.b + p->b * products.b_step, nullptr};
    if constexpr (copies) at.copy = products.copy + p->b * Vectors * kLanes;
    if constexpr (asks) {
      for (int64_t left = p->steps; left > 0; left -= kStepsTogether) {
        for (int64_t i = 0; i < aheads.count; ++i) aheads.arrays[i].ask(lines[i]);
        multiply<Rows, Vectors, copies>(sums, at, minimum(left, kStepsTogether), products);
      }
    } else {
      multiply<Rows, Vectors, copies>(sums, at, p->steps, products);
    }
  }
}

// The same from zero (or, with `keep`, from what `out` holds), written to `out`.
template <int Rows, int Vectors, Beside Also>
__attribute__((noinline)) void tile(const Products& products, bool keep, float* out, const Aheads& aheads) {
  Vector sums[Rows * Vectors];
#pragma GCC unroll 32
  for (int i = 0; i < Rows * Vectors; ++i) sums[i] = Vector{};
  if (keep) {
#pragma GCC unroll 32
    for (int i = 0; i < Rows * Vectors; ++i) sums[i] = load(out + i * kLanes);
  }
  multiply<Rows, Vectors, Also>(sums, products, aheads);
#pragma GCC unroll 32
  for (int i = 0; i < Rows * Vectors; ++i) store(out + i * kLanes, sums[i]);
}

typedef void (*Tile)(const Products&, bool, float*, const Aheads&);

template <int Vectors, Beside Also, int... I>
Tile tile_of(int64_t rows, Sequence<I...>) {
  static constexpr Tile all[] = {tile<I + 1, Vectors, Also>...};
  return all[rows - 1];
}
template <Beside Also>
Tile tile_of(int64_t rows, int64_t vectors) {
  return vectors == 1 ? tile_of<1, Also>(rows, MakeSequence<kMostRows>::type{})
                      : tile_of<kVectors, Also>(rows, MakeSequence<kPixels>::type{});
}
// Computes the tile of exactly this size, up to kPixels by kVectors or kMostRows by 1, and asks for what comes next.
void compute_tile(int64_t rows, int64_t vectors, const Products& products, bool keep, float* out,
                  const Aheads& aheads) {
  if (products.copy) return tile_of<Beside::kCopying>(rows, vectors)(products, keep, out, aheads);
  if (aheads.are_much()) return tile_of<Beside::kAsking>(rows, vectors)(products, keep, out, aheads);
  aheads.ask();
  tile_of<Beside::kNothing>(rows, vectors)(products, keep, out, aheads);
}

template <int Distance, int... I>
GW_INLINE void exchange(Vector& a, Vector& b, Sequence<I...>) {
  const Vector low = shuffle<((I & Distance) ? kLanes + I - Distance : I)...>(a, b);
  const Vector high = shuffle<((I & Distance) ? kLanes + I : I + Distance)...>(a, b);
  a = low;
  b = high;
}
template <int Distance>
GW_INLINE void transpose_step(Vector* rows) {
  if constexpr (Distance > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & Distance)) exchange<Distance>(rows[i], rows[i + Distance], typename MakeSequence<kLanes>::type{});
    }
    transpose_step<Distance / 2>(rows);
  }
}
// rows[i][l] becomes rows[l][i].
GW_INLINE void transpose(Vector* rows) { transpose_step<kLanes / 2>(rows); }

// to[c * to_distance + r] = row(r)[c], for `columns` columns; row(r) gives up to a vector's columns.
template <typename Row>
GW_INLINE void copy_transposed(const Row& row, int64_t columns, float* to, int64_t to_distance) {
  Vector values[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) values[r] = row(r);
  transpose(values);
  if (columns >= kLanes) {
#pragma GCC unroll 16
    for (int c = 0; c < kLanes; ++c) store(to + c * to_distance, values[c]);
  } else {
    for (int64_t c = 0; c < columns; ++c) store(to + c * to_distance, values[c]);
  }
}

}  // namespace
