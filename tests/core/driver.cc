// Draws convolutions and compares every family, pass and instruction set with the reference, max poolings, batch
// norms, shuffles and resizes with plain loops, and calls at once with calls one after the other; ends with 1 on a
// mistake.
//
//   driver [SPECS A KIND] [SEED]
//
// Arrays lie at unaligned addresses and end where their memory ends, for the sanitizers to see; outputs are poisoned
// first, and every pass runs twice, to give the same bits. Tolerance: 1e-5 * conv(|x|, |w|), 3e-5 for kernel gradients.
#include <stdio.h>
#include <stdlib.h>

#include "convolutions.h"
#include "fusions.h"
#include "normalizations.h"
#include "poolings.h"
#include "resizes.h"
#include "separables.h"
#include "shuffles.h"

int main(int count, char** arguments) {
  const int64_t specs = count > 1 ? atol(arguments[1]) : 1000;
  engine.seed(count > 2 ? uint64_t(atol(arguments[2])) : 0);
  int mistakes = 0;
  for (int64_t number = 0; const char* set = gw_instruction_set_name(number); ++number) {
    if (gw_use_instruction_set(set) != GW_OK) continue;
    for (int64_t row = 0; const char* family = gw_family_name(row); ++row) {
      if (!strcmp(family, "reference")) continue;
      for (int64_t i = 0; i < specs; ++i) mistakes += check(draw_convolution(family), int(i % 3), family);
      for (int64_t i = 0; i < specs; ++i) mistakes += check_fusion(draw_convolution(family), int(i % 3), family);
      for (int64_t i = 0; i < specs && strcmp(family, "wide") != 0; ++i)
        mistakes += check_separable(draw_convolution(family));
      printf("%s, %s: %ld convolutions drawn, and as many fused\n", set, family, long(specs));
      fflush(stdout);
    }
    for (int64_t i = 0; i < specs; ++i) mistakes += check_pooling(draw_pooling(), i % 2 ? GW_BFLOAT16 : GW_FLOAT32);
    printf("%s: %ld poolings drawn\n", set, long(specs));
    for (int64_t i = 0; i < specs; ++i) mistakes += check(draw_normalization());
    printf("%s: %ld normalisations drawn\n", set, long(specs));
    for (int64_t i = 0; i < specs; ++i) mistakes += check_shuffle();
    printf("%s: %ld shuffles drawn\n", set, long(specs));
    for (int64_t i = 0; i < specs; ++i) mistakes += check(draw_resizing());
    printf("%s: %ld resizes drawn\n", set, long(specs));
    fflush(stdout);
    mistakes += check_at_once();
  }
  printf("%d mistakes\n", mistakes);
  return mistakes != 0;
}
