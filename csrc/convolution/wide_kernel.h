// The pass that makes a kernel: its gradient.
#pragma once
#include "tiles.h"

namespace {

class KernelPass {
 public:
  explicit KernelPass(const GwJob& job)
      : job_(job), c_(*job.convolution), vertical_(vertical_axis(c_, false)), horizontal_(horizontal_axis(c_, false)),
        in_width_(c_.in_channels / c_.groups), out_width_(c_.out_channels / c_.groups),
        joined_(c_.dilation_x == 1 && in_width_ < kMostRows ? c_.kernel_width : 1), factors_(joined_ * in_width_),
        columns_(horizontal_), vectors_(out_width_ > kLanes ? kVectors : 1),
        panels_(divide_up(out_width_, vectors_ * kLanes)), rows_(rows_of_tile()), strips_(divide_up(factors_, rows_)),
        taps_(vertical_.taps * horizontal_.taps / joined_), tile_(rows_ * vectors_ * kLanes),
        panel_(strips_ * taps_ * tile_),
        reads_in_place_(c_.groups == 1 && strips_ * taps_ <= kFewTiles && !job.reading_of_b().mean) {
    if (joined_ == 1) columns_.low = 0, columns_.count = horizontal_.in_size;
  }

  GwStatus run() {
    const int64_t units = c_.groups * panels_, rows = c_.batch * vertical_.out_size;
    // Tasks share the rows, each with sums of its own, and the channels only where the sums are many: what shares the
    // output channels reads the same inputs again, what shares the input channels the same gradient.
    const int64_t pieces = divide_up(units * panel_, kSumFloats);
    const int64_t strip_pieces = c_.groups > 1 || joined_ > 1 || pieces < 4 ? 1 : minimum(strips_, pieces < 16 ? 2 : 4);
    const int64_t unit_pieces = minimum(units, divide_up(pieces, strip_pieces)), shares = strip_pieces * unit_pieces;
    const int64_t parts = maximum(1, minimum(rows, divide_up(4 * job_.executor->threads, shares)));
    Scratch scratch;
    totals_ = scratch.take(size_t(parts * units * panel_));
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
  // Those of joined taps are as many as fit, and about equally many in each tile.
  int64_t rows_of_tile() const {
    if (joined_ == 1) return vectors_ == 1 ? kMostRows : kChannels;
    return divide_up(factors_, divide_up(factors_, vectors_ == 1 ? kMostRows : kPixels));
  }

  // Some panels of output channels and some strips of input channels.
  struct Share {
    int64_t first_unit, last_unit, first_strip, last_strip;
  };

  // What a task needs of its thread's memory.
  struct Memory {
    Scratch scratch;
    float *gradient, *inputs;
    Product* products;       // of the first panel and strip, for each tap those of a block's rows
    int64_t *counts, *tags;  // of a tap's products; of the inputs' rows
    int64_t g_row, g_rows;   // floats of a copied row of the gradient for a panel, and for a share
    // Floats of a copied row of the inputs: from a strip to the next, for a group, and for a share.
    int64_t strip_row, group_row, in_row;
    int64_t block, slots;  // rows of outputs at once, rows of inputs that are kept
  };
  bool find_memory(const Share& share, int64_t most_rows, Memory* m) const {
    constexpr int64_t words = sizeof(int64_t) / sizeof(float);
    const int64_t units = share.last_unit - share.first_unit, strips = share.last_strip - share.first_strip;
    m->g_row = horizontal_.out_size * vectors_ * kLanes, m->g_rows = units * m->g_row;
    m->strip_row = joined_ > 1 ? rows_ : columns_.count * rows_;
    // Copied by whole vectors, the last pixel is written past its end.
    m->group_row = joined_ > 1 ? columns_.count * in_width_ : strips * m->strip_row;
    m->in_row = groups(share) * m->group_row + 2 * kLanes;
    const int64_t fitting = kBlockFloats / (m->g_rows + m->in_row * vertical_.stride);
    m->block = maximum(1, minimum(minimum(fitting, most_rows), vertical_.out_size));
    m->slots = minimum(rows_seen(vertical_) + (m->block - 1) * vertical_.stride, maximum(1, vertical_.in_size));
    const int64_t g_floats = m->block * m->g_rows, in_floats = round_up(m->slots * m->in_row, kLanes);
    const int64_t product_floats = m->block * taps_ * int64_t(sizeof(Product) / sizeof(float));
    m->gradient = m->scratch.take(size_t(g_floats + in_floats + product_floats + (taps_ + m->slots) * words));
    if (!m->gradient) return false;
    m->inputs = m->gradient + g_floats;
    m->products = reinterpret_cast<Product*>(m->inputs + in_floats);
    m->counts = reinterpret_cast<int64_t*>(m->inputs + in_floats + product_floats);
    m->tags = m->counts + taps_;
    return true;
  }
  int64_t groups(const Share& share) const { return (share.last_unit - 1) / panels_ + 1 - share.first_unit / panels_; }

  // The sums of a share over some rows of the outputs, a block of rows of one image at a time.
  bool add(const Share& share, int64_t first, int64_t last, float* totals) const {
    Memory memory;
    if (!find_memory(share, last - first, &memory)) return false;
    const int64_t units = share.last_unit - share.first_unit, strips = share.last_strip - share.first_strip;
    for (int64_t unit = share.first_unit; unit < share.last_unit; ++unit)
      __builtin_memset(totals + unit * panel_ + share.first_strip * taps_ * tile_, 0,
                       size_t(strips * taps_ * tile_) * sizeof(float));
    Ring inputs(memory.inputs, memory.tags, memory.slots, memory.in_row);
    for (int64_t n = first, count; n < last; n += count) {
      count = minimum(minimum(memory.block, last - n), vertical_.out_size - n % vertical_.out_size);
      const int64_t tiles = units * strips * taps_;
      Ahead next[] = {ahead_inputs(share, n + count, count, tiles), ahead_gradient(share, n + count, count, tiles)};
      const Gradient gradient = find_gradient(share, n, count, memory);
      find_products(share, n, count, gradient.row, inputs, memory);
      for (int64_t unit = share.first_unit; unit < share.last_unit; ++unit)
        for (int64_t strip = share.first_strip; strip < share.last_strip; ++strip) {
          const int64_t rows = minimum(rows_, factors_ - strip * rows_);
          const int64_t group = unit / panels_ - share.first_unit / panels_;
          const int64_t a_offset = group * memory.group_row + (strip - share.first_strip) * memory.strip_row;
          float* sums = totals + unit * panel_ + strip * taps_ * tile_;
          for (int64_t tap = 0; tap < taps_; ++tap) {
            compute_tile(
                rows, vectors_,
                {memory.products + tap * memory.block, memory.counts[tap], a_offset, horizontal_.stride * pixel(),
                 gradient.first + (unit - share.first_unit) * gradient.panel, gradient.step},
                true, sums + tap * tile_, {next, 2});
          }
        }
    }
    return true;
  }

  // Where tiles read a block of the outputs' gradient: floats from a panel to the next and of a step, steps of a row.
  struct Gradient {
    const float* first;
    int64_t panel, step, row;
  };

  // Copied unless few tiles read it. In place the last vectors read into later pixels, which the last of all lack.
  Gradient find_gradient(const Share& share, int64_t n, int64_t count, const Memory& memory) const {
    const int64_t lanes = vectors_ * kLanes;
    const int64_t later = (c_.batch * vertical_.out_size - n - count) * horizontal_.out_size * c_.out_channels;
    if (reads_in_place_ && later >= lanes) {
      return {job_.b + n * horizontal_.out_size * c_.out_channels + channel_of(share.first_unit), lanes,
              c_.out_channels, horizontal_.out_size};
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t unit = share.first_unit; unit < share.last_unit; ++unit)
        copy_gradient(n + i, unit, memory.gradient + i * memory.g_rows + (unit - share.first_unit) * memory.g_row);
    return {memory.gradient, memory.g_row, lanes, memory.g_rows / lanes};
  }

  // What a share reads of `count` rows of outputs from row n on.
  Ahead ahead_inputs(const Share& share, int64_t n, int64_t count, int64_t times) const {
    const int64_t first = share.first_unit / panels_ * in_width_ + share.first_strip * rows_;
    const int64_t last = (share.last_unit - 1) / panels_ * in_width_ + minimum(in_width_, share.last_strip * rows_);
    const int64_t offset = input_row(n) * horizontal_.in_size * c_.in_channels + first;
    return Ahead(job_.a + offset, summand_at(job_.reading_of_a(), offset),
                 count * vertical_.stride * horizontal_.in_size, last - first, c_.in_channels, times);
  }
  Ahead ahead_gradient(const Share& share, int64_t n, int64_t count, int64_t times) const {
    const int64_t first = channel_of(share.first_unit), last = channel_of(share.last_unit);
    const int64_t offset = n * horizontal_.out_size * c_.out_channels + first;
    return Ahead(job_.b + offset, summand_at(job_.reading_of_b(), offset), count * horizontal_.out_size, last - first,
                 c_.out_channels, times);
  }

  // The first output channel of a unit.
  int64_t channel_of(int64_t unit) const { return unit / panels_ * out_width_ + unit % panels_ * vectors_ * kLanes; }

  // The input row that row n of the outputs begins at, without the padding.
  int64_t input_row(int64_t n) const {
    return n / vertical_.out_size * vertical_.in_size + n % vertical_.out_size * vertical_.stride;
  }

  // For every tap, what each of `count` rows from row n on adds to it: the row's pixels that see the image through it.
  void find_products(const Share& share, int64_t n, int64_t count, int64_t g_row, Ring& inputs,
                     const Memory& memory) const {
    const int64_t image = n / vertical_.out_size, first = n % vertical_.out_size, stride = horizontal_.stride;
    for (int64_t tap = 0; tap < taps_; ++tap) memory.counts[tap] = 0;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t ky = 0; ky < vertical_.taps; ++ky) {
        const int64_t y = (first + i) * vertical_.stride - vertical_.padding + ky * vertical_.dilation;
        if (y < 0 || y >= vertical_.in_size) continue;
        const float* row =
            inputs.row(image * vertical_.in_size + y, [&](int64_t index, float* to) { copy_inputs(share, index, to); });
        for (int64_t kx = 0; kx < horizontal_.taps; kx += joined_) {
          // Copied column of output column j: j * stride + offset.
          const int64_t offset = kx * horizontal_.dilation - horizontal_.padding - columns_.low;
          const int64_t from = offset < 0 ? divide_up(-offset, stride) : 0;
          const int64_t inside = columns_.count - (joined_ - 1) - offset;
          const int64_t to = inside <= 0 ? 0 : minimum(horizontal_.out_size, divide_up(inside, stride));
          if (from >= to) continue;
          const int64_t tap = (ky * horizontal_.taps + kx) / joined_;
          memory.products[tap * memory.block + memory.counts[tap]++] = {row + (from * stride + offset) * pixel(),
                                                                        i * g_row + from, to - from};
        }
      }
  }

  // Floats from one copied pixel to the next.
  int64_t pixel() const { return joined_ > 1 ? in_width_ : rows_; }

  // Copies a share's channels of an input row, [group][strip][column][channel of the strip]: read where they are, the
  // pixels of 1,024 channels drove one another out of the first-level cache. For joined taps, which see all strips as
  // neighbours, it is [group][column][channel], with zeros around the image.
  void copy_inputs(const Share& share, int64_t row, float* to) const {
    const int64_t first_group = share.first_unit / panels_, channels = c_.in_channels, step = pixel();
    const int64_t first = minimum(maximum(columns_.low, 0), horizontal_.in_size);
    const int64_t last = maximum(first, minimum(columns_.low + columns_.count, horizontal_.in_size));
    const int64_t before = minimum(first - columns_.low, columns_.count);
    const int64_t after = columns_.count - before - (last - first);
    const float *from = job_.a + (row * horizontal_.in_size + first) * channels,
                *end = job_.a + c_.batch * vertical_.in_size * horizontal_.in_size * channels;
    const int64_t last_strip = joined_ > 1 ? 1 : share.last_strip;
    with_reading(job_.reading_of_a(), job_.a, [&](auto read) {
      for (int64_t group = first_group; group < first_group + groups(share); ++group)
        for (int64_t strip = share.first_strip; strip < last_strip; ++strip) {
          const int64_t channel = group * in_width_ + strip * step;
          __builtin_memset(to, 0, size_t(before * step) * sizeof(float));
          to += before * step;
          const float* pixel = from + channel;
          int64_t column = first;
          if (step == channels && c_.groups == 1 && !job_.reading_of_a().mean) {
            __builtin_memcpy(to, pixel, size_t((last - first) * step) * sizeof(float));
            to += (last - first) * step, column = last;
          }
          for (; column < last; ++column, pixel += channels, to += step)
            for (int64_t c = 0; c < step && pixel + c < end; c += kLanes)
              store(to + c, read(pixel + c, channel + c, end - pixel - c));
          __builtin_memset(to, 0, size_t(after * step) * sizeof(float));
          to += after * step;
        }
    });
  }

  void copy_gradient(int64_t n, int64_t unit, float* to) const {
    const int64_t first = unit % panels_ * vectors_ * kLanes;
    const float* from = job_.b + n * horizontal_.out_size * c_.out_channels + channel_of(unit);
    with_reading(job_.reading_of_b(), job_.b, [&](auto read) {
      for (int64_t j = 0; j < horizontal_.out_size; ++j, from += c_.out_channels)
        for (int64_t q = 0; q < vectors_; ++q, to += kLanes) {
          const int64_t left = out_width_ - first - q * kLanes;
          store(to, left > 0 ? read(from + q * kLanes, channel_of(unit) + q * kLanes, left) : Vector{});
        }
    });
  }

  // Adds the parts of a panel, in order, into the kernel's gradient.
  void finish(int64_t unit, int64_t parts, int64_t part_floats) const {
    const int64_t first = unit % panels_ * vectors_ * kLanes;
    for (int64_t tap = 0; tap < taps_; ++tap)
      for (int64_t i = 0; i < factors_; ++i)
        for (int64_t q = 0; q < vectors_; ++q) {
          const int64_t left = out_width_ - first - q * kLanes;
          if (left <= 0) break;
          const float* from =
              totals_ + unit * panel_ + (i / rows_ * taps_ + tap) * tile_ + (i % rows_ * vectors_ + q) * kLanes;
          Vector sum = load(from);
          for (int64_t part = 1; part < parts; ++part) sum += load(from + part * part_floats);
          store_some(job_.out + (tap * factors_ + i) * c_.out_channels + channel_of(unit) + q * kLanes, sum, left);
        }
  }

  // Up to so many tiles read the outputs' gradient where it is: 16 channels' 1x1 were 1.25 times as fast, 64 no faster,
  // 256 slower by a tenth.
  static constexpr int64_t kFewTiles = 5;

  const GwJob& job_;
  const GwConvolution& c_;
  Axis vertical_, horizontal_;
  int64_t in_width_, out_width_;
  // Neighbouring taps whose inputs are neighbours in memory and so rows of one tile, and numbers that these see.
  int64_t joined_, factors_;
  Columns columns_;           // that are copied
  int64_t vectors_, panels_;  // vectors of a panel of output channels, panels of a group
  int64_t rows_, strips_;     // input channels, or more of joined taps, of a tile, tiles of a group
  int64_t taps_, tile_, panel_;
  bool reads_in_place_;  // the outputs' gradient
  float* totals_ = nullptr;
};

}  // namespace
