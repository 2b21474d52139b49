// Groups of 16 channels and more, dense and 1x1 convolutions included: all of it matrix products.
//
// A tile of sums stays in registers: some pixels by some vectors of output channels. Each step broadcasts one input of
// every pixel and multiplies it with the weights' vectors. Inputs are first copied into scratch memory, channel by
// channel ([channel][column]), so that a tile's inputs are neighbours at constant distances.
#include "jobs.h"

namespace {

// Pixels by vectors in registers at once: 28 sums of 32 registers, or 12 of 16.
constexpr int kPixels = GW_REGISTERS >= 32 ? 14 : 6;
constexpr int kVectors = 2;
// Input channels by two vectors of a tile of the kernel's gradient; twice as many by one.
constexpr int kChannels = GW_REGISTERS >= 32 ? 8 : 4;
constexpr int kMostRows = 2 * kChannels;
// Floats of copied rows that leave room in the second-level cache for weights, outputs and the rows to come.
constexpr int64_t kBlockFloats = 64 << 10;
// Floats of a kernel's gradient whose sums a task keeps there.
constexpr int64_t kSumFloats = 64 << 10;

// A run of `steps` through the memory of both factors.
struct Product {
  const float *a, *b;
  int64_t steps;
};

// sums[p][q] += a[p] * b[q], over all steps of all products.
template <int Rows, int Vectors>
GW_INLINE void multiply(Vector* sums, const Product* products, int64_t count, int64_t a_step, int64_t b_step,
                        int64_t a_offset) {
  for (int64_t i = 0; i < count; ++i) {
    const float *a = products[i].a + a_offset, *b = products[i].b;
    for (int64_t k = products[i].steps; k > 0; --k, a += a_step, b += b_step) {
      Vector factors[Vectors];
#pragma GCC unroll 2
      for (int q = 0; q < Vectors; ++q) factors[q] = load(b + q * kLanes);
#pragma GCC unroll 16
      for (int p = 0; p < Rows; ++p) {
        const Vector factor = splat(a[p]);
#pragma GCC unroll 2
        for (int q = 0; q < Vectors; ++q) sums[p * Vectors + q] += factor * factors[q];
      }
    }
  }
}

// The same from zero (or, with `keep`, from what `out` holds), written to `out`.
template <int Rows, int Vectors>
__attribute__((noinline)) void tile(const Product* products, int64_t count, int64_t a_step, int64_t b_step,
                                    int64_t a_offset, bool keep, float* out) {
  Vector sums[Rows * Vectors];
#pragma GCC unroll 32
  for (int i = 0; i < Rows * Vectors; ++i) sums[i] = Vector{};
  if (keep) {
#pragma GCC unroll 32
    for (int i = 0; i < Rows * Vectors; ++i) sums[i] = load(out + i * kLanes);
  }
  multiply<Rows, Vectors>(sums, products, count, a_step, b_step, a_offset);
#pragma GCC unroll 32
  for (int i = 0; i < Rows * Vectors; ++i) store(out + i * kLanes, sums[i]);
}

typedef void (*Tile)(const Product*, int64_t, int64_t, int64_t, int64_t, bool, float*);

template <int Vectors, int... I>
Tile tile_of(int64_t rows, Sequence<I...>) {
  static constexpr Tile all[] = {tile<I + 1, Vectors>...};
  return all[rows - 1];
}
// The tile of exactly this size: up to kPixels by kVectors, or kMostRows by 1.
Tile tile_of(int64_t rows, int64_t vectors) {
  return vectors == 1 ? tile_of<1>(rows, MakeSequence<kMostRows>::type{})
                      : tile_of<kVectors>(rows, MakeSequence<kPixels>::type{});
}

template <int Distance, int... I>
GW_INLINE void exchange(Vector& a, Vector& b, Sequence<I...>) {
  const Vector low = __builtin_shufflevector(a, b, ((I & Distance) ? kLanes + I - Distance : I)...);
  const Vector high = __builtin_shufflevector(a, b, ((I & Distance) ? kLanes + I : I + Distance)...);
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

// ---------------------------------------------------------------------------------------- forward, input gradient

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

  bool rows(int64_t image, int64_t first, int64_t last) const {
    // The rows that a block's outputs see, a few more where the image ends.
    const int64_t span = divide_up(minimum(block_, last - first), vertical_.phases()) * vertical_.step();
    const int64_t slots = minimum(rows_seen(vertical_) + 1 + span, vertical_.in_size);
    const int64_t product_floats = taps_ * int64_t(sizeof(Product) / sizeof(float));
    constexpr int64_t words = sizeof(int64_t) / sizeof(float);
    float* memory = gw_scratch(GW_TASK_SLOT, size_t(slots * (row_ + words) + product_floats));
    if (!memory) return false;
    auto* products = reinterpret_cast<Product*>(memory + slots * row_);
    Ring ring(memory, reinterpret_cast<int64_t*>(memory + slots * row_ + product_floats), slots, row_);
    const Finish finish(job_, c_.batch * vertical_.out_size * horizontal_.out_size * out_channels_, out_width_);
    const int64_t in_row = horizontal_.in_size * in_channels_,
                  phases = minimum(horizontal_.phases(), horizontal_.out_size);
    const float* from = job_.a + image * vertical_.in_size * in_row;
    const int64_t tiles = c_.groups * panels_ * phases * divide_up(horizontal_.count(0), kPixels);
    for (int64_t y = first; y < last; y += block_) {
      const int64_t end = minimum(last, y + block_);
      // What the next block sees beside this one's rows, of the next image at the end of this one.
      const int64_t reach = end / vertical_.phases() * vertical_.step() + rows_seen(vertical_) - 1 - vertical_.padding;
      Ahead ahead(from + maximum(0, reach) * in_row, 1, (end - y) / vertical_.phases() * vertical_.step() * in_row, 0,
                  tiles * (end - y));
      // A panel's weights are used for all rows of the block before the next panel's are read.
      for (int64_t panel = 0; panel < c_.groups * panels_; ++panel)
        for (int64_t row = y; row < end; ++row)
          for (int64_t phase = 0; phase < phases; ++phase)
            phase_row(image, row, phase, panel, products, ring, finish, ahead);
    }
    return true;
  }

  void phase_row(int64_t image, int64_t y, int64_t phase, int64_t panel, Product* products, Ring& ring,
                 const Finish& finish, Ahead& ahead) const {
    const int64_t in_row = horizontal_.in_size * in_channels_;
    const float* from = job_.a + image * vertical_.in_size * in_row;
    int64_t count = 0;
    for (int64_t ky = 0, y_offset; ky < vertical_.taps; ++ky) {
      if (!vertical_.sees(y % vertical_.phases(), ky, &y_offset)) continue;
      const int64_t in_y = y / vertical_.phases() * vertical_.step() + y_offset;
      if (in_y < 0 || in_y >= vertical_.in_size) continue;
      const float* row = ring.row(in_y, [&](int64_t index, float* to) { copy_row(from + index * in_row, to); });
      for (int64_t kx = 0, x_offset; kx < horizontal_.taps; ++kx) {
        if (!horizontal_.sees(phase, kx, &x_offset)) continue;
        const int64_t column = x_offset - columns_.low, step = horizontal_.step();
        products[count++] = {row + column % step * quotients_ + column / step,
                             weights_ + panel * panel_ + (ky * horizontal_.taps + kx) * in_width_ * vectors_ * kLanes,
                             in_width_};
      }
    }
    const int64_t group = panel / panels_, first = panel % panels_ * vectors_ * kLanes;
    const int64_t pixels = horizontal_.count(phase), distance = horizontal_.phases() * out_channels_;
    const int64_t start =
        ((image * vertical_.out_size + y) * horizontal_.out_size + phase) * out_channels_ + group * out_width_ + first;
    for (int64_t j = 0, size; j < pixels; j += size) {
      size = minimum(kPixels, pixels - j);
      ahead.ask();
      alignas(64) float sums[kPixels * kVectors * kLanes];
      tile_of(size, vectors_)(products, count, plane_, vectors_ * kLanes, group * in_width_ * plane_ + j, false, sums);
      for (int64_t q = 0; q < vectors_ && first + q * kLanes < out_width_; ++q) {
        const int64_t channel = first + q * kLanes;
        finish.write<kPixels>(reinterpret_cast<const Vector*>(sums) + q, vectors_, size,
                              start + j * distance + q * kLanes, distance, group * out_width_ + channel,
                              out_width_ - channel);
      }
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

// A 1x1 convolution of stride 1 has no rows: its pixels are cut into rows that whole tiles fill.
bool is_matrix_product(const GwConvolution& c) {
  return c.kernel_height == 1 && c.kernel_width == 1 && c.stride_y == 1 && c.stride_x == 1 && c.pad_top == 0 &&
         c.pad_left == 0 && c.out_height == c.height && c.out_width == c.width;
}
constexpr int64_t kRowPixels = 4 * kPixels;

GwConvolution with_rows(GwConvolution c, int64_t rows, int64_t pixels) {
  c.batch = 1;
  c.height = c.out_height = rows;
  c.width = c.out_width = pixels;
  return c;
}

GwStatus matrix_product(const GwJob& job) {
  const GwConvolution& c = *job.convolution;
  const int64_t in_channels = job.pass == GW_FORWARD ? c.in_channels : c.out_channels;
  const int64_t out_channels = job.pass == GW_FORWARD ? c.out_channels : c.in_channels;
  const int64_t pixels = c.batch * c.height * c.width;
  const int64_t parts[2][2] = {{pixels / kRowPixels, kRowPixels}, {1, pixels % kRowPixels}};
  int64_t done = 0;
  for (const auto& [height, columns] : parts) {
    if (height * columns == 0) continue;
    const GwConvolution part = with_rows(c, height, columns);
    GwEpilogue epilogue = *job.epilogue;
    if (epilogue.residual) epilogue.residual += done * out_channels;
    const GwStatus status = ImagePass({job.pass, &part, job.a + done * in_channels, job.b,
                                       job.out + done * out_channels, &epilogue, job.executor})
                                .run();
    if (status != GW_OK) return status;
    done += height * columns;
  }
  return GW_OK;
}

// ------------------------------------------------------------------------------------------------ kernel gradient

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

// The longest rows that divide the pixels, for each row costs a tile some time.
GwStatus kernel_gradient(const GwJob& job) {
  const GwConvolution& c = *job.convolution;
  const int64_t pixels = c.batch * c.height * c.width;
  int64_t row = minimum(kRowPixels, pixels);
  while (row > c.width && pixels % row) --row;
  if (!is_matrix_product(c) || row <= c.width) return KernelPass(job).run();
  const GwConvolution product = with_rows(c, pixels / row, row);
  GwJob same = job;
  same.convolution = &product;
  return KernelPass(same).run();
}

}  // namespace

GwStatus GW_NAME(wide)(const GwJob& job) {
  if (job.pass == GW_KERNEL_GRADIENT) return kernel_gradient(job);
  return is_matrix_product(*job.convolution) ? matrix_product(job) : ImagePass(job).run();
}
