// Convolutions whose groups are narrower than a vector: a vector spans the channels of several whole groups.
//
// Each input channel of a group is spread over the group's lanes by a permutation in registers, so that every lane of
// every multiply-add is of use; a strip of output pixels stays in registers meanwhile. Strips are outside, channels
// inside, so that memory is read in order. Rows of the image are read where they are or, where many outputs see beyond
// the image's edges, from copies with zeros around them.
//
// Width is the channels of a group, in and out, where both are the same power of two; 0 is any other pair.
#pragma once
#include "jobs.h"

namespace {

// Pixels in registers at once; with 16 registers 10 is what fits.
constexpr int kStrip = GW_REGISTERS >= 32 ? 14 : 10;

// Where the lanes of an output vector find their inputs, for pairs of widths without a fixed pattern.
struct Gather {
  int64_t first;         // input channel of the first lane's group
  int64_t sources;       // input vectors spanned
  int32_t lane[kLanes];  // each lane's group, as a distance from `first`

  GW_INLINE Vector operator()(const float* x) const {
    const Indices all = *reinterpret_cast<const UnalignedIndices*>(lane);
    Vector v = pick(load(x), all % kLanes);
    for (int64_t source = 1; source < sources; ++source) {
      const Indices here = all / kLanes == int32_t(source);
      v = here ? pick(load(x + source * kLanes), all % kLanes) : v;
    }
    return v;
  }
};

// Copies pixels of `channels` floats to pixels of `pixel`: as many, or padded with zeros to whole vectors.
inline void copy_pixels(const float* from, int64_t count, int64_t channels, float* to, int64_t pixel) {
  if (pixel == channels) {
    __builtin_memcpy(to, from, size_t(count * channels) * sizeof(float));
    return;
  }
  const int64_t whole = channels / kLanes;
  for (int64_t k = 0; k < count; ++k, from += channels, to += pixel) {
    for (int64_t v = 0; v < whole; ++v) store(to + v * kLanes, load(from + v * kLanes));
    store(to + whole * kLanes, load_partial(from + whole * kLanes, channels - whole * kLanes));
  }
}

// The sizes of one call, seen from the image that the pass reads (`in`) to the one that it makes (`out`).
// The kernel gradient reads inputs and the outputs' gradient like the forward pass.
template <int Width>
struct Lanes {
  const GwJob& job;
  const GwConvolution& c;
  bool transposed;
  Axis vertical, horizontal;
  int64_t in_channels, out_channels, in_width, out_width;
  int64_t blocks;      // vectors of output channels
  Columns columns;     // of a row, where it is read: those of the image, or with the zeros around them
  bool copied;         // whether rows are
  int64_t pixel, row;  // floats between two pixels that are read, and of a copied row

  explicit Lanes(const GwJob& j)
      : job(j), c(*j.convolution), transposed(j.pass == GW_INPUT_GRADIENT), vertical(vertical_axis(c, transposed)),
        horizontal(horizontal_axis(c, transposed)), in_channels(transposed ? c.out_channels : c.in_channels),
        out_channels(transposed ? c.in_channels : c.out_channels), in_width(in_channels / c.groups),
        out_width(out_channels / c.groups), blocks(divide_up(out_channels, kLanes)), columns(horizontal),
        copied(is_copied()), pixel(Width ? in_channels : round_up(in_channels, kLanes)),
        // A gather reads past the last channel.
        row(copied ? round_up(columns.count * pixel, kLanes) + (Width ? 0 : 16 * kLanes) : 0) {
    if (!copied) columns.low = 0, columns.count = horizontal.in_size;
  }

  // A pixel at the edge takes as long as several, eight channels a group most; a copy takes a tenth of the time. The
  // kernel gradient has no edges: its other factor has zeros around it.
  bool is_copied() const {
    const int64_t before = maximum(0, -columns.low);
    const int64_t after = maximum(0, columns.low + columns.count - horizontal.in_size);
    const bool many = Width > 4 || (before + after) * 12 > horizontal.in_size;
    return Width == 0 || (job.pass != GW_KERNEL_GRADIENT && many);
  }
  // The first output channel of vector `v`. The last vector overlaps the one before rather than be a part of one.
  int64_t channel(int64_t v) const { return Width ? minimum(v * kLanes, out_channels - kLanes) : v * kLanes; }
  // Where its inputs start in a pixel.
  int64_t start(int64_t v) const {
    if constexpr (Width == 0) return 0;
    else return Width <= kLanes ? channel(v) : channel(v) / Width * Width;
  }
  Gather gather(int64_t v) const {
    Gather g{};
    const int64_t first_group = v * kLanes / out_width;
    g.first = first_group * in_width;
    for (int64_t l = 0; l < kLanes; ++l) {
      const int64_t group = minimum((v * kLanes + l) / out_width, c.groups - 1);
      g.lane[l] = int32_t((group - first_group) * in_width);
    }
    g.sources = g.lane[kLanes - 1] / kLanes + 1;
    return g;
  }

  // The weights between input channel `i` of every group and the vector of output channels `v`, as this pass sees them.
  Vector weights(int64_t tap_y, int64_t tap_x, int64_t i, int64_t v) const {
    const int64_t tap = tap_y * c.kernel_width + tap_x, first = channel(v), count = out_channels - first;
    if (!transposed) return load_some(job.b + (tap * in_width + i) * out_channels + first, count);
    // The kernel's (out channel of the group, in channel) are this pass's (channel of the group, out channel) turned.
    Vector values{};
    int64_t group = first / out_width, o = first % out_width;
    for (int64_t lane = 0; lane < minimum(count, kLanes); ++lane) {
      values[lane] = job.b[(tap * out_width + o) * in_channels + group * in_width + i];
      if (++o == out_width) o = 0, ++group;
    }
    return values;
  }

  // A row of the image, where the pass reads it.
  const float* read(Ring& ring, const float* image, int64_t y) const {
    const float* from = image + y * horizontal.in_size * in_channels;
    return copied ? ring.row(y, [&](int64_t, float* to) { copy_row(from, to); }) : from;
  }
  void copy_row(const float* from, float* to) const {
    const int64_t first = maximum(columns.low, 0);
    const int64_t count = maximum(0, minimum(columns.low + columns.count, horizontal.in_size) - first);
    const int64_t before = minimum(first - columns.low, columns.count) * pixel, inside = count * pixel;
    __builtin_memset(to, 0, size_t(before) * sizeof(float));
    copy_pixels(from + first * in_channels, count, in_channels, to + before, pixel);
    __builtin_memset(to + before + inside, 0, size_t(row - before - inside) * sizeof(float));
  }
};

// The input vector of step `Channel` of a group, spread over the group's output lanes.
template <int Width, int Channel>
GW_INLINE Vector input_vector(const float* x) {
  if constexpr (Width <= kLanes) return spread<Width, Channel>(load(x));
  else return spread<kLanes, Channel % kLanes>(load(x + Channel / kLanes * kLanes));
}

}  // namespace
