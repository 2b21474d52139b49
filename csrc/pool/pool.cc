// Max pooling: the forward pass notes where each maximum was, and the gradient reads that instead of the inputs.
//
// A place is the number of a tap in its window, in row-major order. Of equal values the first one is the maximum, as in
// PyTorch, TensorFlow and XLA; a value that is not a number is larger than all others, and of several the last one is
// taken, as in PyTorch (TensorFlow passes over them). With a place of one byte, gradients of 2x2 windows move half the
// memory that they would if they looked for the maxima again.
//
// bfloat16 is widened in registers: comparing keeps its bits, and sums of several gradients are rounded once.
#include "jobs.h"

namespace {

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));

// As much of a vector as `count` says; the loops below call it with the constant kLanes wherever they can.
template <typename Some, typename Element>
GW_INLINE Some read(const Element* p, int64_t count) {
  Some v{};
  if (count >= kLanes) __builtin_memcpy(&v, p, sizeof v);
  else __builtin_memcpy(&v, p, size_t(count) * sizeof(Element));
  return v;
}
template <typename Some, typename Element>
GW_INLINE void write(Element* p, Some v, int64_t count) {
  if (count >= kLanes) __builtin_memcpy(p, &v, sizeof v);
  else __builtin_memcpy(p, &v, size_t(count) * sizeof(Element));
}

// Elements as floats in registers. `round` makes of a sum what `store` and `stream` write without a loss.
struct Float32 {
  typedef float Element;
  static GW_INLINE Vector load(const Element* p, int64_t count) { return read<Vector>(p, count); }
  static GW_INLINE Vector round(Vector v) { return v; }
  static GW_INLINE void store(Element* p, Vector v, int64_t count) { write(p, v, count); }
  static GW_INLINE void stream(Element* p, Vector v) { store_streaming(p, v); }
};

struct BFloat16 {
  typedef uint16_t Element;
  static GW_INLINE Vector load(const Element* p, int64_t count) {
    return reinterpret_cast<Vector>(widen(read<Halves>(p, count)) << 16);
  }
  // To the nearest, halfway to the even one. What is not a number has only zeros to round away here.
  static GW_INLINE Vector round(Vector v) {
    const Words bits = reinterpret_cast<Words>(v);
    return reinterpret_cast<Vector>(bits + 0x7fff + (bits >> 16 & 1));
  }
  static GW_INLINE void store(Element* p, Vector v, int64_t count) { write(p, narrow(v), count); }
  static GW_INLINE void stream(Element* p, Vector v) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(narrow(v)));
#elif defined(__AVX__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(narrow(v)));
#else
    store(p, v, kLanes);
#endif
  }

 private:
  static GW_INLINE Words widen(Halves v) {
#if defined(__AVX512F__)
    // GCC 12 makes four instructions of the conversion below, and warns of this one without a mask.
    return reinterpret_cast<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(v)));
#else
    return __builtin_convertvector(v, Words);
#endif
  }
  static GW_INLINE Halves narrow(Vector v) { return __builtin_convertvector(reinterpret_cast<Words>(v) >> 16, Halves); }
};

// In two steps: GCC 12 takes the one of four times the width apart.
GW_INLINE Indices load_places(const uint8_t* p, int64_t count) {
  return __builtin_convertvector(__builtin_convertvector(read<Bytes>(p, count), Halves), Indices);
}
GW_INLINE void store_places(uint8_t* p, Indices places, int64_t count) {
  write(p, __builtin_convertvector(__builtin_convertvector(places, Halves), Bytes), count);
}

// Consecutive windows, or taps of a window, along one axis.
struct Range {
  int64_t first, count;
};

// The taps of window `window` that lie in the image.
inline Range taps_inside(const Axis& axis, int64_t window) {
  const int64_t start = window * axis.stride - axis.padding, first = maximum(0, -start);
  return {first, maximum(0, minimum(axis.taps, axis.in_size - start) - first)};
}

// The windows that see `position` of the image.
inline Range windows_over(const Axis& axis, int64_t position) {
  const int64_t padded = position + axis.padding;
  const int64_t first = padded < axis.taps ? 0 : (padded - axis.taps) / axis.stride + 1;
  return {first, maximum(0, minimum(padded / axis.stride, axis.out_size - 1) - first + 1)};
}

template <typename Type>
class Pooling {
  typedef typename Type::Element Element;

 public:
  Pooling(const GwPoolJob& job, int64_t out_floats)
      : job_(job), c_(*job.convolution), channels_(c_.in_channels), vertical_(vertical_axis(c_, false)),
        horizontal_(horizontal_axis(c_, false)),
        // As in jobs.h: larger outputs have left the caches before they are read.
        streaming_(out_floats * int64_t(sizeof(Element)) >= kStreamingBytes && channels_ % kLanes == 0 &&
                   reinterpret_cast<uintptr_t>(job.out) % (kLanes * sizeof(Element)) == 0) {}

  void forward_row(int64_t image, int64_t y) const {
    const Range rows = taps_inside(vertical_, y);
    const int64_t top = image * c_.height + y * c_.stride_y - c_.pad_top + rows.first;
    const int64_t start = (image * c_.out_height + y) * c_.out_width;
    for (int64_t x = 0; x < c_.out_width; ++x) {
      const Range columns = taps_inside(horizontal_, x);
      const int64_t left = x * c_.stride_x - c_.pad_left + columns.first;
      const int64_t from = (top * c_.width + left) * channels_, to = (start + x) * channels_;
      const int32_t place = int32_t(rows.first * c_.kernel_width + columns.first);
      if (rows.count == 2 && columns.count == 2) find_maxima(from, 2, 2, place, to);
      else if (rows.count == 3 && columns.count == 3) find_maxima(from, 3, 3, place, to);
      else find_maxima(from, rows.count, columns.count, place, to);
    }
    if (streaming_) fence_streaming();
  }

  // `over` are the windows over each column.
  void gradient_row(int64_t image, int64_t y, const Range* over) const {
    const Range rows = windows_over(vertical_, y);
    const int64_t start = (image * c_.out_height + rows.first) * c_.out_width;
    const int64_t to_row = (image * c_.height + y) * c_.width;
    const int64_t row_tap = (y + c_.pad_top - rows.first * c_.stride_y) * c_.kernel_width;
    for (int64_t x = 0; x < c_.width; ++x) {
      const Range columns = over[x];
      const int64_t from = (start + columns.first) * channels_, to = (to_row + x) * channels_;
      const int32_t place = int32_t(row_tap + x + c_.pad_left - columns.first * c_.stride_x);
      if (rows.count == 1 && columns.count == 1) add_gradients(from, 1, 1, place, to);
      else if (rows.count == 1 && columns.count == 2) add_gradients(from, 1, 2, place, to);
      else if (rows.count == 2 && columns.count == 1) add_gradients(from, 2, 1, place, to);
      else if (rows.count == 2 && columns.count == 2) add_gradients(from, 2, 2, place, to);
      else add_gradients(from, rows.count, columns.count, place, to);
    }
    if (streaming_) fence_streaming();
  }

 private:
  static constexpr int64_t kStreamingBytes = int64_t{1} << 22;

  // Calls function(channel, count) for vectors that cover all channels; the last two may overlap.
  template <typename Function>
  GW_INLINE void for_channels(const Function& function) const {
    const int64_t channels = channels_;
    if (channels < kLanes) return function(int64_t{0}, channels);
    for (int64_t v = 0; v < channels; v += kLanes) function(minimum(v, channels - kLanes), int64_t{kLanes});
  }

  static GW_INLINE void put(Element* p, Vector v, int64_t count, bool streaming) {
    if (streaming) Type::stream(p, v);
    else Type::store(p, v, count);
  }

  // What the loops read is copied into variables, which no store can change.

  // The maxima of one window, whose first tap in the image is number `place` and at `from`. Without any tap in the
  // image it is -inf at place 0, which lies outside too.
  GW_INLINE void find_maxima(int64_t from, int64_t rows, int64_t columns, int32_t place, int64_t to) const {
    const Element* in = static_cast<const Element*>(job_.in) + from;
    Element* out = static_cast<Element*>(job_.out) + to;
    uint8_t* places = job_.places ? job_.places + to : nullptr;
    const int64_t pixel = channels_, row_floats = c_.width * channels_, row_taps = c_.kernel_width;
    const bool streaming = streaming_;
    for_channels([=](int64_t channel, int64_t count) {
      Vector best = splat(-__builtin_inff());
      Indices best_places{};
      if (rows > 0 && columns > 0) {
        best = Type::load(in + channel, count);
        best_places += place;
      }
#pragma GCC unroll 3
      for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 3
        for (int64_t column = 0; column < columns; ++column) {
          if (row + column == 0) continue;
          const Vector v = Type::load(in + channel + row * row_floats + column * pixel, count);
          const Indices larger = (v > best) | (v != v);
          best = larger ? v : best;
          best_places = larger ? Indices{} + int32_t(place + row * row_taps + column) : best_places;
        }
      }
      put(out + channel, best, count, streaming);
      if (places) store_places(places + channel, best_places, count);
    });
  }

  // The gradient of one pixel: that of each window over it whose maximum it was. For the first of these windows, which
  // is at `from`, it is tap number `place`.
  GW_INLINE void add_gradients(int64_t from, int64_t rows, int64_t columns, int32_t place, int64_t to) const {
    const Element* in = static_cast<const Element*>(job_.in) + from;
    const uint8_t* places = job_.places + from;
    Element* out = static_cast<Element*>(job_.out) + to;
    const int64_t window = channels_, row_floats = c_.out_width * channels_;
    const int64_t row_taps = c_.stride_y * c_.kernel_width, column_taps = c_.stride_x;
    const bool streaming = streaming_;
    for_channels([=](int64_t channel, int64_t count) {
      Vector sum{};
#pragma GCC unroll 3
      for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 3
        for (int64_t column = 0; column < columns; ++column) {
          const int64_t here = channel + row * row_floats + column * window;
          const int32_t tap = int32_t(place - row * row_taps - column * column_taps);
          const Vector gradient = Type::load(in + here, count);
          sum += load_places(places + here, count) == tap ? gradient : Vector{};
        }
      }
      put(out + channel, rows * columns > 1 ? Type::round(sum) : sum, count, streaming);
    });
  }

  const GwPoolJob& job_;
  const GwConvolution& c_;
  int64_t channels_;
  Axis vertical_, horizontal_;
  bool streaming_;
};

template <typename Type>
GwStatus pool(const GwPoolJob& job) {
  const GwConvolution& c = *job.convolution;
  const bool forward = job.pass == GW_FORWARD;
  const int64_t height = forward ? c.out_height : c.height, width = forward ? c.out_width : c.width;
  Scratch scratch;
  Range* over = nullptr;
  if (!forward) {
    over = reinterpret_cast<Range*>(scratch.take(size_t(width) * sizeof(Range) / sizeof(float)));
    if (!over) return GW_OUT_OF_MEMORY;
    const Axis axis = horizontal_axis(c, false);
    for (int64_t x = 0; x < width; ++x) over[x] = windows_over(axis, x);
  }
  const Pooling<Type> pooling(job, c.batch * height * width * c.in_channels);
  const RowTasks tasks(c.batch, height, height, job.executor->threads);
  parallel(*job.executor, tasks.tasks, [&](int64_t task) {
    for (int64_t y = tasks.first(task); y < tasks.last(task); ++y) {
      if (forward) pooling.forward_row(tasks.image(task), y);
      else pooling.gradient_row(tasks.image(task), y, over);
    }
  });
  return GW_OK;
}

}  // namespace

GwStatus GW_NAME(max_pool)(const GwPoolJob& job) {
  return job.element == GW_FLOAT32 ? pool<Float32>(job) : pool<BFloat16>(job);
}
