// A convolution of narrow groups and the 1x1 convolution that reads its outputs, while these are in the cache.
//
// A task computes some rows of the first into scratch memory, lays them out in tiles of pixels ([channel][pixel]), and
// multiplies these with all weights of the second, so that nothing between the two is ever written to memory. Where
// pixels are few, a task has its own weights instead, and all pixels.
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
        panel_(in_width_ * vectors_ * kLanes), block_(block()) {}

  GwStatus run() {
    const int64_t rows = c_.batch * c_.out_height, tasks = 4 * job_.executor->threads;
    const bool by_panels = rows * c_.out_width <= kFewPixels && groups_ * panels_ >= tasks;
    return by_panels ? run_by_panels(rows, minimum(rows, job_.executor->threads), tasks)
                     : run_by_rows(rows, minimum(rows, tasks));
  }

 private:
  // Of so few pixels a task's rows have too few for the weights that they read: 49 of 1,024 channels took 1.4 to 1.6
  // times as long.
  static constexpr int64_t kFewPixels = 256;
  // Floats between two channels of a tile.
  static constexpr int64_t kTilePixels = (kPixels + kLanes - 1) / kLanes * kLanes;

  // As many rows as leave room in the cache, or fewer whose pixels fill their tiles better.
  int64_t block() const {
    const int64_t most = kBlockFloats / (c_.out_width * channels_);
    if (most >= kPixels) return most / kPixels * kPixels;
    int64_t best = 1;
    for (int64_t rows = 2; rows <= most; ++rows) {
      if (rows * Tiles(best * c_.out_width).count >= best * Tiles(rows * c_.out_width).count) best = rows;
    }
    return best;
  }

  // Each task computes some rows, and of them all outputs.
  GwStatus run_by_rows(int64_t rows, int64_t tasks) {
    const int64_t panels = groups_ * panels_;
    Scratch scratch;
    float* weights = scratch.take(size_t(panels * panel_ + grouped_.floats()));
    if (!weights) return GW_OUT_OF_MEMORY;
    grouped_.prepare(weights + panels * panel_);
    move_in_parallel(*job_.executor, panels, panels * panel_,
                     [&](int64_t panel) { pack(panel, weights + panel * panel_); });
    return try_parallel(*job_.executor, tasks, [&](int64_t task) {
      const int64_t first = rows * task / tasks, last = rows * (task + 1) / tasks;
      const int64_t most = minimum(block_, last - first);
      Scratch own;
      float* tiles = own.take(size_t(tile_floats(most) + making_floats(most)));
      if (!tiles) return false;
      const Output output(*this);
      Making making(*this, tiles + tile_floats(most), most, first);
      for (int64_t y = first, count; y < last; y += count) {
        count = minimum(block_, last - y);
        making.next(count, tiles);
        Ahead next = ahead(y + count, minimum(last, y + count + block_), Tiles(count * c_.out_width).count);
        for (int64_t panel = 0; panel < panels; ++panel)
          multiply(tiles, panel, weights + panel * panel_, y, count, output, next);
      }
      return true;
    });
  }

  // Where pixels are few, the rows of all are computed first; then each task lays out its own weights, and multiplies.
  GwStatus run_by_panels(int64_t rows, int64_t parts, int64_t tasks) {
    const int64_t panels = groups_ * panels_, most = divide_up(rows, parts), part_floats = tile_floats(most);
    Scratch scratch;
    float* tiles = scratch.take(size_t(parts * part_floats + grouped_.floats()));
    if (!tiles) return GW_OUT_OF_MEMORY;
    grouped_.prepare(tiles + parts * part_floats);
    const auto first = [&](int64_t part) { return rows * part / parts; };
    const GwStatus status = try_parallel(*job_.executor, parts, [&](int64_t part) {
      Scratch own;
      float* memory = own.take(size_t(making_floats(most)));
      if (!memory) return false;
      Making(*this, memory, most, first(part)).next(first(part + 1) - first(part), tiles + part * part_floats);
      return true;
    });
    if (status != GW_OK) return status;
    return try_parallel(*job_.executor, tasks, [&](int64_t task) {
      Scratch own;
      float* weights = own.take(size_t(panel_));
      if (!weights) return false;
      const Output output(*this);
      Ahead nothing(nullptr, nullptr, 0, 0, 0, 1);
      for (int64_t panel = panels * task / tasks; panel < panels * (task + 1) / tasks; ++panel) {
        pack(panel, weights);
        for (int64_t part = 0; part < parts; ++part)
          multiply(tiles + part * part_floats, panel, weights, first(part), first(part + 1) - first(part), output,
                   nothing);
      }
      return true;
    });
  }

  // Lays out the weights of a panel of output channels: [input channel][lane].
  void pack(int64_t panel, float* to) const {
    const int64_t lanes = vectors_ * kLanes, first = panel % panels_ * lanes;
    const float* from = product_.b + panel / panels_ * out_width_ + first;
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

  int64_t tile_floats(int64_t rows) const { return Tiles(rows * c_.out_width).count * channels_ * kTilePixels; }

  // What a task needs to compute `most` rows at once. A tile's last pixels are copied with whole vectors of pixels.
  int64_t row_floats(int64_t most) const { return round_up((most * c_.out_width + kTilePixels) * channels_, kLanes); }
  int64_t making_floats(int64_t most) const { return row_floats(most) + grouped_.task_floats(); }

  // One task's rows between the two convolutions, from row `first` on, counted through all images.
  class Making {
   public:
    Making(const SeparablePass& pass, float* memory, int64_t most, int64_t first)
        : pass_(pass), rows_(memory), memory_(pass.grouped_.divide(memory + pass.row_floats(most))),
          making_(pass.grouped_, memory_, first), job_(job_to(pass.job_, memory)),
          finish_(job_, 0, Finish::kLine, nothing_) {}
    // Lays out the next rows in tiles.
    void next(int64_t rows, float* tiles) {
      const int64_t width = pass_.c_.out_width, channels = pass_.channels_;
      const Tiles shape(rows * width);
      for (int64_t row = 0, tile = 0; row < rows; ++row) {
        making_.next(row * width * channels, finish_, row + 1 < rows);
        for (; tile < shape.count && shape.first(tile + 1) <= (row + 1) * width; ++tile)
          pass_.copy_tile(rows_ + shape.first(tile) * channels, tiles + tile * channels * kTilePixels);
      }
    }

   private:
    static GwJob job_to(GwJob job, float* rows) {
      job.out = rows;
      return job;
    }
    const SeparablePass& pass_;
    float* rows_;
    const typename ImagePass<Width>::Memory memory_;
    typename ImagePass<Width>::Making making_;
    const GwJob job_;
    Gathering nothing_{nullptr, 0, false};
    const Finish finish_;
  };

  // The end of the product, for a task.
  struct Output {
    Gathering nothing{nullptr, 0, false};
    Finish finish;
    explicit Output(const SeparablePass& pass)
        : finish(pass.product_, pass.c_.batch * pass.c_.out_height * pass.c_.out_width * pass.out_channels_,
                 pass.out_width_, nothing) {}
  };

  // Multiplies a block of rows from row y on with a panel of weights.
  void multiply(const float* tiles, int64_t panel, const float* weights, int64_t y, int64_t rows, const Output& output,
                Ahead& next) const {
    const Tiles shape(rows * c_.out_width);
    for (int64_t tile = 0; tile < shape.count; ++tile)
      add_tile(tiles + tile * channels_ * kTilePixels, weights, panel, y * c_.out_width + shape.first(tile),
               shape.size(tile), output.finish, next);
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

  void add_tile(const float* tile, const float* weights, int64_t panel, int64_t pixel, int64_t size,
                const Finish& finish, Ahead& next) const {
    const int64_t group = panel / panels_, first = panel % panels_ * vectors_ * kLanes;
    // A panel's second vector may be empty.
    const int64_t vectors = out_width_ - first > kLanes ? vectors_ : 1, channel = group * out_width_ + first;
    const Finish::Pixels place{size, pixel * out_channels_ + channel, out_channels_};
    finish.ask(minimum(vectors * kLanes, out_width_ - first), place);
    alignas(64) float sums[kPixels * kVectors * kLanes];
    const Product product{tile + group * in_width_ * kTilePixels, 0, in_width_};
    const Products products{&product, 1, 0, kTilePixels, weights, vectors_ * kLanes};
    compute_tile(size, vectors, products, false, sums, {&next, 1});
    finish.write<kPixels>(reinterpret_cast<const Vector*>(sums), vectors, place, channel, out_width_ - first);
  }

  ImagePass<Width> grouped_;
  const GwJob &job_, &product_;
  const GwConvolution& c_;
  int64_t channels_, out_channels_, groups_, in_width_, out_width_;  // of the product
  int64_t vectors_, panels_, panel_;  // vectors of a panel of output channels, panels of a group, floats of one
  int64_t block_;                     // rows that are computed at once
};

template <int Width>
GwStatus run_separable(const GwJob& grouped, const GwJob& pointwise) {
  return SeparablePass<Width>(grouped, pointwise).run();
}

}  // namespace
