/* Reads from standard input, until it ends: an image's width and height, a Request, the image's rows of R, G, B. Writes
 * for each what pixels_resized returned and, if that is DONE, the planes. Nothing lies behind the image in memory, so
 * AddressSanitizer sees every byte that is read too far. */
#include "../../src/images/engine.c"

int main(void) {
  int32_t size[2];
  Request request;
  while (fread(size, sizeof size, 1, stdin) == 1 && fread(&request, sizeof request, 1, stdin) == 1) {
    const size_t stride = 3 * (size_t)size[0], rows = (size_t)size[1], side = (size_t)request.side;
    uint8_t *pixels = malloc(stride * rows), *planes = malloc(3 * side * side);
    if (!pixels || !planes || fread(pixels, stride, rows, stdin) != rows) return 1;
    const int32_t result = pixels_resized(pixels, stride, &request, planes);
    fwrite(&result, sizeof result, 1, stdout);
    if (result == DONE) fwrite(planes, side * side, 3, stdout);
    free(pixels);
    free(planes);
  }
  return 0;
}
