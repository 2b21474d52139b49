// The passes that make an image: forward and input gradient.
#pragma once
#include "tiles.h"

namespace {

class ImagePass {
 public:
  explicit ImagePass(const GwJob& job)
      : job_(job), c_(*job.convolution), transposed_(job.pass == GW_INPUT_GRADIENT),
        vertical_(vertical_axis(c_, transposed_)), horizontal_(horizontal_axis(c_, transposed_)), columns_(horizontal_),
        in_channels_(transposed_ ? c_.out_channels : c_.in_channels),
        out_channels_(transposed_ ? c_.in_channels : c_.out_channels), in_width_(in_channels_ / c_.groups),
        out_width_(out_channels_ / c_.groups), vectors_(out_width_ > kLanes ? kVectors : 1),
        panels_(divide_up(out_width_, vectors_ * kLanes)), taps_(vertical_.taps * horizontal_.taps),
        quotients_(round_up(divide_up(columns_.count, horizontal_.step()) + kPixels, kLanes)),
        plane_(quotients_ * horizontal_.step()), row_(in_channels_ * plane_),
        panel_(taps_ * in_width_ * vectors_ * kLanes) {}

  GwStatus run() {
    weights_ = gw_scratch(GW_CALL_SLOT, size_t(c_.groups * panels_ * panel_));
    if (!weights_) return GW_OUT_OF_MEMORY;
    const int64_t panels = c_.groups * panels_;
    move_in_parallel(*job_.executor, panels, panels * panel_,
                     [&](int64_t panel) { pack(panel / panels_, panel % panels_); });
    const int64_t seen = rows_seen(vertical_), fitting = kBlockFloats / maximum(1, row_);
    block_ = maximum(1, (fitting - seen) / vertical_.step() * vertical_.phases());
    const RowTasks tasks(c_.batch, vertical_.out_size, vertical_.out_size, job_.executor->threads);
    return try_parallel(*job_.executor, tasks.tasks,
                        [&](int64_t task) { return rows(tasks.image(task), tasks.first(task), tasks.last(task)); });
  }

 private:
  // Lays out the weights of a panel of output channels: [tap][input channel][lane].
  void pack(int64_t group, int64_t panel) const {
    const int64_t lanes = vectors_ * kLanes, first = panel * lanes, count = minimum(lanes, out_width_ - first);
    float* to = weights_ + (group * panels_ + panel) * panel_;
    for (int64_t tap = 0; tap < taps_; ++tap, to += in_width_ * lanes) {
      if (transposed_) {
        // The kernel's rows are this pass's output channels: HWIO (tap, out channel of the group, in channel).
        const float* from = job_.b + (tap * out_width_ + first) * in_channels_ + group * in_width_;
        for (int64_t q = 0; q < vectors_; ++q)
          for (int64_t i = 0; i < in_width_; i += kLanes)
            copy_transposed(
                [&](int64_t r) {
                  const int64_t o = q * kLanes + r;
                  return o < count ? load_some(from + o * in_channels_ + i, in_width_ - i) : Vector{};
                },
                in_width_ - i, to + i * lanes + q * kLanes, lanes);
      } else {
        const float* from = job_.b + tap * in_width_ * out_channels_ + group * out_width_ + first;
        for (int64_t i = 0; i < in_width_; ++i)
          for (int64_t q = 0; q < vectors_; ++q) {
            const int64_t left = count - q * kLanes;
            store(to + i * lanes + q * kLanes,
                  left > 0 ? load_some(from + i * out_channels_ + q * kLanes, left) : Vector{});
          }
      }
    }
  }

  // Copies a row of the image that the pass reads: [channel][column % step][column / step], zero outside.
  void copy_row(const float* from, float* to) const {
    const int64_t step = horizontal_.step();
    for (int64_t residue = 0; residue < step; ++residue) {
      if (!is_read(residue)) continue;
      for (int64_t q = 0; q < quotients_; q += kLanes)
        for (int64_t channel = 0; channel < in_channels_; channel += kLanes)
          copy_transposed(
              [&](int64_t r) {
                const int64_t column = columns_.low + (q + r) * step + residue;
                return column >= 0 && column < horizontal_.in_size
                           ? load_some(from + column * in_channels_ + channel, in_channels_ - channel)
                           : Vector{};
              },
              in_channels_ - channel, to + channel * plane_ + residue * quotients_ + q, plane_);
    }
  }
  bool is_read(int64_t residue) const {
    for (int64_t phase = 0; phase < horizontal_.phases(); ++phase)
      for (int64_t tap = 0, offset; tap < horizontal_.taps; ++tap) {
        if (!horizontal_.sees(phase, tap, &offset)) continue;
        if ((offset - columns_.low) % horizontal_.step() == residue) return true;
      }
    return false;
  }

  // What one phase of an output row multiplies, with the first panel's weights.
  struct PhaseRow {
    int64_t y, phase;
    Product* products;
    int64_t count;
  };

  bool rows(int64_t image, int64_t first, int64_t last) const {
    const int64_t most = minimum(block_, last - first), phases = minimum(horizontal_.phases(), horizontal_.out_size);
    // The rows that a block's outputs see, a few more where the image ends.
    const int64_t span = divide_up(most, vertical_.phases()) * vertical_.step();
    const int64_t slots = minimum(rows_seen(vertical_) + 1 + span, vertical_.in_size);
    const int64_t product_floats = most * phases * taps_ * int64_t(sizeof(Product) / sizeof(float));
    const int64_t list_floats = most * phases * int64_t(sizeof(PhaseRow) / sizeof(float));
    constexpr int64_t words = sizeof(int64_t) / sizeof(float);
    float* memory = gw_scratch(GW_TASK_SLOT, size_t(slots * (row_ + words) + product_floats + list_floats));
    if (!memory) return false;
    auto* products = reinterpret_cast<Product*>(memory + slots * row_);
    auto* list = reinterpret_cast<PhaseRow*>(memory + slots * row_ + product_floats);
    Ring ring(memory, reinterpret_cast<int64_t*>(memory + slots * row_ + product_floats + list_floats), slots, row_);
    const Finish finish(job_, c_.batch * vertical_.out_size * horizontal_.out_size * out_channels_, out_width_);
    const int64_t in_row = horizontal_.in_size * in_channels_;
    const float* from = job_.a + image * vertical_.in_size * in_row;
    const int64_t tiles = c_.groups * panels_ * phases * divide_up(horizontal_.count(0), kPixels);
    for (int64_t y = first; y < last; y += block_) {
      const int64_t end = minimum(last, y + block_);
      // What the next block sees beside this one's rows, of the next image at the end of this one.
      const int64_t reach = end / vertical_.phases() * vertical_.step() + rows_seen(vertical_) - 1 - vertical_.padding;
      Ahead ahead(from + maximum(0, reach) * in_row, 1, (end - y) / vertical_.phases() * vertical_.step() * in_row, 0,
                  tiles * (end - y));
      PhaseRow* list_end = list;
      Product* next = products;
      for (int64_t row = y; row < end; ++row)
        for (int64_t phase = 0; phase < phases; ++phase, ++list_end) {
          const int64_t count = find_products(from, row, phase, ring, next);
          *list_end = {image * vertical_.out_size + row, phase, next, count};
          next += count;
        }
      // A panel's weights are used for all rows of the block before the next panel's are read.
      for (int64_t panel = 0; panel < c_.groups * panels_; ++panel)
        for (const PhaseRow* row = list; row != list_end; ++row) add_row(*row, panel, finish, ahead);
    }
    return true;
  }

  int64_t find_products(const float* image, int64_t y, int64_t phase, Ring& ring, Product* to) const {
    const int64_t in_row = horizontal_.in_size * in_channels_, step = horizontal_.step();
    int64_t count = 0;
    for (int64_t ky = 0, y_offset; ky < vertical_.taps; ++ky) {
      if (!vertical_.sees(y % vertical_.phases(), ky, &y_offset)) continue;
      const int64_t in_y = y / vertical_.phases() * vertical_.step() + y_offset;
      if (in_y < 0 || in_y >= vertical_.in_size) continue;
      const float* row = ring.row(in_y, [&](int64_t index, float* copy) { copy_row(image + index * in_row, copy); });
      for (int64_t kx = 0, x_offset; kx < horizontal_.taps; ++kx) {
        if (!horizontal_.sees(phase, kx, &x_offset)) continue;
        const int64_t column = x_offset - columns_.low, tap = ky * horizontal_.taps + kx;
        to[count++] = {row + column % step * quotients_ + column / step, weights_ + tap * in_width_ * vectors_ * kLanes,
                       in_width_};
      }
    }
    return count;
  }

  void add_row(const PhaseRow& row, int64_t panel, const Finish& finish, Ahead& ahead) const {
    const int64_t group = panel / panels_, first = panel % panels_ * vectors_ * kLanes;
    const int64_t pixels = horizontal_.count(row.phase), distance = horizontal_.phases() * out_channels_;
    const int64_t start = (row.y * horizontal_.out_size + row.phase) * out_channels_ + group * out_width_ + first;
    for (int64_t j = 0, size; j < pixels; j += size) {
      size = minimum(kPixels, pixels - j);
      ahead.ask();
      alignas(64) float sums[kPixels * kVectors * kLanes];
      tile_of(size, vectors_)({row.products, row.count, group * in_width_ * plane_ + j, panel * panel_, plane_,
                               vectors_ * kLanes},
                              false, sums);
      finish.write<kPixels>(reinterpret_cast<const Vector*>(sums), vectors_, size, start + j * distance, distance,
                            group * out_width_ + first, out_width_ - first);
    }
  }

  const GwJob& job_;
  const GwConvolution& c_;
  bool transposed_;
  Axis vertical_, horizontal_;
  Columns columns_;
  int64_t in_channels_, out_channels_, in_width_, out_width_;
  int64_t vectors_, panels_;  // vectors of a panel of output channels, panels of a group
  int64_t taps_;
  int64_t quotients_, plane_, row_, panel_;
  int64_t block_ = 1;  // rows of outputs whose inputs are copied at once
  float* weights_ = nullptr;
};

}  // namespace
