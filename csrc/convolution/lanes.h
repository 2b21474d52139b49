// Convolutions whose groups are narrower than a vector: a vector spans the channels of several whole groups.
//
// Each input channel of a group is spread over the group's lanes by a permutation in registers, so that every lane of
// every multiply-add is of use; a strip of output pixels stays in registers meanwhile. Strips are outside, channels
// inside, so that memory is read in order. Rows of the image are read from copies with zeros around them, and what
// comes next is fetched, a little at a time, while a strip is computed.
//
// Width is the channels of a group, in and out, where both are the same power of two; 0 is any other pair.
#pragma once
#include "jobs.h"
#include "rows.h"

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

// A row of the outputs: which image's, and where in it.
struct OutputRow {
  int64_t image, y, rows;

  OutputRow next() const { return y + 1 < rows ? OutputRow{image, y + 1, rows} : OutputRow{image + 1, 0, rows}; }
};

// The sizes of one call, seen from the image that the pass reads (`in`) to the one that it makes (`out`).
// The kernel gradient reads inputs and the outputs' gradient like the forward pass.
template <int Width>
struct Lanes {
  const GwJob& job;
  const GwConvolution& c;
  bool transposed;
  Axis vertical, horizontal;
  int64_t in_channels, out_channels, in_width, out_width;
  int64_t blocks;   // vectors of output channels
  Columns columns;  // of a copied row, the zeros around the image included
  int64_t pixel;    // floats between two of its pixels

  explicit Lanes(const GwJob& j)
      : job(j), c(*j.convolution), transposed(j.pass == GW_INPUT_GRADIENT), vertical(vertical_axis(c, transposed)),
        horizontal(horizontal_axis(c, transposed)), in_channels(transposed ? c.out_channels : c.in_channels),
        out_channels(transposed ? c.in_channels : c.out_channels), in_width(in_channels / c.groups),
        out_width(out_channels / c.groups), blocks(divide_up(out_channels, kLanes)), columns(horizontal),
        pixel(pitch(in_channels)) {}

  // The copied rows: those that an output row sees.
  RowShape row_shape() const {
    const int64_t first = minimum(maximum(columns.low, 0), horizontal.in_size);
    const int64_t count = maximum(0, minimum(columns.low + columns.count, horizontal.in_size) - first);
    const int64_t before = maximum(0, minimum(first - columns.low, columns.count)) * pixel;
    // A gather reads past the last channel.
    const int64_t floats = round_up(columns.count * pixel, kLanes) + (Width ? 0 : 16 * kLanes);
    const int64_t slots = minimum(rows_seen(vertical), c.batch * vertical.in_size);
    return {horizontal.in_size, in_channels, first, count, pixel, before, floats, maximum(1, slots)};
  }
  // Row n of the outputs, counted through all images, as every row that is read is too.
  OutputRow output_row(int64_t n) const {
    const int64_t rows = maximum(1, vertical.out_size);  // the outputs may be empty
    return {n / rows, n % rows, rows};
  }
  // One past the last row that an output row sees.
  int64_t reach(const OutputRow& row) const {
    const int64_t last = transposed
                             ? (row.y + vertical.padding) / vertical.stride
                             : row.y * vertical.stride - vertical.padding + (vertical.taps - 1) * vertical.dilation;
    return row.image * vertical.in_size + minimum(maximum(0, last + 1), vertical.in_size);
  }
  // The first row that must be there for it.
  int64_t beginning(const OutputRow& row) const {
    return maximum(row.image * vertical.in_size, reach(row) - rows_seen(vertical));
  }

  // The first output channel of vector `v`. The last vector overlaps the one before rather than be a part of one.
  int64_t channel(int64_t v) const { return Width ? minimum(v * kLanes, out_channels - kLanes) : v * kLanes; }
  // Where its inputs start in a pixel.
  int64_t start([[maybe_unused]] int64_t v) const {
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
};

// The input vector of step `Channel` of a group, spread over the group's output lanes.
template <int Width, int Channel>
GW_INLINE Vector input_vector(const float* x) {
  if constexpr (Width == 1) return kept(load(x));
  else if constexpr (Width <= kLanes) return spread<Width, Channel>(load(x));
  else return spread<kLanes, Channel % kLanes>(load(x + Channel / kLanes * kLanes));
}

}  // namespace
