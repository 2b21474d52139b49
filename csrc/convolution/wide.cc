// Groups of 9 channels and more, dense and 1x1 convolutions included: all of it matrix products.
//
// A tile of sums stays in registers: some pixels by some vectors of output channels. Each step broadcasts one input of
// every pixel and multiplies it with the weights' vectors. Inputs are first copied into scratch memory, channel by
// channel ([channel][column]), so that a tile's inputs are neighbours at constant distances.
#include "wide_image.h"
#include "wide_kernel.h"

namespace {

// A matrix product has no rows: its pixels are cut into rows that whole tiles fill.
constexpr int64_t kRowPixels = 4 * kPixels;

GwConvolution with_rows(GwConvolution c, int64_t rows, int64_t pixels) {
  c.batch = 1;
  c.height = c.out_height = rows;
  c.width = c.out_width = pixels;
  return c;
}

// Few pixels are rows of one tile, which reads its inputs one after the other. The last row may be shorter.
GwStatus matrix_product(const GwJob& job) {
  const GwConvolution& c = *job.convolution;
  const int64_t pixels = c.batch * c.height * c.width, row = pixels <= ImagePass::kFewPixels ? kPixels : kRowPixels;
  const int64_t rows = divide_up(pixels, row);
  const int64_t columns = divide_up(pixels, maximum(1, rows));
  const GwConvolution product = with_rows(c, rows, columns);
  GwJob same = job;
  same.convolution = &product;
  return ImagePass(same, rows * columns - pixels).run();
}

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
