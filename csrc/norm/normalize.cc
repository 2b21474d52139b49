// Batch norm: passes over memory, a vector of channels at a time.
//
// The pixels are cut into rows of as many as fill whole vectors, so that any number of channels is as fast; what
// belongs to a channel is repeated along a row. Blocks of rows are the tasks. Their number does not depend on the
// threads', and what they sum is added in order, in double precision.
#include "epilogue.h"
#include "jobs.h"

namespace {

// A block stays in the second-level cache between two readings.
constexpr int64_t kBlockFloats = 1 << 16;
// Rows so short wait for the addition before: each place of a row has a sum of its own.
constexpr int64_t kShortestRow = 8 * kLanes;

struct Layout {
  int64_t channels, floats, row, block, blocks;

  explicit Layout(const GwNormalization& n) : channels(n.channels), floats(n.pixels * n.channels), row(n.channels) {
    while (row % kLanes || row < kShortestRow) row *= 2;
    block = maximum(1, kBlockFloats / row) * row;
    blocks = divide_up(floats, block);
  }
  int64_t first(int64_t index) const { return index * block; }
  int64_t last(int64_t index) const { return minimum(floats, (index + 1) * block); }
  int64_t pixels(int64_t index) const { return (last(index) - first(index)) / channels; }

  // Calls function(position, place, count) for every vector of a block: where it is in memory, where in its row, and
  // how many of its lanes there are.
  template <typename Function>
  GW_INLINE void each(int64_t index, const Function& function) const {
    for (int64_t start = first(index), end = last(index); start < end; start += row) {
      const int64_t count = minimum(row, end - start), whole = count / kLanes * kLanes;
      for (int64_t place = 0; place < whole; place += kLanes) function(start + place, place, int64_t{kLanes});
      if (whole < count) function(start + whole, whole, count - whole);
    }
  }

  // Writes value(channel) wherever the channel stands in a row.
  template <typename Value>
  void repeat(float* to, const Value& value) const {
    for (int64_t c = 0; c < channels; ++c) to[c] = value(c);
    for (int64_t place = channels; place < row; ++place) to[place] = to[place - channels];
  }

  // Adds up what belongs to the same channel, into the row's first places.
  void fold(float* sums) const {
    for (int64_t start = channels; start < row; start += channels) {
      for (int64_t c = 0; c < channels; ++c) sums[c] += sums[start + c];
    }
  }
};

void clear(float* memory, int64_t floats) { __builtin_memset(memory, 0, static_cast<size_t>(floats) * sizeof(float)); }

GW_INLINE void add(float* sums, Vector v) { store(sums, load(sums) + v); }

GW_INLINE Vector first_lanes(Vector v, int64_t count) {
  if (count >= kLanes) return v;
  Vector kept{};
  __builtin_memcpy(&kept, &v, static_cast<size_t>(count) * sizeof(float));
  return kept;
}

bool is_streaming(const float* out, const Layout& layout) {
  constexpr int64_t streaming_floats = int64_t{1} << 20;
  return layout.floats >= streaming_floats && reinterpret_cast<uintptr_t>(out) % sizeof(Vector) == 0;
}

GW_INLINE void write(float* to, Vector v, int64_t count, bool streaming) {
  if (count < kLanes) store_partial(to, v, count);
  else if (streaming) store_streaming(to, v);
  else store(to, v);
}

double scale(const GwNormalization& n, int64_t c) { return 1 / __builtin_sqrt(double(n.variance[c]) + n.epsilon); }

// What the passes that end in an image need of every channel, along a row.
struct Parameters {
  float *mean, *multiplier, *offset;

  Parameters(const GwNormalization& n, const Layout& layout, float* memory)
      : mean(memory), multiplier(memory + layout.row), offset(memory + 2 * layout.row) {
    layout.repeat(mean, [&](int64_t c) { return n.mean[c]; });
    layout.repeat(multiplier, [&](int64_t c) { return float(n.gamma[c] * scale(n, c)); });
    layout.repeat(offset, [&](int64_t c) { return n.beta[c]; });
  }
  // Subtracting the mean first keeps what a large mean and a small deviation leave.
  GW_INLINE Vector normalised(Vector x, int64_t place) const {
    return (x - load(mean + place)) * load(multiplier + place) + load(offset + place);
  }
};

// What the activation's gradient is computed from: its outputs, where they are there and it reads them.
template <typename Activation>
GW_INLINE Vector seen(const GwNormalization& n, Vector normalised, int64_t position, int64_t count) {
  if (Activation::reads_outputs && n.outputs) return load_some(n.outputs + position, count);
  return n.residual ? normalised + load_some(n.residual + position, count) : normalised;
}

// For each channel of a block: its mean in two parts, of which the second is what one float loses, and the sum of
// squared deviations from it.
bool block_moments(const GwNormalization& n, const Layout& layout, int64_t index, float* result) {
  Scratch scratch;
  float* memory = scratch.take(size_t(3 * layout.row));
  if (!memory) return false;
  float *centre = memory, *sums = memory + layout.row, *products = sums + layout.row;
  const float pixels = float(layout.pixels(index));
  clear(sums, 2 * layout.row);
  layout.each(index, [&](int64_t position, int64_t place, int64_t count) {
    add(sums + place, load_some(n.inputs + position, count));
  });
  layout.fold(sums);
  layout.repeat(centre, [&](int64_t c) { return sums[c] / pixels; });
  clear(sums, layout.row);
  layout.each(index, [&](int64_t position, int64_t place, int64_t count) {
    const Vector deviation = first_lanes(load_some(n.inputs + position, count) - load(centre + place), count);
    add(sums + place, deviation);
    add(products + place, deviation * deviation);
  });
  layout.fold(sums);
  layout.fold(products);
  for (int64_t c = 0; c < layout.channels; ++c) {
    const float rest = sums[c] / pixels, square = products[c] - sums[c] * rest;
    result[c] = centre[c];
    result[layout.channels + c] = rest;
    result[2 * layout.channels + c] = square < 0 ? 0 : square;
  }
  return true;
}

// Mean and biased variance. Source: Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983.
GwStatus moments(const GwNormalization& n, const Layout& layout, const GwExecutor& executor) {
  const int64_t channels = layout.channels, triple = 3 * channels;
  Scratch scratch;
  float* memory = scratch.take(size_t(4 * channels + layout.blocks * triple));
  if (!memory) return GW_OUT_OF_MEMORY;
  float* blocks = memory + 4 * channels;
  const GwStatus status = try_parallel(
      executor, layout.blocks, [&](int64_t index) { return block_moments(n, layout, index, blocks + index * triple); });
  if (status != GW_OK) return status;
  double *mean = reinterpret_cast<double*>(memory), *squares = mean + channels, total = 0;
  for (int64_t c = 0; c < channels; ++c) mean[c] = squares[c] = 0;
  for (int64_t index = 0; index < layout.blocks; ++index) {
    const float *block = blocks + index * triple, *rest = block + channels, *block_squares = rest + channels;
    const double before = total, pixels = double(layout.pixels(index));
    total += pixels;
    const double share = pixels / total;
    for (int64_t c = 0; c < channels; ++c) {
      const double difference = double(block[c]) + rest[c] - mean[c];
      mean[c] += difference * share;
      squares[c] += block_squares[c] + difference * difference * before * share;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    n.mean[c] = float(mean[c]);
    n.variance[c] = total > 0 ? float(squares[c] / total) : 0;
  }
  return GW_OK;
}

template <typename Activation>
GwStatus normalize(const GwNormalization& n, const Layout& layout, const GwExecutor& executor) {
  Scratch scratch;
  float* memory = scratch.take(size_t(3 * layout.row));
  if (!memory) return GW_OUT_OF_MEMORY;
  const Parameters parameters(n, layout, memory);
  const bool streaming = is_streaming(n.outputs, layout);
  parallel(executor, layout.blocks, [&](int64_t task) {
    // The last blocks first: the pass before has left them in the cache.
    layout.each(layout.blocks - 1 - task, [&](int64_t position, int64_t place, int64_t count) {
      Vector v = parameters.normalised(load_some(n.inputs + position, count), place);
      if (n.residual) v += load_some(n.residual + position, count);
      write(n.outputs + position, Activation::value(v), count, streaming);
    });
    if (streaming) fence_streaming();
  });
  return GW_OK;
}

// A block's sums of the gradient that passes the activation, and of its products with the deviations. What passes is
// written, too, where there is a residual, and times its factor to `inputs_gradient`, unless that is null.
template <typename Activation>
bool block_gradient_sums(const GwNormalization& n, const Layout& layout, const Parameters& parameters, int64_t index,
                         float* inputs_gradient, float* result) {
  Scratch scratch;
  float* sums = scratch.take(size_t(2 * layout.row));
  if (!sums) return false;
  float* products = sums + layout.row;
  const bool streaming = n.residual_gradient && is_streaming(n.residual_gradient, layout);
  const bool also_streaming = inputs_gradient && is_streaming(inputs_gradient, layout);
  clear(sums, 2 * layout.row);
  layout.each(index, [&](int64_t position, int64_t place, int64_t count) {
    const Vector x = load_some(n.inputs + position, count);
    const Vector v = seen<Activation>(n, parameters.normalised(x, place), position, count);
    const Vector gradient = Activation::passed(load_some(n.gradient + position, count), v);
    if (n.residual_gradient) write(n.residual_gradient + position, gradient, count, streaming);
    if (inputs_gradient)
      write(inputs_gradient + position, gradient * load(parameters.multiplier + place), count, also_streaming);
    add(sums + place, gradient);
    add(products + place, gradient * first_lanes(x - load(parameters.mean + place), count));
  });
  if (streaming || also_streaming) fence_streaming();
  layout.fold(sums);
  layout.fold(products);
  for (int64_t c = 0; c < layout.channels; ++c) result[c] = sums[c], result[layout.channels + c] = products[c];
  return true;
}

template <typename Activation>
GwStatus gradient_sums(const GwNormalization& n, const Layout& layout, const GwExecutor& executor,
                       float* inputs_gradient) {
  const int64_t channels = layout.channels, pair = 2 * channels;
  Scratch scratch;
  float* memory = scratch.take(size_t(3 * layout.row + layout.blocks * pair));
  if (!memory) return GW_OUT_OF_MEMORY;
  const Parameters parameters(n, layout, memory);
  float* blocks = memory + 3 * layout.row;
  const GwStatus status = try_parallel(executor, layout.blocks, [&](int64_t index) {
    return block_gradient_sums<Activation>(n, layout, parameters, index, inputs_gradient, blocks + index * pair);
  });
  if (status != GW_OK) return status;
  for (int64_t c = 0; c < pair; ++c) {
    double sum = 0;
    for (int64_t index = 0; index < layout.blocks; ++index) sum += blocks[index * pair + c];
    n.sums[c] = float(c < channels ? sum : sum * scale(n, c - channels));
  }
  return GW_OK;
}

template <typename Activation>
GwStatus gradient(const GwNormalization& n, const Layout& layout, const GwExecutor& executor) {
  Scratch scratch;
  float* memory = scratch.take(size_t(5 * layout.row));
  if (!memory) return GW_OUT_OF_MEMORY;
  const Parameters parameters(n, layout, memory);
  float *constant = memory + 3 * layout.row, *slope = constant + layout.row;
  // Constant statistics have no gradient to share.
  const double share = n.count > 0 ? 1 / double(n.count) : 0;
  layout.repeat(constant, [&](int64_t c) { return float(-n.gamma[c] * scale(n, c) * share * n.sums[c]); });
  layout.repeat(slope, [&](int64_t c) {
    return float(-n.gamma[c] * scale(n, c) * scale(n, c) * share * n.sums[layout.channels + c]);
  });
  const bool streaming = is_streaming(n.inputs_gradient, layout);
  const float* upstream = n.residual_gradient ? n.residual_gradient : n.gradient;
  parallel(executor, layout.blocks, [&](int64_t task) {
    layout.each(layout.blocks - 1 - task, [&](int64_t position, int64_t place, int64_t count) {
      const Vector x = load_some(n.inputs + position, count);
      const Vector v = seen<Activation>(n, parameters.normalised(x, place), position, count);
      Vector result = Activation::passed(load_some(upstream + position, count), v);
      result = result * load(parameters.multiplier + place) + load(constant + place) +
               (x - load(parameters.mean + place)) * load(slope + place);
      write(n.inputs_gradient + position, result, count, streaming);
    });
    if (streaming) fence_streaming();
  });
  return GW_OK;
}

}  // namespace

GwStatus GW_NAME(normalize)(int passes, const GwNormalization& n, const GwExecutor& executor) {
  const Layout layout(n);
  return with_activation(n.activation, [&](auto activation) {
    using Activation = decltype(activation);
    GwStatus status = GW_OK;
    if (passes & GW_MOMENTS) status = moments(n, layout, executor);
    if (passes & GW_NORMALIZE && status == GW_OK) status = normalize<Activation>(n, layout, executor);
    // Of constant statistics the inputs' gradient waits for no sums.
    const bool at_once = n.count == 0 && passes & GW_GRADIENT_SUMS && passes & GW_GRADIENT;
    if (passes & GW_GRADIENT_SUMS && status == GW_OK) {
      status = gradient_sums<Activation>(n, layout, executor, at_once ? n.inputs_gradient : nullptr);
    }
    if (passes & GW_GRADIENT && !at_once && status == GW_OK) {
      // A residual's gradient has passed the activation already.
      status = n.residual_gradient ? gradient<Linear>(n, layout, executor) : gradient<Activation>(n, layout, executor);
    }
    return status;
  });
}
