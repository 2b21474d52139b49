// The channels of each pixel as a matrix, transposed: ShuffleNet's channel shuffle, and its inverse.
#include "jobs.h"

namespace {

// `rows` is a constant wherever it can be: the compiler then interleaves whole vectors.
GW_INLINE void transpose(const float* in, int64_t rows, int64_t columns, float* out) {
  for (int64_t column = 0; column < columns; ++column) {
#pragma GCC unroll 8
    for (int64_t row = 0; row < rows; ++row) out[column * rows + row] = in[row * columns + column];
  }
}

void shuffle_pixels(const GwShuffleJob& job, int64_t first, int64_t last) {
  const int64_t rows = job.rows, columns = job.columns, channels = rows * columns;
  for (int64_t pixel = first; pixel < last; ++pixel) {
    const float* in = job.in + pixel * channels;
    float* out = job.out + pixel * channels;
    switch (rows) {
      case 2:
        transpose(in, 2, columns, out);
        break;
      case 3:
        transpose(in, 3, columns, out);
        break;
      case 4:
        transpose(in, 4, columns, out);
        break;
      case 8:
        transpose(in, 8, columns, out);
        break;
      default:
        transpose(in, rows, columns, out);
    }
  }
}

}  // namespace

void GW_NAME(shuffle)(const GwShuffleJob& job) {
  const RowTasks tasks(1, job.pixels, job.pixels, job.executor->threads);
  move_in_parallel(*job.executor, tasks.tasks, job.pixels * job.rows * job.columns,
                   [&](int64_t task) { shuffle_pixels(job, tasks.first(task), tasks.last(task)); });
}
