// Channel shuffles drawn and compared with plain loops.
#pragma once
#include "arrays.h"

namespace {

int check_shuffle() {
  const int64_t pixels = draw(0, 1) ? draw(0, 20) : draw(0, 3000), rows = draw(1, 9), columns = draw(1, 40);
  Array in(pixels * rows * columns), out(in.count), back(in.count);
  in.fill();
  out.poison();
  back.poison();
  const char* mistake = nullptr;
  if (gw_shuffle(pixels, rows, columns, in.data, out.data, nullptr)) mistake = "refused";
  else if (gw_shuffle(pixels, columns, rows, out.data, back.data, nullptr)) mistake = "refused the inverse";
  for (int64_t i = 0; i < in.count && !mistake; ++i) {
    const int64_t pixel = i / (rows * columns), row = i / columns % rows, column = i % columns;
    if (in.data[i] != out.data[(pixel * columns + column) * rows + row]) mistake = "wrong";
    else if (in.data[i] != back.data[i]) mistake = "wrong inverse";
  }
  if (mistake) printf("%s: shuffle of %ld pixels of %ldx%ld\n", mistake, long(pixels), long(rows), long(columns));
  return mistake != nullptr;
}

}  // namespace
