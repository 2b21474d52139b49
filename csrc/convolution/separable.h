// A convolution of narrow groups and the 1x1 convolution that reads its outputs, while these are in the cache.
//
// A task computes some rows of the first into scratch memory, lays them out in tiles of pixels ([channel][pixel]), and
// multiplies these with all weights of the second, so that nothing between the two is ever written to memory. Where
// pixels are few, a task has its own weights instead, and all pixels. An expansion, a 1x1 before the two, is computed
// row by row, as the first of the two reads it.
#pragma once
#include "expansion.h"
#include "lanes_image.h"
#include "pointwise.h"

namespace {

template <int Width>
class SeparablePass {
 public:
  SeparablePass(const GwJob* expansion, const GwJob& grouped, const GwJob& pointwise)
      : expansion_(expansion), grouped_(grouped), job_(grouped), end_(pointwise), c_(*grouped.convolution),
        channels_(c_.out_channels), out_channels_(pointwise.convolution->out_channels), product_(pointwise),
        block_(block()) {}

  GwStatus run() {
    const int64_t rows = c_.batch * c_.out_height, tasks = 4 * job_.executor->threads;
    if (expansion_.is_there()) return run_by_rows(rows, minimum(rows, expanding_tasks()));
    const bool by_panels = rows * c_.out_width <= kFewPixels && product_.panels() >= tasks;
    return by_panels ? run_by_panels(rows, minimum(rows, job_.executor->threads), tasks)
                     : run_by_rows(rows, minimum(rows, tasks));
  }

 private:
  using Tiles = Pointwise::Tiles;
  // Of so few pixels a task's rows have too few for the weights that they read: 49 of 1,024 channels took 1.4 to 1.6
  // times as long.
  static constexpr int64_t kFewPixels = 256;

  // So many that no more than about an eighth of an expansion's rows are computed twice, but one for each thread.
  int64_t expanding_tasks() const {
    const int64_t threads = job_.executor->threads, shared = maximum(1, (c_.kernel_height - 1) * c_.dilation_y);
    return threads * minimum(4, maximum(1, c_.batch * c_.height / (8 * shared * threads)));
  }

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
    const int64_t weight_floats = product_.floats();
    Scratch scratch;
    float* weights = scratch.take(size_t(weight_floats + expansion_.floats() + grouped_.floats()));
    if (!weights) return GW_OUT_OF_MEMORY;
    product_.pack_all(weights);
    expansion_.prepare(weights + weight_floats);
    grouped_.prepare(weights + weight_floats + expansion_.floats());
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
        const Tiles shape(count * c_.out_width);
        Ahead next = ahead(y + count, minimum(last, y + count + block_), shape.count);
        for (int64_t panel = 0; panel < product_.panels(); ++panel)
          product_.multiply(tiles, shape, panel, weights + panel * product_.panel_floats(), place(y), output.finish,
                            next);
      }
      return true;
    });
  }

  // Where pixels are few, the rows of all are computed first; then each task lays out its own weights, and multiplies.
  GwStatus run_by_panels(int64_t rows, int64_t parts, int64_t tasks) {
    const int64_t panels = product_.panels(), most = divide_up(rows, parts), part_floats = tile_floats(most);
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
      float* weights = own.take(size_t(product_.panel_floats()));
      if (!weights) return false;
      const Output output(*this);
      Ahead nothing(nullptr, nullptr, 0, 0, 0, 1);
      for (int64_t panel = panels * task / tasks; panel < panels * (task + 1) / tasks; ++panel) {
        product_.pack(panel, weights);
        for (int64_t part = 0; part < parts; ++part)
          product_.multiply(tiles + part * part_floats, Tiles((first(part + 1) - first(part)) * c_.out_width), panel,
                            weights, place(first(part)), output.finish, nothing);
      }
      return true;
    });
  }

  int64_t tile_floats(int64_t rows) const { return product_.tile_floats(rows * c_.out_width); }

  // What a task needs to compute `most` rows at once. A tile's last pixels are copied with whole vectors of pixels.
  int64_t row_floats(int64_t most) const {
    return round_up((most * c_.out_width + Pointwise::kTilePixels) * channels_, kLanes);
  }
  int64_t making_floats(int64_t most) const {
    return row_floats(most) + expansion_.task_floats() + grouped_.task_floats();
  }

  // One task's rows between the two convolutions, from row `first` on, counted through all images.
  class Making {
   public:
    Making(const SeparablePass& pass, float* memory, int64_t most, int64_t first)
        : pass_(pass), rows_(memory),
          memory_(pass.grouped_.divide(memory + pass.row_floats(most) + pass.expansion_.task_floats())),
          expanding_(pass.expansion_, pass.grouped_.row_shape(), memory_.rows, memory + pass.row_floats(most)),
          making_(pass.grouped_, memory_, first, expanding_.source()), job_(job_to(pass.job_, memory)),
          finish_(job_, 0, Finish::kLine, nothing_) {}
    // Lays out the next rows in tiles.
    void next(int64_t rows, float* tiles) {
      const int64_t width = pass_.c_.out_width, channels = pass_.channels_;
      const Tiles shape(rows * width);
      for (int64_t row = 0, tile = 0; row < rows; ++row) {
        making_.next(row * width * channels, finish_, row + 1 < rows);
        for (; tile < shape.count && shape.first(tile + 1) <= (row + 1) * width; ++tile)
          pass_.product_.copy_tile(rows_ + shape.first(tile) * channels, Pointwise::kTilePixels, tile, tiles);
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
    Expansion::Making expanding_;
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
        : finish(pass.end_, pass.c_.batch * pass.c_.out_height * pass.c_.out_width * pass.out_channels_,
                 pass.product_.out_width(), nothing) {}
  };

  // Where the outputs of row y are written.
  Pointwise::Place place(int64_t y) const { return {y * c_.out_width * out_channels_, out_channels_}; }

  // Asks for what the rows [first, last) read and those before them do not.
  Ahead ahead(int64_t first, int64_t last, int64_t tiles) const {
    const float* image = expansion_.is_there() ? expansion_.image() : job_.a;
    const int64_t row = expansion_.is_there() ? expansion_.row_floats() : c_.width * c_.in_channels;
    const int64_t from = first < last ? grouped_.reach(first - 1) : 0;
    const int64_t rows = first < last ? grouped_.reach(last - 1) - from : 0;
    return Ahead(image + from * row, summand_at(job_.fusion->inputs, from * row), 1, maximum(0, rows) * row, 0,
                 tiles * product_.panels());
  }

  Expansion expansion_;
  ImagePass<Width> grouped_;
  const GwJob &job_, &end_;
  const GwConvolution& c_;
  int64_t channels_, out_channels_;  // of the product
  Pointwise product_;
  int64_t block_;  // rows that are computed at once
};

template <int Width>
GwStatus run_separable(const GwJob* expansion, const GwJob& grouped, const GwJob& pointwise) {
  return SeparablePass<Width>(expansion, grouped, pointwise).run();
}

}  // namespace
