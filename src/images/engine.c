// The hot loops behind src/images/engine.py and ascend310_infer: decode the part of a JPEG that a crop needs, resize
// it, change its colours. Every byte equals Pillow's. Only undamaged everyday JPEGs are decoded here; the callers
// decode all other files themselves.

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "resample.h"

enum { DONE = 0, ASK_PILLOW = 1, NO_MEMORY = 2 };

// Reading

typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf jump;
} Errors;

static void on_error(j_common_ptr info) { longjmp(((Errors *)info->err)->jump, 1); }

static void on_message(j_common_ptr info) { (void)info; }

// Whether a file is a complete baseline JPEG of one scan: segments that every decoder knows, then compressed data with
// no markers but restarts, then the end marker as the last two bytes: nothing is missing, nothing follows.
__attribute__((noinline)) static int is_plain(const uint8_t *data, size_t length) {
  if (length < 4 || data[0] != 0xFF || data[1] != 0xD8 || data[length - 2] != 0xFF || data[length - 1] != 0xD9) return 0;
  size_t position = 2;
  for (;;) {
    if (position + 4 > length || data[position] != 0xFF) return 0;
    const uint8_t marker = data[position + 1];
    const size_t segment = (size_t)data[position + 2] << 8 | data[position + 3];
    const int known = (marker >= 0xE0 && marker <= 0xEF) || marker == 0xFE || marker == 0xC0 || marker == 0xC4 ||
                      marker == 0xDB || marker == 0xDD || marker == 0xDA;
    if (!known || segment < 2 || position + 2 + segment > length) return 0;
    position += 2 + segment;
    if (marker == 0xDA) break;
  }
  while (position < length) {
    const uint8_t *found = memchr(data + position, 0xFF, length - position);
    if (found == NULL || found + 1 >= data + length) return 0;
    position = (size_t)(found - data) + 2;
    if (found[1] != 0 && (found[1] < 0xD0 || found[1] > 0xD7)) return position == length;
  }
  return 0;
}

// Grey, or YCbCr whose colours are as fine as its brightness or half as fine each way. Of others, libjpeg-turbo decodes a
// part at a reduced size to other pixels than the whole.
static int is_everyday(const struct jpeg_decompress_struct *info) {
  const jpeg_component_info *part = info->comp_info;
  if (info->num_components == 1) return info->jpeg_color_space == JCS_GRAYSCALE;
  return info->num_components == 3 && info->jpeg_color_space == JCS_YCbCr && part[0].h_samp_factor <= 2 &&
         part[0].v_samp_factor <= 2 && part[1].h_samp_factor * part[1].v_samp_factor == 1 &&
         part[2].h_samp_factor * part[2].v_samp_factor == 1;
}

// Read the header; 0 unless it is of an everyday JPEG. `info` and `errors` are the caller's, whose locals
// keep their values when libjpeg leaves by longjmp; those of the function that calls setjmp would not.
static int read_header(struct jpeg_decompress_struct *info, Errors *errors, const uint8_t *data, size_t length) {
  memset(info, 0, sizeof *info);
  info->err = jpeg_std_error(&errors->base);
  errors->base.error_exit = on_error;
  errors->base.output_message = on_message;
  if (setjmp(errors->jump) != 0) return 0;
  jpeg_create_decompress(info);
  jpeg_mem_src(info, data, (unsigned long)length);
  if (jpeg_read_header(info, TRUE) != JPEG_HEADER_OK) return 0;
  return is_everyday(info) && !info->progressive_mode && info->comps_in_scan == info->num_components &&
         errors->base.num_warnings == 0;
}

// Width and height of an undamaged everyday JPEG: size[0], size[1].
int32_t jpeg_size(const uint8_t *data, size_t length, int32_t *size) {
  struct jpeg_decompress_struct info;
  Errors errors;
  if (!is_plain(data, length)) return ASK_PILLOW;
  const int found = read_header(&info, &errors, data, length);
  size[0] = (int32_t)info.image_width;
  size[1] = (int32_t)info.image_height;
  jpeg_destroy_decompress(&info);
  return found ? DONE : ASK_PILLOW;
}

// Decode an image at 1/reduce of its size, resize its box `left, top, width, height` to `new_width` x `new_height`, and
// cut out the square of `side` pixels whose upper left corner is `window_left, window_top`; mirror it if `flip` is 1.
typedef struct {
  int32_t reduce, left, top, width, height, new_width, new_height, window_left, window_top, side, filter, flip;
} Request;

// libjpeg-turbo writes aligned rows to memory past the cache, which would have to load them again; LEAD misaligns them.
enum { LEAD = 68 };

// The buffers for one image.
typedef struct {
  Weights across, down;
  int32_t first_row, last_row;  // of the box
  uint8_t *line;                // room for LEAD bytes, a decoded row of pixels of 4 bytes and what is read behind it
  uint8_t *rows;                // rows that are resized across
  uint8_t *mixed;               // room for a row that is resized both ways
} Work;

static void free_work(Work *work) {
  free_weights(&work->across);
  free_weights(&work->down);
  free(work->line);
  free(work->rows);
  free(work->mixed);
}

static int prepare_work(Work *work, const Request *request, size_t line_width) {
  const int32_t side = request->side;
  if (!compute_weights(&work->across, request->width, request->new_width, request->window_left, side, request->filter) ||
      !compute_weights(&work->down, request->height, request->new_height, request->window_top, side, request->filter)) {
    return 0;
  }
  work->first_row = work->down.first[0];
  work->last_row = work->down.first[side - 1] + work->down.count[side - 1];
  work->line = aligned_alloc(64, (LEAD + 4 * (line_width + (size_t)work->across.taps) + 63) / 64 * 64);
  work->rows = malloc((size_t)(work->last_row - work->first_row) * (size_t)side * 4);
  work->mixed = malloc((size_t)side * 4);
  return work->line && work->rows && work->mixed;
}

static void finish(const Work *work, const Request *request, uint8_t *out) {
  const size_t side = (size_t)request->side, stride = side * 4;
  for (int32_t y = 0; y < request->side; ++y) {
    const uint8_t *rows = work->rows + (size_t)(work->down.first[y] - work->first_row) * stride;
    mix_rows(rows, stride, work->down.fixed + (size_t)y * (size_t)work->down.taps, work->down.count[y], request->side,
             request->flip, work->mixed, out + (size_t)y * side, side * side);
  }
}

// Decode what the request needs of a started JPEG and resize it across, row by row.
static int read_rows(struct jpeg_decompress_struct *info, const Work *work, const Request *request, JDIMENSION offset) {
  const size_t stride = (size_t)request->side * 4;
  const int32_t shift = request->left - (int32_t)offset;
  JSAMPROW line = work->line + LEAD;
  while (info->output_scanline < (JDIMENSION)(request->top + work->last_row)) {
    const int32_t row = (int32_t)info->output_scanline - request->top - work->first_row;
    if (jpeg_read_scanlines(info, &line, 1) != 1) return 0;
    if (row >= 0) resize_row(line, shift, &work->across, request->side, work->rows + (size_t)row * stride);
  }
  return 1;
}

// Some columns beside the request are decoded, too: the smooth upsampling of colours reads neighbours. libjpeg itself reads
// the rows that it needs above.
static int decode(struct jpeg_decompress_struct *info, Errors *errors, Work *work, const Request *request) {
  if (setjmp(errors->jump) != 0) return ASK_PILLOW;
  info->scale_num = 1;
  info->scale_denom = (unsigned)request->reduce;
  info->out_color_space = JCS_EXT_RGBX;
  jpeg_start_decompress(info);
  const int32_t beside = 2 * info->max_h_samp_factor;
  if (request->left + request->width > (int32_t)info->output_width ||
      request->top + request->height > (int32_t)info->output_height) {
    return ASK_PILLOW;
  }
  if (!prepare_work(work, request, info->output_width)) return NO_MEMORY;
  const int32_t last = request->side - 1;
  int32_t begin = request->left + work->across.first[0] - beside;
  int32_t end = request->left + work->across.first[last] + work->across.count[last] + beside;
  if (begin < 0) begin = 0;
  if (end > (int32_t)info->output_width) end = (int32_t)info->output_width;
  JDIMENSION offset = (JDIMENSION)begin, width = (JDIMENSION)(end - begin);
  if (width < info->output_width) {
    jpeg_crop_scanline(info, &offset, &width);
  }
  const int32_t skipped = request->top + work->first_row;
  if (skipped > 0) jpeg_skip_scanlines(info, (JDIMENSION)skipped);
  if (!read_rows(info, work, request, offset) || errors->base.num_warnings != 0) return ASK_PILLOW;
  return DONE;
}

// A plain JPEG's part, resized, as three planes of side x side bytes.
int32_t jpeg_resized(const uint8_t *data, size_t length, const Request *request, uint8_t *out) {
  struct jpeg_decompress_struct info;
  Errors errors;
  Work work = {0};
  int32_t result = ASK_PILLOW;
  if (read_header(&info, &errors, data, length)) result = decode(&info, &errors, &work, request);
  if (result == DONE) finish(&work, request, out);
  jpeg_destroy_decompress(&info);
  free_work(&work);
  return result;
}

// The same for an image that is decoded already: rows of red, green and blue bytes, `stride` bytes apart, in which the
// request's box must lie. `reduce` is ignored.
int32_t pixels_resized(const uint8_t *pixels, size_t stride, const Request *request, uint8_t *out) {
  Work work = {0};
  const int ready = prepare_work(&work, request, (size_t)request->width);
  if (ready) {
    const int32_t last = request->side - 1, end = work.across.first[last] + work.across.count[last];
    for (int32_t y = work.first_row; y < work.last_row; ++y) {
      const uint8_t *row = pixels + (size_t)(request->top + y) * stride + 3 * (size_t)request->left;
      for (int32_t x = work.across.first[0]; x < end; ++x) {
        const uint8_t *from = row + 3 * (size_t)x;
        memcpy(work.line + 4 * (size_t)x, (uint8_t[4]){from[0], from[1], from[2], 255}, 4);
      }
      const size_t index = (size_t)(y - work.first_row);
      resize_row(work.line, 0, &work.across, request->side, work.rows + index * (size_t)request->side * 4);
    }
    finish(&work, request, out);
  }
  free_work(&work);
  return ready ? DONE : NO_MEMORY;
}

// Colours: Pillow's Blend.c and Convert.c as its ImageEnhance uses them

static inline int32_t grey(int32_t red, int32_t green, int32_t blue) {
  return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
}

static inline uint8_t blend(int32_t from, int32_t to, float factor) {
  // Pillow clips first and then drops the fraction; the other way round is the same, and faster.
  return (uint8_t)clip((int32_t)((float)from + factor * (float)(to - from)));
}

static void blend_with(uint8_t *values, size_t count, int32_t base, float factor) {
  for (size_t i = 0; i < count; ++i) values[i] = blend(base, values[i], factor);
}

static int32_t mean_grey(const uint8_t *planes, size_t plane) {
  uint64_t sum = 0;
  for (size_t start = 0; start < plane; start += 4096) {
    const size_t end = start + 4096 < plane ? start + 4096 : plane;
    int32_t part = 0;
    for (size_t i = start; i < end; ++i) part += grey(planes[i], planes[plane + i], planes[2 * plane + i]);
    sum += (uint64_t)part;
  }
  return (int32_t)((double)sum / (double)plane + 0.5);
}

static void saturate(uint8_t *planes, size_t plane, float factor) {
  for (size_t i = 0; i < plane; ++i) {
    const int32_t base = grey(planes[i], planes[plane + i], planes[2 * plane + i]);
    planes[i] = blend(base, planes[i], factor);
    planes[plane + i] = blend(base, planes[plane + i], factor);
    planes[2 * plane + i] = blend(base, planes[2 * plane + i], factor);
  }
}

// Brightness (0), contrast (1) and saturation (2) of three planes of `plane` bytes, in the order given.
void adjust_colours(uint8_t *planes, size_t plane, const int32_t *order, const float *factors) {
  for (int32_t turn = 0; turn < 3; ++turn) {
    const float factor = factors[order[turn]];
    if (order[turn] == 0) blend_with(planes, 3 * plane, 0, factor);
    if (order[turn] == 1) blend_with(planes, 3 * plane, mean_grey(planes, plane), factor);
    if (order[turn] == 2) saturate(planes, plane, factor);
  }
}
