// A 1x1 convolution of pixels that are in the cache, as a part of a pass that computes others too.
#pragma once
#include "finish.h"
#include "tiles.h"

namespace {

class Pointwise {
 public:
  explicit Pointwise(const GwJob& job)
      : job_(job), in_channels_(job.convolution->in_channels), out_channels_(job.convolution->out_channels),
        groups_(job.convolution->groups), in_width_(in_channels_ / groups_), out_width_(out_channels_ / groups_),
        vectors_(out_width_ > kLanes ? kVectors : 1), panels_(divide_up(out_width_, vectors_ * kLanes)),
        panel_(in_width_ * vectors_ * kLanes) {}

  // Pixels in tiles of about equal size: the first ones are a pixel larger.
  struct Tiles {
    int64_t count, least, larger;
    explicit Tiles(int64_t pixels)
        : count(divide_up(pixels, kPixels)), least(pixels / maximum(1, count)), larger(pixels - count * least) {}
    int64_t first(int64_t tile) const { return tile * least + minimum(tile, larger); }
    int64_t size(int64_t tile) const { return least + (tile < larger); }
  };
  // Pixels that a tile has room for.
  static constexpr int64_t kTilePixels = (kPixels + kLanes - 1) / kLanes * kLanes;

  // Panels of output channels of all groups, and the floats of one's weights.
  int64_t panels() const { return groups_ * panels_; }
  int64_t panel_floats() const { return panel_; }
  int64_t floats() const { return panels() * panel_; }
  int64_t tile_floats(int64_t pixels) const { return Tiles(pixels).count * in_channels_ * kTilePixels; }
  int64_t out_width() const { return out_width_; }

  // Lays out the weights of all panels.
  void pack_all(float* weights) const {
    move_in_parallel(*job_.executor, panels(), floats(), [&](int64_t panel) { pack(panel, weights + panel * panel_); });
  }
  // Lays out those of one: [input channel][lane].
  void pack(int64_t panel, float* to) const {
    const int64_t lanes = vectors_ * kLanes, first = panel % panels_ * lanes;
    const float* from = job_.b + panel / panels_ * out_width_ + first;
    for (int64_t i = 0; i < in_width_; ++i, from += out_channels_)
      for (int64_t q = 0; q < lanes; q += kLanes, to += kLanes) {
        const int64_t left = out_width_ - first - q;
        store(to, left > 0 ? load_some(from + q, left) : Vector{});
      }
  }

  // Lays out a tile, [channel][pixel], of pixels of which `left` may be read.
  void copy_tile(const float* from, int64_t left, int64_t tile, float* tiles) const {
    float* to = tiles + tile * in_channels_ * kTilePixels;
    for (int64_t p = 0; p < kTilePixels; p += kLanes)
      for (int64_t c = 0; c < in_channels_; c += kLanes)
        copy_transposed(
            [&](int64_t r) {
              return p + r < left ? load_some(from + (p + r) * in_channels_ + c, in_channels_ - c) : Vector{};
            },
            in_channels_ - c, to + c * kTilePixels + p, kTilePixels);
  }

  // Where pixels are written: the first one's floats, and how many there are between two.
  struct Place {
    int64_t first, distance;
  };

  // Multiplies tiles with a panel of weights.
  void multiply(const float* tiles, const Tiles& shape, int64_t panel, const float* weights, const Place& to,
                const Finish& finish, Ahead& next) const {
    for (int64_t tile = 0; tile < shape.count; ++tile)
      add_tile(tiles + tile * in_channels_ * kTilePixels, weights, panel,
               {shape.size(tile), to.first + shape.first(tile) * to.distance, to.distance}, finish, next);
  }

 private:
  void add_tile(const float* tile, const float* weights, int64_t panel, Finish::Pixels place, const Finish& finish,
                Ahead& next) const {
    const int64_t group = panel / panels_, first = panel % panels_ * vectors_ * kLanes;
    // A panel's second vector may be empty.
    const int64_t vectors = out_width_ - first > kLanes ? vectors_ : 1, channel = group * out_width_ + first;
    place.first += channel;
    finish.ask(minimum(vectors * kLanes, out_width_ - first), place);
    alignas(64) float sums[kPixels * kVectors * kLanes];
    const Product product{tile + group * in_width_ * kTilePixels, 0, in_width_};
    const Products products{&product, 1, 0, kTilePixels, weights, vectors_ * kLanes};
    compute_tile(place.count, vectors, products, false, sums, {&next, 1});
    finish.write<kPixels>(reinterpret_cast<const Vector*>(sums), vectors, place, channel, out_width_ - first);
  }

  const GwJob& job_;
  int64_t in_channels_, out_channels_, groups_, in_width_, out_width_;
  int64_t vectors_, panels_, panel_;  // vectors of a panel of output channels, panels of a group, floats of one
};

}  // namespace
