// The pass that makes a kernel: its gradient.
#pragma once
#include "tiles.h"

namespace {

class KernelPass {
 public:
  explicit KernelPass(const GwJob& job)
      : job_(job), c_(*job.convolution), vertical_(vertical_axis(c_, false)), horizontal_(horizontal_axis(c_, false)),
        in_width_(c_.in_channels / c_.groups), out_width_(c_.out_channels / c_.groups),
        vectors_(out_width_ > kLanes ? kVectors : 1), panels_(divide_up(out_width_, vectors_ * kLanes)),
        rows_(vectors_ == 1 ? kMostRows : kChannels), strips_(divide_up(in_width_, rows_)),
        taps_(vertical_.taps * horizontal_.taps), tile_(rows_ * vectors_ * kLanes), panel_(strips_ * taps_ * tile_) {}

  GwStatus run() {
    const int64_t units = c_.groups * panels_, rows = c_.batch * vertical_.out_size;
    // Tasks share the rows, each with sums of its own, and the channels only where the sums are many: what shares the
    // output channels reads the same inputs again, what shares the input channels the same gradient.
    const int64_t pieces = divide_up(units * panel_, kSumFloats);
    const int64_t strip_pieces = c_.groups > 1 || pieces < 4 ? 1 : minimum(strips_, pieces < 16 ? 2 : 4);
    const int64_t unit_pieces = minimum(units, divide_up(pieces, strip_pieces)), shares = strip_pieces * unit_pieces;
    const int64_t parts = maximum(1, minimum(rows, divide_up(4 * job_.executor->threads, shares)));
    totals_ = gw_scratch(GW_CALL_SLOT, size_t(parts * units * panel_));
    if (!totals_) return GW_OUT_OF_MEMORY;
    const GwStatus status = try_parallel(*job_.executor, shares * parts, [&](int64_t task) {
      const int64_t unit = task % unit_pieces, strip = task / unit_pieces % strip_pieces, part = task / shares;
      const Share share{units * unit / unit_pieces, units * (unit + 1) / unit_pieces, strips_ * strip / strip_pieces,
                        strips_ * (strip + 1) / strip_pieces};
      return add(share, rows * part / parts, rows * (part + 1) / parts, totals_ + part * units * panel_);
    });
    if (status != GW_OK) return status;
    move_in_parallel(*job_.executor, units, parts * units * panel_,
                     [&](int64_t unit) { finish(unit, parts, units * panel_); });
    return GW_OK;
  }

 private:
  // Some panels of output channels and some strips of input channels.
  struct Share {
    int64_t first_unit, last_unit, first_strip, last_strip;
  };

  // The sums of a share over some rows of the outputs, a block of rows at a time.
  bool add(const Share& share, int64_t first, int64_t last, float* totals) const {
    const int64_t units = share.last_unit - share.first_unit, strips = share.last_strip - share.first_strip;
    const int64_t g_row = horizontal_.out_size * vectors_ * kLanes, g_rows = units * g_row;
    const int64_t in_row = horizontal_.in_size * strips * rows_ * divide_up(units, panels_) * vertical_.stride;
    const int64_t block = maximum(1, minimum(kBlockFloats / maximum(1, g_rows + in_row), last - first));
    float* memory = gw_scratch(GW_TASK_SLOT, size_t(block * g_rows) + size_t(block) * sizeof(Product) / sizeof(float));
    if (!memory) return false;
    auto* products = reinterpret_cast<Product*>(memory + block * g_rows);
    for (int64_t unit = share.first_unit; unit < share.last_unit; ++unit)
      __builtin_memset(totals + unit * panel_ + share.first_strip * taps_ * tile_, 0,
                       size_t(strips * taps_ * tile_) * sizeof(float));
    for (int64_t n = first; n < last; n += block) {
      const int64_t count = minimum(block, last - n), tiles = units * strips * taps_;
      Ahead next_inputs = ahead_inputs(share, n + count, count, tiles);
      Ahead next_gradient = ahead_gradient(share, n + count, count, tiles);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t unit = share.first_unit; unit < share.last_unit; ++unit)
          copy_gradient(n + i, unit, memory + i * g_rows + (unit - share.first_unit) * g_row);
      for (int64_t unit = share.first_unit; unit < share.last_unit; ++unit)
        for (int64_t strip = share.first_strip; strip < share.last_strip; ++strip)
          for (int64_t tap = 0; tap < taps_; ++tap) {
            next_inputs.ask();
            next_gradient.ask();
            const int64_t channel = unit / panels_ * in_width_ + strip * rows_;
            int64_t used = 0;
            for (int64_t i = 0; i < count; ++i) {
              const float* gradient = memory + i * g_rows + (unit - share.first_unit) * g_row;
              used += product(n + i, tap, channel, gradient, products + used);
            }
            tile_of(minimum(rows_, in_width_ - strip * rows_), vectors_)(
                products, used, horizontal_.stride * c_.in_channels, vectors_ * kLanes, 0, true,
                totals + unit * panel_ + (strip * taps_ + tap) * tile_);
          }
    }
    return true;
  }

  // What a share reads of `count` rows of outputs from row n on.
  Ahead ahead_inputs(const Share& share, int64_t n, int64_t count, int64_t times) const {
    const int64_t first = share.first_unit / panels_ * in_width_ + share.first_strip * rows_;
    const int64_t last = (share.last_unit - 1) / panels_ * in_width_ + minimum(in_width_, share.last_strip * rows_);
    return Ahead(job_.a + input_row(n) * horizontal_.in_size * c_.in_channels + first,
                 count * vertical_.stride * horizontal_.in_size, last - first, c_.in_channels, times);
  }
  Ahead ahead_gradient(const Share& share, int64_t n, int64_t count, int64_t times) const {
    const int64_t first = channel_of(share.first_unit), last = channel_of(share.last_unit);
    return Ahead(job_.b + n * horizontal_.out_size * c_.out_channels + first, count * horizontal_.out_size,
                 last - first, c_.out_channels, times);
  }

  // The first output channel of a unit.
  int64_t channel_of(int64_t unit) const { return unit / panels_ * out_width_ + unit % panels_ * vectors_ * kLanes; }

  // The input row that row n of the outputs begins at, without the padding.
  int64_t input_row(int64_t n) const {
    return n / vertical_.out_size * vertical_.in_size + n % vertical_.out_size * vertical_.stride;
  }

  // What row n of the outputs adds to a tap: its pixels that see the image through it. Returns how many products.
  int64_t product(int64_t n, int64_t tap, int64_t channel, const float* gradient, Product* to) const {
    const int64_t ky = tap / horizontal_.taps, kx = tap % horizontal_.taps;
    const int64_t y = n % vertical_.out_size * vertical_.stride - vertical_.padding + ky * vertical_.dilation;
    if (y < 0 || y >= vertical_.in_size) return 0;
    // Input column of output column j: j * stride + offset.
    const int64_t offset = kx * horizontal_.dilation - horizontal_.padding, stride = horizontal_.stride;
    const int64_t from = offset < 0 ? divide_up(-offset, stride) : 0;
    const int64_t inside = horizontal_.in_size - offset;
    const int64_t to_column = inside <= 0 ? 0 : minimum(horizontal_.out_size, divide_up(inside, stride));
    if (from >= to_column) return 0;
    const int64_t row = n / vertical_.out_size * vertical_.in_size + y;
    *to = {job_.a + (row * horizontal_.in_size + from * stride + offset) * c_.in_channels + channel,
           gradient + from * vectors_ * kLanes, to_column - from};
    return 1;
  }

  void copy_gradient(int64_t n, int64_t unit, float* to) const {
    const int64_t first = unit % panels_ * vectors_ * kLanes;
    const float* from = job_.b + n * horizontal_.out_size * c_.out_channels + channel_of(unit);
    for (int64_t j = 0; j < horizontal_.out_size; ++j, from += c_.out_channels)
      for (int64_t q = 0; q < vectors_; ++q, to += kLanes) {
        const int64_t left = out_width_ - first - q * kLanes;
        store(to, left > 0 ? load_some(from + q * kLanes, left) : Vector{});
      }
  }

  // Adds the parts of a panel, in order, into the kernel's gradient.
  void finish(int64_t unit, int64_t parts, int64_t part_floats) const {
    const int64_t first = unit % panels_ * vectors_ * kLanes;
    for (int64_t tap = 0; tap < taps_; ++tap)
      for (int64_t i = 0; i < in_width_; ++i)
        for (int64_t q = 0; q < vectors_; ++q) {
          const int64_t left = out_width_ - first - q * kLanes;
          if (left <= 0) break;
          const float* from =
              totals_ + unit * panel_ + (i / rows_ * taps_ + tap) * tile_ + (i % rows_ * vectors_ + q) * kLanes;
          Vector sum = load(from);
          for (int64_t part = 1; part < parts; ++part) sum += load(from + part * part_floats);
          store_some(job_.out + (tap * in_width_ + i) * c_.out_channels + channel_of(unit) + q * kLanes, sum, left);
        }
  }

  const GwJob& job_;
  const GwConvolution& c_;
  Axis vertical_, horizontal_;
  int64_t in_width_, out_width_;
  int64_t vectors_, panels_;  // vectors of a panel of output channels, panels of a group
  int64_t rows_, strips_;     // input channels of a tile, tiles of a group
  int64_t taps_, tile_, panel_;
  float* totals_ = nullptr;
};

}  // namespace
