// A convolution of narrow groups and the 1x1 convolution that reads its outputs, while these are in the cache.
//
// A task computes some rows of the first into scratch memory, lays them out in tiles of pixels ([channel][pixel]), and
// multiplies these with all weights of the second, so that nothing between the two is ever written to memory.
#pragma once
#include "lanes_image.h"
#include "tiles.h"

namespace {

template <int Width>
class SeparablePass {
 public:
  SeparablePass(const GwJob& grouped, const GwJob& pointwise)
      : grouped_(grouped), job_(grouped), product_(pointwise), c_(*grouped.convolution), channels_(c_.out_channels),
        out_channels_(pointwise.convolution->out_channels), groups_(pointwise.convolution->groups),
        in_width_(channels_ / groups_), out_width_(out_channels_ / groups_),
        vectors_(out_width_ > kLanes ? kVectors : 1), panels_(divide_up(out_width_, vectors_ * kLanes)),
        panel_(in_width_ * vectors_ * kLanes), block_(maximum(1, kBlockFloats / (c_.out_width * channels_))) {}

  GwStatus run() {
    const int64_t rows = c_.batch * c_.out_height, tasks = minimum(rows, 4 * job_.executor->threads);
    Scratch scratch;
    float* memory = scratch.take(size_t(grouped_.floats() + groups_ * panels_ * panel_));
    if (!memory) return GW_OUT_OF_MEMORY;
    grouped_.prepare(memory);
    weights_ = memory + grouped_.floats();
    const int64_t panels = groups_ * panels_;
    move_in_parallel(*job_.executor, panels, panels * panel_, [&](int64_t panel) { pack(panel); });
    return try_parallel(*job_.executor, tasks,
                        [&](int64_t task) { return add_rows(rows * task / tasks, rows * (task + 1) / tasks); });
  }

 private:
  // Floats between two channels of a tile.
  static constexpr int64_t kTilePixels = (kPixels + kLanes - 1) / kLanes * kLanes;

  // Lays out the weights of a panel of output channels: [input channel][lane].
  void pack(int64_t panel) const {
    const int64_t lanes = vectors_ * kLanes, first = panel % panels_ * lanes;
    const float* from = product_.b + panel / panels_ * out_width_ + first;
    float* to = weights_ + panel * panel_;
    for (int64_t i = 0; i < in_width_; ++i, from += out_channels_)
      for (int64_t q = 0; q < lanes; q += kLanes, to += kLanes) {
        const int64_t left = out_width_ - first - q;
        store(to, left > 0 ? load_some(from + q, left) : Vector{});
      }
  }

  // A block's pixels, in tiles of about equal size: the first ones are a pixel larger.
  struct Tiles {
    int64_t count, least, larger;
    explicit Tiles(int64_t pixels)
        : count(divide_up(pixels, kPixels)), least(pixels / count), larger(pixels - count * least) {}
    int64_t first(int64_t tile) const { return tile * least + minimum(tile, larger); }
    int64_t size(int64_t tile) const { return least + (tile < larger); }
  };

  // The rows [first, last), counted through all images.
  bool add_rows(int64_t first, int64_t last) const {
    const int64_t width = c_.out_width, most = minimum(block_, last - first) * width;
    // A tile's last pixels are copied with whole vectors of pixels.
    const int64_t row_floats = round_up((most + kTilePixels) * channels_, kLanes);
    const int64_t tile_floats = Tiles(most).count * channels_ * kTilePixels;
    Scratch scratch;
    float* rows = scratch.take(size_t(row_floats + tile_floats + grouped_.task_floats()));
    if (!rows) return false;
    float* tiles = rows + row_floats;
    const typename ImagePass<Width>::Memory memory = grouped_.divide(tiles + tile_floats);
    GwJob here = job_;
    here.out = rows;
    Gathering nothing(nullptr, 0, false);
    const Finish between(here, 0, Finish::kLine, nothing);
    const Finish finish(product_, c_.batch * c_.out_height * width * out_channels_, out_width_, nothing);
    typename ImagePass<Width>::Making making(grouped_, memory, first);
    for (int64_t y = first; y < last; y += block_) {
      const int64_t count = minimum(block_, last - y);
      const Tiles shape(count * width);
      for (int64_t row = 0, tile = 0; row < count; ++row) {
        making.next(row * width * channels_, between, row + 1 < count);
        for (; tile < shape.count && shape.first(tile) + shape.size(tile) <= (row + 1) * width; ++tile)
          copy_tile(rows + shape.first(tile) * channels_, tiles + tile * channels_ * kTilePixels);
      }
      Ahead next = ahead(y + count, minimum(last, y + count + block_), shape.count);
      for (int64_t panel = 0; panel < groups_ * panels_; ++panel)
        for (int64_t tile = 0; tile < shape.count; ++tile)
          add_tile(tiles + tile * channels_ * kTilePixels, panel, y * width + shape.first(tile), shape.size(tile),
                   finish, next);
    }
    return true;
  }

  // Asks for what the rows [first, last) read and those before them do not.
  Ahead ahead(int64_t first, int64_t last, int64_t tiles) const {
    const int64_t row = c_.width * c_.in_channels;
    const int64_t from = first < last ? grouped_.reach(first - 1) : 0;
    const int64_t rows = first < last ? grouped_.reach(last - 1) - from : 0;
    return Ahead(job_.a + from * row, summand_at(job_.fusion->inputs, from * row), 1, maximum(0, rows) * row, 0,
                 tiles * groups_ * panels_);
  }

  void copy_tile(const float* from, float* to) const {
    for (int64_t p = 0; p < kTilePixels; p += kLanes)
      for (int64_t c = 0; c < channels_; c += kLanes)
        copy_transposed([&](int64_t r) { return load_some(from + (p + r) * channels_ + c, channels_ - c); },
                        channels_ - c, to + c * kTilePixels + p, kTilePixels);
  }

  void add_tile(const float* tile, int64_t panel, int64_t pixel, int64_t size, const Finish& finish,
                Ahead& next) const {
    const int64_t group = panel / panels_, first = panel % panels_ * vectors_ * kLanes;
    // A panel's second vector may be empty.
    const int64_t vectors = out_width_ - first > kLanes ? vectors_ : 1, channel = group * out_width_ + first;
    const Finish::Pixels place{size, pixel * out_channels_ + channel, out_channels_};
    finish.ask(minimum(vectors * kLanes, out_width_ - first), place);
    alignas(64) float sums[kPixels * kVectors * kLanes];
    const Product product{tile + group * in_width_ * kTilePixels, weights_ + panel * panel_, in_width_};
    compute_tile(size, vectors, {&product, 1, 0, 0, kTilePixels, vectors_ * kLanes}, false, sums, {&next, 1});
    finish.write<kPixels>(reinterpret_cast<const Vector*>(sums), vectors, place, channel, out_width_ - first);
  }

  ImagePass<Width> grouped_;
  const GwJob &job_, &product_;
  const GwConvolution& c_;
  int64_t channels_, out_channels_, groups_, in_width_, out_width_;  // of the product
  int64_t vectors_, panels_, panel_;  // vectors of a panel of output channels, panels of a group, floats of one
  int64_t block_;                     // rows that are computed at once
  float* weights_ = nullptr;
};

template <int Width>
GwStatus run_separable(const GwJob& grouped, const GwJob& pointwise) {
  return SeparablePass<Width>(grouped, pointwise).run();
}

}  // namespace
