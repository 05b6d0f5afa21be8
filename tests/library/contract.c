/* The C interface, call by call: contract MODEL TWO_DIRECTIONS. Both have D = 5, P = 6, H = 8 (that
 * is, a projection) and two layers. The numbers are judged in test_library.py; here, what holds of
 * any. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fused_lstm.h"

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      fprintf(stderr, "line %d: %s; last error: %s\n", __LINE__, #condition, fl_last_error()); \
      exit(1);                                                                                 \
    }                                                                                          \
  } while (0)

enum { D = 5, H = 8, P = 6, L = 2, B = 3, T = 150 };

static float x[T * B * D], y[T * B * 2 * P], z[T * B * 2 * P];
static float h[2 * L * B * P], c[2 * L * B * H], h2[2 * L * B * P], c2[2 * L * B * H];

static void fill(float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = (float)((int)(i * 7919 % 41) - 20) / 16;
}
static int equal(const float* a, const float* b, size_t count) {
  return memcmp(a, b, count * sizeof(float)) == 0;
}
static int close_to(const float* a, const float* b, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (!(fabsf(a[i] - b[i]) <= 1e-6f)) return 0;
  }
  return 1;
}
static int says(const char* text) { return strstr(fl_last_error(), text) != NULL; }

static void check_loading(const char* path) {
  fl_model* model = NULL;
  fl_options options = FL_OPTIONS;
  CHECK(fl_last_error()[0] == 0);
  CHECK(fl_model_load(NULL, NULL, &model) == FL_INVALID_ARGUMENT && says("path is NULL"));
  CHECK(fl_model_load(path, NULL, NULL) == FL_INVALID_ARGUMENT && says("model is NULL"));
  CHECK(fl_model_load("/no/such/file", NULL, &model) == FL_IO_ERROR && says("/no/such/file"));
  CHECK(fl_model_load("/", NULL, &model) == FL_IO_ERROR && says("no regular file"));
  CHECK(fl_model_load_memory(NULL, 0, NULL, &model) == FL_INVALID_ARGUMENT);
  CHECK(fl_model_load_memory("", 0, NULL, &model) == FL_BAD_FILE && says("too short"));
  options.size = 1000;
  CHECK(fl_model_load(path, &options, &model) == FL_INVALID_ARGUMENT && says("options.size"));
  options.size = sizeof(options);
  options.format = 17;
  CHECK(fl_model_load(path, &options, &model) == FL_INVALID_ARGUMENT && says("options.format"));
  options.format = FL_AS_STORED;
  options.max_bytes = 10;
  CHECK(fl_model_load(path, &options, &model) == FL_IO_ERROR && says("max_bytes"));
  options.max_bytes = 0;
  options.prefix = "decoder.";
  CHECK(fl_model_load(path, &options, &model) == FL_BAD_MODEL && says("'decoder.'"));
  CHECK(model == NULL);
  for (int status = FL_OK; status <= FL_INTERNAL_ERROR; ++status) {
    CHECK(strlen(fl_error_text(status)) > 5);
  }
  CHECK(fl_error_text(99) != NULL);
  CHECK(strcmp(fl_version(), "0.1.0") == 0);
  fl_model_free(NULL);
  fl_stream_free(NULL);
}

static void check_facts(const char* path) {
  static const fl_format formats[] = {FL_FLOAT32, FL_BFLOAT16, FL_INT8};
  size_t bytes[3];
  fl_model* model;
  fl_tensor tensor;
  for (int i = 0; i < 3; ++i) {
    fl_options options = FL_OPTIONS;
    options.format = formats[i];
    CHECK(fl_model_load(path, &options, &model) == FL_OK);
    CHECK(fl_model_format(model) == formats[i]);
    bytes[i] = fl_model_bytes(model);
    fl_model_free(model);
  }
  CHECK(bytes[0] > bytes[2]);
  CHECK(fl_model_load(path, NULL, &model) == FL_OK);
  CHECK(fl_model_format(model) == FL_FLOAT32);
  CHECK(fl_model_layers(model) == L && fl_model_directions(model) == 1);
  CHECK(fl_model_input_size(model) == D && fl_model_hidden_size(model) == H);
  CHECK(fl_model_projection_size(model) == P && fl_model_output_size(model) == P);
  CHECK(fl_model_tensor(model, "fc.weight", &tensor) == FL_OK);
  CHECK(tensor.dimensions == 2 && tensor.shape[0] == 4 && tensor.shape[1] == P);
  CHECK(fl_model_tensor(model, "none", &tensor) == FL_NOT_FOUND && says("'none'"));
  CHECK(fl_model_tensor(model, "lstm.weight_ih_l0", &tensor) == FL_NOT_FOUND);
  CHECK(fl_model_tensor(model, "integers", &tensor) == FL_NOT_FOUND);
  CHECK(fl_model_tensor(model, "infinite", &tensor) == FL_NOT_FINITE && says("'infinite'"));
  CHECK(fl_model_tensor(model, NULL, &tensor) == FL_INVALID_ARGUMENT);
  fl_model_free(model);
}

static void check_stream(const char* path) {
  fl_model* model;
  fl_stream *stream, *fork;
  CHECK(fl_model_load(path, NULL, &model) == FL_OK);
  CHECK(fl_stream_create(model, 0, &stream) == FL_INVALID_ARGUMENT && says("batch_size is 0"));
  CHECK(fl_stream_create(model, INT64_MAX, &stream) == FL_INVALID_ARGUMENT);
  CHECK(fl_stream_create(NULL, 1, &stream) == FL_INVALID_ARGUMENT && says("model is NULL"));
  CHECK(fl_stream_create(model, B, &stream) == FL_OK);
  fl_model_free(model); /* the stream goes on */
  CHECK(fl_stream_batch_size(stream) == B);

  CHECK(fl_step(NULL, x, y) == FL_INVALID_ARGUMENT && says("stream is NULL"));
  CHECK(fl_step(stream, NULL, y) == FL_INVALID_ARGUMENT && says("x is NULL"));
  CHECK(fl_step(stream, x, NULL) == FL_INVALID_ARGUMENT && says("y is NULL"));
  CHECK(fl_sequence(stream, x, -1, y) == FL_INVALID_ARGUMENT && says("T is -1"));
  CHECK(fl_sequence(stream, x, INT64_MAX, y) == FL_INVALID_ARGUMENT && says("T is"));
  CHECK(fl_sequence(stream, NULL, 0, NULL) == FL_OK);
  CHECK(fl_sequence(stream, NULL, 1, y) == FL_INVALID_ARGUMENT && says("x is NULL"));
  CHECK(fl_stream_reserve(stream, T) == FL_OK);
  CHECK(fl_stream_reserve(stream, -1) == FL_INVALID_ARGUMENT);

  /* Steps and a sequence are the same; the state goes on. */
  for (int t = 0; t < T; ++t) CHECK(fl_step(stream, x + t * B * D, y + t * B * P) == FL_OK);
  CHECK(fl_state_get(stream, h, c) == FL_OK);
  CHECK(equal(h + (L - 1) * B * P, y + (T - 1) * B * P, B * P));
  CHECK(fl_stream_reset(stream, NULL) == FL_OK);
  CHECK(fl_sequence(stream, x, T, z) == FL_OK);
  CHECK(close_to(y, z, T * B * P));
  CHECK(fl_state_get(stream, h2, NULL) == FL_OK && fl_state_get(stream, NULL, c2) == FL_OK);
  CHECK(close_to(h, h2, L * B * P) && close_to(c, c2, L * B * H));

  /* In place */
  CHECK(fl_stream_reset(stream, NULL) == FL_OK);
  static float both[B * P];
  memcpy(both, x, sizeof(float) * B * D);
  CHECK(fl_step(stream, both, both) == FL_OK);
  CHECK(equal(both, y, B * P));

  /* A fork goes on from the same state, and on its own. */
  CHECK(fl_stream_fork(stream, &fork) == FL_OK);
  CHECK(fl_step(fork, x + B * D, z) == FL_OK && equal(z, y + B * P, B * P));
  CHECK(fl_step(stream, x + B * D, z) == FL_OK && equal(z, y + B * P, B * P));
  CHECK(fl_stream_fork(NULL, &fork) == FL_INVALID_ARGUMENT);
  fl_stream_free(fork);

  /* One sequence of the batch starts anew, the others do not. */
  static const bool mask[B] = {false, true, false};
  CHECK(fl_stream_reset(stream, mask) == FL_OK);
  CHECK(fl_state_get(stream, h, c) == FL_OK);
  for (int k = 0; k < L; ++k) {
    for (int b = 0; b < B; ++b) {
      CHECK((h[(k * B + b) * P] == 0) == mask[b] && (c[(k * B + b) * H] == 0) == mask[b]);
    }
  }
  CHECK(fl_step(stream, x, z) == FL_OK);
  CHECK(equal(z + P, y + P, P) && !equal(z, y, P));

  /* The state can be set. */
  CHECK(fl_stream_reset(stream, NULL) == FL_OK);
  CHECK(fl_step(stream, x, z) == FL_OK);
  CHECK(fl_state_get(stream, h, c) == FL_OK);
  CHECK(fl_step(stream, x, z) == FL_OK);
  CHECK(fl_state_set(stream, h, NULL) == FL_OK && fl_state_set(stream, NULL, c) == FL_OK);
  CHECK(fl_step(stream, x + B * D, z) == FL_OK && equal(z, y + B * P, B * P));

  /* A NaN stays in its sequence. */
  CHECK(fl_stream_reset(stream, NULL) == FL_OK);
  static float wrong[B * D];
  memcpy(wrong, x, sizeof(wrong));
  wrong[D] = NAN;
  CHECK(fl_step(stream, wrong, z) == FL_OK);
  CHECK(equal(z, y, P) && isnan(z[P]) && equal(z + 2 * P, y + 2 * P, P));
  fl_stream_free(stream);
}

static void check_two_directions(const char* path) {
  fl_model* model;
  fl_stream *stream, *fork;
  CHECK(fl_model_load(path, NULL, &model) == FL_OK);
  CHECK(fl_model_directions(model) == 2 && fl_model_output_size(model) == 2 * P);
  CHECK(fl_stream_create(model, B, &stream) == FL_OK);
  fl_model_free(model);
  CHECK(fl_step(stream, x, y) == FL_BIDIRECTIONAL && says("fl_sequence"));
  CHECK(fl_state_set(stream, h, c) == FL_BIDIRECTIONAL);
  CHECK(fl_stream_reserve(stream, 4) == FL_OK);
  CHECK(fl_sequence(stream, x, T, y) == FL_OK);
  CHECK(fl_state_get(stream, h, c) == FL_OK);
  /* The last layer's final states: forward at the last step, reverse at the first */
  for (int b = 0; b < B; ++b) {
    CHECK(equal(h + (2 * (L - 1) * B + b) * P, y + ((T - 1) * B + b) * 2 * P, P));
    CHECK(equal(h + ((2 * L - 1) * B + b) * P, y + b * 2 * P + P, P));
  }
  /* From zeros again */
  CHECK(fl_sequence(stream, x, T, z) == FL_OK && equal(y, z, T * B * 2 * P));
  CHECK(fl_stream_fork(stream, &fork) == FL_OK);
  CHECK(fl_state_get(fork, h2, c2) == FL_OK);
  CHECK(equal(h, h2, 2 * L * B * P) && equal(c, c2, 2 * L * B * H));
  CHECK(fl_sequence(fork, x, T, z) == FL_OK && equal(y, z, T * B * 2 * P));
  CHECK(fl_stream_reset(fork, NULL) == FL_OK && fl_state_get(fork, h2, NULL) == FL_OK);
  CHECK(h2[0] == 0 && fl_state_get(stream, h2, NULL) == FL_OK && h2[0] == h[0]);
  fl_stream_free(fork);
  fl_stream_free(stream);
}

int main(int count, char** arguments) {
  if (count != 3) return 2;
  fill(x, sizeof(x) / sizeof(*x));
  check_loading(arguments[1]);
  check_facts(arguments[1]);
  check_stream(arguments[1]);
  check_two_directions(arguments[2]);
  printf("as the header says\n");
  return 0;
}
