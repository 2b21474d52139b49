// The passes that make an image: forward and input gradient.
#pragma once
#include "finish.h"
#include "tiles.h"

namespace {

class ImagePass {
 public:
  // Up to so many pixels, and floats of a group's inputs, a call is cut by panels: 1.2 to 2 times as fast as by rows.
  static constexpr int64_t kFewPixels = 1024, kMostInputs = 1 << 20;

  // The last row lacks `missing` pixels.
  explicit ImagePass(const GwJob& job, int64_t missing = 0)
      : job_(job), c_(*job.convolution), missing_(missing), transposed_(job.pass == GW_INPUT_GRADIENT),
        vertical_(vertical_axis(c_, transposed_)), horizontal_(horizontal_axis(c_, transposed_)), columns_(horizontal_),
        in_channels_(transposed_ ? c_.out_channels : c_.in_channels),
        out_channels_(transposed_ ? c_.in_channels : c_.out_channels), in_width_(in_channels_ / c_.groups),
        out_width_(out_channels_ / c_.groups), vectors_(out_width_ > kLanes ? kVectors : 1),
        panels_(divide_up(out_width_, vectors_ * kLanes)), taps_(vertical_.taps * horizontal_.taps),
        quotients_(round_up(divide_up(columns_.count, horizontal_.step()) + (c_.batch > 1 ? kPixels : 0), kLanes)),
        plane_(quotients_ * horizontal_.step()), panel_(taps_ * in_width_ * vectors_ * kLanes),
        chunk_(minimum(c_.groups, maximum(1, kMostChannels / in_width_))), row_(chunk_ * in_width_ * plane_) {}

  GwStatus run() {
    const int64_t panels = c_.groups * panels_, pixels = vertical_.out_size * horizontal_.out_size;
    const bool few = c_.batch == 1 && pixels <= kFewPixels && vertical_.in_size * in_width_ * plane_ <= kMostInputs;
    const bool by_panels = few && !transposed_ && !job_.totals && panels >= 2 * job_.executor->threads;
    return by_panels ? run_by_panels() : run_by_rows();
  }

 private:
  GwStatus run_by_rows() {
    const RowTasks tasks(c_.batch, vertical_.out_size, vertical_.out_size, job_.executor->threads);
    const int64_t part = job_.totals ? Gathering::floats(out_channels_) : 0;
    Scratch scratch;
    float* parts = scratch.take(size_t(tasks.tasks * part + c_.groups * panels_ * panel_));
    if (!parts) return GW_OUT_OF_MEMORY;
    weights_ = parts + tasks.tasks * part;
    const int64_t panels = c_.groups * panels_;
    move_in_parallel(*job_.executor, panels, panels * panel_,
                     [&](int64_t panel) { pack(panel, weights_ + panel * panel_); });
    const int64_t seen = rows_seen(vertical_), fitting = kBlockFloats / maximum(1, row_);
    block_ = maximum(1, (fitting - seen) / vertical_.step() * vertical_.phases());
    const GwStatus status = try_parallel(*job_.executor, tasks.tasks, [&](int64_t task) {
      Gathering gathering(part ? parts + task * part : nullptr, out_channels_, !transposed_);
      return rows(tasks.image(task), tasks.first(task), tasks.last(task), gathering);
    });
    if (part && status == GW_OK) Gathering::merge(parts, tasks.tasks, out_channels_, !transposed_, job_.totals);
    return status;
  }

  // Where pixels are few, weights are most of what is read. So each thread reads those of its panels once, and copies
  // all inputs that these see.
  GwStatus run_by_panels() {
    const int64_t panels = c_.groups * panels_, tasks = job_.executor->threads;
    chunk_ = minimum(c_.groups, maximum(1, kBlockFloats / maximum(1, vertical_.in_size * in_width_ * plane_)));
    row_ = chunk_ * in_width_ * plane_;
    return try_parallel(*job_.executor, tasks,
                        [&](int64_t task) { return add_panels(task * panels / tasks, (task + 1) * panels / tasks); });
  }

  // Lays out the weights of a panel of output channels: [tap][input channel][lane].
  void pack(int64_t panel, float* to) const {
    const int64_t group = panel / panels_, lanes = vectors_ * kLanes, first = panel % panels_ * lanes;
    const int64_t count = minimum(lanes, out_width_ - first);
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

  // Groups that are copied and multiplied at once.
  struct Chunk {
    int64_t first, last;
  };
  Chunk chunk(int64_t first, int64_t end) const { return {first, minimum(end, first + chunk_)}; }
  Chunk chunk(int64_t first) const { return chunk(first, c_.groups); }

  // Copies a chunk of a row of the image that the pass reads: [channel][column % step][column / step], zero outside.
  void copy_row(const Chunk& chunk, int64_t y, const float* from, float* to) const {
    const int64_t width = horizontal_.in_size - (y + 1 == vertical_.in_size ? missing_ : 0);
    const int64_t step = horizontal_.step(), channels = (chunk.last - chunk.first) * in_width_;
    const int64_t first = chunk.first * in_width_;
    from += first;
    with_reading(job_.reading_of_a(), job_.a, [&](auto read) {
      for (int64_t residue = 0; residue < step; ++residue) {
        if (!is_read(residue)) continue;
        for (int64_t q = 0; q < quotients_; q += kLanes)
          for (int64_t channel = 0; channel < channels; channel += kLanes)
            copy_transposed(
                [&](int64_t r) {
                  const int64_t column = columns_.low + (q + r) * step + residue;
                  return column >= 0 && column < width
                             ? read(from + column * in_channels_ + channel, first + channel, channels - channel)
                             : Vector{};
                },
                channels - channel, to + channel * plane_ + residue * quotients_ + q, plane_);
      }
    });
  }
  bool is_read(int64_t residue) const {
    for (int64_t phase = 0; phase < horizontal_.phases(); ++phase)
      for (int64_t tap = 0, offset; tap < horizontal_.taps; ++tap) {
        if (!horizontal_.sees(phase, tap, &offset)) continue;
        if ((offset - columns_.low) % horizontal_.step() == residue) return true;
      }
    return false;
  }

  // What one phase of an output row multiplies.
  struct PhaseRow {
    int64_t y, phase;
    Product* products;
    int64_t count;
  };

  // What a task needs of its thread's memory.
  struct Memory {
    Scratch scratch;
    float *rows, *panel;  // copied inputs; a panel's weights, unless all are packed beforehand
    Product* products;
    PhaseRow* list;
    int64_t *tags, slots;
  };
  bool find_memory(int64_t most_rows, Memory* m) const {
    constexpr int64_t words = sizeof(int64_t) / sizeof(float);
    const int64_t entries = most_rows * horizontal_.phases();
    // The rows that a block's outputs see, a few more where the image ends.
    const int64_t span = divide_up(most_rows, vertical_.phases()) * vertical_.step();
    m->slots = minimum(rows_seen(vertical_) + 1 + span, vertical_.in_size);
    const int64_t product_floats = entries * taps_ * int64_t(sizeof(Product) / sizeof(float));
    const int64_t list_floats = entries * int64_t(sizeof(PhaseRow) / sizeof(float));
    const int64_t panel = weights_ ? 0 : panel_;
    m->rows = m->scratch.take(size_t(m->slots * (row_ + words) + panel + product_floats + list_floats));
    if (!m->rows) return false;
    m->panel = m->rows + m->slots * row_;
    float* others = m->panel + panel;
    m->products = reinterpret_cast<Product*>(others);
    m->list = reinterpret_cast<PhaseRow*>(others + product_floats);
    m->tags = reinterpret_cast<int64_t*>(others + product_floats + list_floats);
    return true;
  }

  bool rows(int64_t image, int64_t first, int64_t last, Gathering& gathering) const {
    Memory memory;
    if (!find_memory(minimum(block_, last - first), &memory)) return false;
    const Finish finish(job_, c_.batch * vertical_.out_size * horizontal_.out_size * out_channels_, out_width_,
                        gathering);
    Ring ring(memory.rows, memory.tags, memory.slots, row_);
    for (int64_t y = first; y < last; y += block_) {
      const int64_t end = minimum(last, y + block_);
      for (Chunk now = chunk(0); now.first < now.last; now = chunk(now.last)) {
        if (chunk_ < c_.groups) ring = Ring(memory.rows, memory.tags, memory.slots, row_);
        PhaseRow* list_end = find_products(now, image, y, end, ring, memory);
        Ahead next =
            now.last < c_.groups ? ahead(chunk(now.last), image, y, end - y) : ahead(chunk(0), image, end, end - y);
        // A panel's weights are used for all rows of the block before the next panel's are read.
        for (int64_t panel = now.first * panels_; panel < now.last * panels_; ++panel)
          for (const PhaseRow* row = memory.list; row != list_end; ++row)
            add_row(now, *row, {panel, weights_ + panel * panel_, vectors_ * kLanes}, finish, next);
      }
      finish.count((end - y) * horizontal_.out_size - (end == vertical_.out_size ? missing_ : 0));
    }
    return true;
  }

  // The weights of a panel, a step after the other; where they are packed on the way, unless that is null.
  struct Weights {
    int64_t panel;
    const float* first;
    int64_t step;
    float* copy = nullptr;
  };

  // All rows of the image, for some panels.
  bool add_panels(int64_t first, int64_t last) const {
    Memory memory;
    if (!find_memory(vertical_.out_size, &memory)) return false;
    Gathering nothing(nullptr, out_channels_, true);
    const Finish finish(job_, vertical_.out_size * horizontal_.out_size * out_channels_, out_width_, nothing);
    const int64_t end = divide_up(last, panels_);
    Ahead next = ahead_weights(first, first, 1);
    int64_t asked = first;
    for (Chunk now = chunk(first / panels_, end); now.first < now.last; now = chunk(now.last, end)) {
      Ring ring(memory.rows, memory.tags, memory.slots, row_);
      const PhaseRow* list_end = find_products(now, 0, 0, vertical_.out_size, ring, memory);
      const int64_t panels_end = minimum(last, now.last * panels_);
      for (int64_t panel = maximum(first, now.first * panels_); panel < panels_end; ++panel) {
        if (panel == asked) {
          asked = minimum(last, panel + kPanelsAhead);
          next = ahead_weights(asked, minimum(last, asked + kPanelsAhead), (asked - panel) * vertical_.out_size);
        }
        add_panel(now, panel, memory, list_end, finish, next);
      }
    }
    return true;
  }

  // A panel whose weights are not packed yet. Whole ones are packed by the tiles that read them first, until a row has
  // seen all taps; packed before, they took a quarter of the time of 49 pixels.
  void add_panel(const Chunk& chunk, int64_t panel, const Memory& memory, const PhaseRow* list_end,
                 const Finish& finish, Ahead& next) const {
    const Weights packed{panel, memory.panel, vectors_ * kLanes};
    const Weights unpacked{panel, job_.b + channel_of(panel), out_channels_, memory.panel};
    bool is_packed = out_width_ - panel % panels_ * packed.step < packed.step;
    if (is_packed) pack(panel, memory.panel);
    for (const PhaseRow* row = memory.list; row != list_end; ++row) {
      add_row(chunk, *row, is_packed ? packed : unpacked, finish, next);
      is_packed |= row->count == taps_;
    }
  }

  // The first output channel of a panel.
  int64_t channel_of(int64_t panel) const { return panel / panels_ * out_width_ + panel % panels_ * vectors_ * kLanes; }

  // Asks for the weights of panels [first, last) while `rows` rows are computed.
  Ahead ahead_weights(int64_t first, int64_t last, int64_t rows) const {
    const int64_t from = channel_of(first), channels = minimum(out_channels_, channel_of(last)) - from;
    return Ahead(job_.b + from, nullptr, channels > 0 ? taps_ * in_width_ : 0, channels, out_channels_,
                 rows * divide_up(horizontal_.out_size, kPixels));
  }

  // Asks for what `rows` output rows from y on see of a chunk and those before them do not; of the next image at the
  // end of this one.
  Ahead ahead(const Chunk& chunk, int64_t image, int64_t y, int64_t rows) const {
    const int64_t step = vertical_.step(), reach = y / vertical_.phases() * step + rows_seen(vertical_) - 1;
    const int64_t row = image * vertical_.in_size + maximum(0, reach - vertical_.padding);
    const int64_t pixels = rows / vertical_.phases() * step * horizontal_.in_size;
    const int64_t tiles = chunk_ * panels_ * horizontal_.phases() * divide_up(horizontal_.count(0), kPixels) * rows;
    const int64_t offset = row * horizontal_.in_size * in_channels_ + chunk.first * in_width_;
    const float *from = job_.a + offset, *other = summand_at(job_.reading_of_a(), offset);
    return Ahead(from, other, pixels, (chunk.last - chunk.first) * in_width_, in_channels_, tiles);
  }

  // Lists what the output rows [first, last) multiply, and copies it; returns the list's end.
  PhaseRow* find_products(const Chunk& chunk, int64_t image, int64_t first, int64_t last, Ring& ring,
                          const Memory& memory) const {
    const int64_t phases = horizontal_.phases();
    PhaseRow* entry = memory.list;
    Product* next = memory.products;
    for (int64_t y = first; y < last; ++y)
      for (int64_t phase = 0; phase < phases; ++phase, ++entry) {
        const int64_t count = find_products(chunk, image, y, phase, ring, next);
        *entry = {image * vertical_.out_size + y, phase, next, count};
        next += count;
      }
    return entry;
  }
  int64_t find_products(const Chunk& chunk, int64_t image, int64_t y, int64_t phase, Ring& ring, Product* to) const {
    const int64_t in_row = horizontal_.in_size * in_channels_, step = horizontal_.step();
    const float* from = job_.a + image * vertical_.in_size * in_row;
    int64_t count = 0;
    for (int64_t ky = 0, y_offset; ky < vertical_.taps; ++ky) {
      if (!vertical_.sees(y % vertical_.phases(), ky, &y_offset)) continue;
      const int64_t in_y = y / vertical_.phases() * vertical_.step() + y_offset;
      if (in_y < 0 || in_y >= vertical_.in_size) continue;
      const float* row =
          ring.row(in_y, [&](int64_t index, float* copy) { copy_row(chunk, index, from + index * in_row, copy); });
      for (int64_t kx = 0, x_offset; kx < horizontal_.taps; ++kx) {
        if (!horizontal_.sees(phase, kx, &x_offset)) continue;
        const int64_t column = x_offset - columns_.low, tap = ky * horizontal_.taps + kx;
        to[count++] = {row + column % step * quotients_ + column / step, tap * in_width_, in_width_};
      }
    }
    return count;
  }

  void add_row(const Chunk& chunk, const PhaseRow& row, const Weights& weights, const Finish& finish,
               Ahead& next) const {
    const int64_t group = weights.panel / panels_, first = weights.panel % panels_ * vectors_ * kLanes;
    const int64_t pixels = horizontal_.count(row.phase) - (row.y + 1 == vertical_.out_size ? missing_ : 0);
    const int64_t distance = horizontal_.phases() * out_channels_;
    const int64_t start = (row.y * horizontal_.out_size + row.phase) * out_channels_ + group * out_width_ + first;
    // A panel's second vector may be empty. Tiles of about equal size: a tile of one pixel waits for its own sums.
    const int64_t vectors = out_width_ - first > kLanes ? vectors_ : 1, tiles = divide_up(pixels, kPixels);
    const int64_t least = pixels / tiles, larger = pixels - tiles * least;  // the first tiles are a pixel larger
    for (int64_t i = 0, j = 0, size; i < tiles; ++i, j += size) {
      size = least + (i < larger);
      const Finish::Pixels place{size, start + j * distance, distance};
      finish.ask(minimum(vectors * kLanes, out_width_ - first), place);
      alignas(64) float sums[kPixels * kVectors * kLanes];
      const int64_t from = (group - chunk.first) * in_width_ * plane_ + j;
      compute_tile(size, vectors, {row.products, row.count, from, plane_, weights.first, weights.step, weights.copy},
                   false, sums, {&next, 1});
      finish.write<kPixels>(reinterpret_cast<const Vector*>(sums), vectors, place, group * out_width_ + first,
                            out_width_ - first);
    }
  }

  // Whose weights are asked for together: pieces of rows of memory as long as one panel came at half the speed.
  static constexpr int64_t kPanelsAhead = 2;
  // As many channels leave room for several rows in a block: with all of 2,048 in eight groups, the weights were read
  // again for every row, and it took 1.5 times as long.
  static constexpr int64_t kMostChannels = 512;

  const GwJob& job_;
  const GwConvolution& c_;
  int64_t missing_;
  bool transposed_;
  Axis vertical_, horizontal_;
  Columns columns_;
  int64_t in_channels_, out_channels_, in_width_, out_width_;
  int64_t vectors_, panels_;  // vectors of a panel of output channels, panels of a group
  int64_t taps_;
  // Of several images they have room to spare: without, groups of 16 took 1.08 times as long.
  int64_t quotients_, plane_, panel_;
  int64_t chunk_, row_;       // groups that are copied at once, floats of a copied row
  int64_t block_ = 1;         // rows of outputs whose inputs are copied at once
  float* weights_ = nullptr;  // of all panels, if they are packed beforehand
};

}  // namespace
