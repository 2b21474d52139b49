// A 1x1 convolution whose outputs a convolution of narrow groups reads, row by row, or none.
#pragma once
#include "pointwise.h"
#include "rows.h"

namespace {

class Expansion {
 public:
  // Of no job there is none, and nothing of it needs memory.
  explicit Expansion(const GwJob* job) : job_(job) {}

  bool is_there() const { return job_; }
  // What it reads, and the floats of a row of that.
  const float* image() const { return job_->a; }
  int64_t row_floats() const { return job_->convolution->width * job_->convolution->in_channels; }

  // What is prepared for all tasks, in so many floats.
  int64_t floats() const { return job_ ? Pointwise(*job_).floats() : 0; }
  void prepare(float* memory) {
    weights_ = memory;
    if (job_) Pointwise(*job_).pack_all(memory);
  }

  int64_t task_floats() const { return job_ ? Pointwise(*job_).tile_floats(job_->convolution->width) : 0; }

  // One task's rows of outputs, of the shape of `rows`, which has some of them; `memory` has task_floats().
  class Making {
   public:
    Making(const Expansion& expansion, const RowShape& shape, float* rows, float* memory)
        : expansion_(expansion), shape_(shape), rows_(rows), tiles_(memory) {
      if (!expansion.is_there()) return;
      source_ = {[](void* self, int64_t row, float* to) { static_cast<Making*>(self)->write(row, to); }, this,
                 expansion.image(), expansion.row_floats()};
    }
    Making(const Making&) = delete;
    // Null where there is no expansion.
    const RowSource* source() const { return expansion_.is_there() ? &source_ : nullptr; }

   private:
    void write(int64_t row, float* to) const {
      GwJob job = *expansion_.job_;
      job.out = rows_;
      Gathering nothing(nullptr, 0, false);
      const Pointwise product(job);
      const Finish finish(job, 0, product.out_width(), nothing);
      const int64_t channels = job.convolution->in_channels;
      const float* from = job.a + (row * shape_.width + shape_.first) * channels;
      const Pointwise::Tiles tiles(shape_.count);
      for (int64_t tile = 0; tile < tiles.count; ++tile)
        product.copy_tile(from + tiles.first(tile) * channels, tiles.size(tile), tile, tiles_);
      Ahead asked(nullptr, nullptr, 0, 0, 0, 1);
      for (int64_t panel = 0; panel < product.panels(); ++panel)
        product.multiply(tiles_, tiles, panel, expansion_.weights_ + panel * product.panel_floats(),
                         {to - rows_, shape_.pixel}, finish, asked);
    }

    const Expansion& expansion_;
    const RowShape shape_;
    float *rows_, *tiles_;
    RowSource source_{};
  };

 private:
  const GwJob* job_;
  const float* weights_ = nullptr;
};

}  // namespace
