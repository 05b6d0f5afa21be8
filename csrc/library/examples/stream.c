/* Streams a file through a trained LSTM and prints what comes out, a line a step, as soon as it is
 * there:
 *
 *   stream MODEL.safetensors INPUT [--prefix P] [--head NAME] [--decoder P --steps N]
 *
 * INPUT is a 16-bit PCM wave file, whose samples / 32768 are taken D at a time, or a text file with
 * D numbers a line, apart by commas or spaces; further ones and a first line of words are ignored.
 * The head is a linear layer of the same file, "fc" unless it is named; without one, h is printed.
 *
 * A model of two directions needs the whole input: one line, the head of both final states. With a
 * decoder, a second LSTM of the file, the final state is what that starts from: it reads the first
 * numbers of the last line, then N times its own output.
 *
 * These are the models of fused_lstm.models: LSTMClassifier (the last line is what it returns),
 * LSTMSequencePredictor(summary="final_states"), and Seq2Seq with
 *
 *   --prefix encoder.lstm. --decoder decoder.lstm. --head decoder.fc --steps 24 */
#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fused_lstm.h"

static void fail(const char* what, const char* why) {
  fprintf(stderr, "stream: %s: %s\n", what, why);
  exit(1);
}

static void check(fl_status status) {
  if (status != FL_OK) fail(fl_error_text(status), fl_last_error());
}

static float* floats(int64_t count) {
  float* const memory = calloc((size_t)count, sizeof(float));
  if (!memory) fail("memory", "there is none left");
  return memory;
}

/* The input, a row of `width` numbers after the other. */
typedef struct Input {
  FILE* file;
  const char* path;
  int64_t width;
  int is_wave;
  uint32_t left; /* bytes of a wave file */
} Input;

static uint32_t little_endian(const unsigned char* bytes, int count) {
  uint32_t value = 0;
  while (count > 0) value = value << 8 | bytes[--count];
  return value;
}

/* Goes to the samples of a wave file, past its header. */
static void open_wave(Input* input) {
  unsigned char chunk[8], format[16];
  int has_format = 0;
  if (fread(format, 1, 4, input->file) != 4 || memcmp(format, "WAVE", 4) != 0) {
    fail(input->path, "no wave file");
  }
  while (fread(chunk, 1, 8, input->file) == 8) {
    uint32_t size = little_endian(chunk + 4, 4);
    if (memcmp(chunk, "data", 4) == 0) {
      if (!has_format) fail(input->path, "a wave file without a format");
      input->left = size;
      return;
    }
    if (memcmp(chunk, "fmt ", 4) == 0 && size >= sizeof(format)) {
      if (fread(format, 1, sizeof(format), input->file) != sizeof(format)) break;
      if (little_endian(format, 2) != 1 || little_endian(format + 14, 2) != 16) {
        fail(input->path, "a wave file that is not 16-bit PCM");
      }
      has_format = 1;
      size -= (uint32_t)sizeof(format);
    }
    if (fseek(input->file, (long)size + (long)(size % 2), SEEK_CUR) != 0) break;
  }
  fail(input->path, "a wave file without samples");
}

static Input open_input(const char* path, int64_t width) {
  Input input = {fopen(path, "rb"), path, width, 0, 0};
  char start[8];
  if (!input.file) fail(path, "cannot be opened");
  if (fread(start, 1, 8, input.file) == 8 && memcmp(start, "RIFF", 4) == 0) {
    input.is_wave = 1;
    open_wave(&input);
  } else {
    rewind(input.file);
  }
  return input;
}

static int read_samples(Input* input, float* row) {
  for (int64_t i = 0; i < input->width; ++i) {
    unsigned char sample[2];
    if (input->left < 2 || fread(sample, 1, 2, input->file) != 2) return 0;
    input->left -= 2;
    const uint32_t bits = little_endian(sample, 2);
    row[i] = (float)((int32_t)bits - (bits >= 32768 ? 65536 : 0)) / 32768.0f;
  }
  return 1;
}

static int read_line(Input* input, float* row) {
  static char line[1 << 16];
  while (fgets(line, sizeof(line), input->file)) {
    if (!strchr(line, '\n') && !feof(input->file)) fail(input->path, "a line is too long");
    const char* at = line;
    int64_t count = 0;
    while (count < input->width) {
      char* end;
      while (*at && (isspace((unsigned char)*at) || strchr(",;", *at))) ++at;
      const float value = strtof(at, &end);
      if (end == at) break;
      row[count++] = value;
      at = end;
    }
    if (count == input->width) return 1;
    if (count > 0) fail(input->path, "a line has fewer numbers than the model takes");
  }
  return 0;
}

/* Reads a row [D]; 0 at the end of the input. */
static int read_row(Input* input, float* row) {
  return input->is_wave ? read_samples(input, row) : read_line(input, row);
}

/* A linear layer, or, without a weight, none. */
typedef struct Head {
  fl_tensor weight, bias; /* [outputs, inputs], [outputs] */
  int64_t outputs;
  float* y; /* [outputs] */
} Head;

static Head find_head(const fl_model* model, const char* name, int64_t inputs) {
  Head head = {{NULL, 0, {0}}, {NULL, 0, {0}}, inputs, NULL};
  char full[256];
  snprintf(full, sizeof(full), "%s.weight", name);
  const fl_status status = fl_model_tensor(model, full, &head.weight);
  if (status != FL_NOT_FOUND) {
    check(status);
    if (head.weight.dimensions != 2 || head.weight.shape[1] != inputs) {
      fail(full, "must be [outputs, features of h]");
    }
    head.outputs = head.weight.shape[0];
    snprintf(full, sizeof(full), "%s.bias", name);
    check(fl_model_tensor(model, full, &head.bias));
    if (head.bias.dimensions != 1 || head.bias.shape[0] != head.outputs) {
      fail(full, "must be [outputs]");
    }
  }
  head.y = floats(head.outputs);
  return head;
}

static void apply(Head* head, const float* h) {
  for (int64_t i = 0; i < head->outputs; ++i) {
    if (!head->weight.data) {
      head->y[i] = h[i];
      continue;
    }
    double sum = head->bias.data[i];
    const int64_t inputs = head->weight.shape[1];
    for (int64_t j = 0; j < inputs; ++j) {
      sum += (double)head->weight.data[i * inputs + j] * h[j];
    }
    head->y[i] = (float)sum;
  }
}

static void print(const Head* head) {
  for (int64_t i = 0; i < head->outputs; ++i) printf("%s%.9g", i ? "," : "", head->y[i]);
  printf("\n");
  fflush(stdout);
}

/* One direction: a step and a line for each row. */
static void run_steps(fl_stream* stream, Input* input, Head* head, float* x, float* h, int prints) {
  while (read_row(input, x)) {
    check(fl_step(stream, x, h));
    if (!prints) continue;
    apply(head, h);
    print(head);
  }
}

/* Two directions: the whole sequence, then the final states of the last layer. */
static void run_sequence(const fl_model* model, fl_stream* stream, Input* input, Head* head) {
  const int64_t D = fl_model_input_size(model), P = fl_model_projection_size(model);
  int64_t T = 0, room = 256;
  float* x = floats(room * D);
  while (read_row(input, x + T * D)) {
    if (++T < room) continue;
    x = realloc(x, (size_t)(2 * room * D) * sizeof(float));
    if (!x) fail("memory", "there is none left");
    room *= 2;
  }
  float* const y = floats((T + 1) * 2 * P);
  float* const states = floats(fl_model_layers(model) * 2 * P);
  check(fl_sequence(stream, x, T, y));
  check(fl_state_get(stream, states, NULL));
  apply(head, states + (fl_model_layers(model) - 1) * 2 * P);
  print(head);
  free(states);
  free(y);
  free(x);
}

/* A decoder that starts from the stream's state and from the first numbers of the last row. */
static void decode(const char* path, const char* prefix, const char* name, long steps,
                   const fl_model* encoder, const fl_stream* from, const float* last) {
  fl_options options = FL_OPTIONS;
  fl_model* model;
  fl_stream* stream;
  options.prefix = prefix;
  check(fl_model_load(path, &options, &model));
  check(fl_stream_create(model, 1, &stream));
  const int64_t L = fl_model_layers(model), H = fl_model_hidden_size(model);
  const int64_t P = fl_model_projection_size(model), D = fl_model_input_size(model);
  Head head = find_head(model, name, P);
  if (L != fl_model_layers(encoder) || H != fl_model_hidden_size(encoder) ||
      P != fl_model_projection_size(encoder) || head.outputs != D ||
      D > fl_model_input_size(encoder)) {
    fail(path, "encoder, decoder and head do not fit one another");
  }
  float *const h = floats(L * P), *const c = floats(L * H), *const y = floats(P);
  check(fl_state_get(from, h, c));
  check(fl_state_set(stream, h, c));
  const float* x = last;
  for (long i = 0; i < steps; ++i) {
    check(fl_step(stream, x, y));
    apply(&head, y);
    print(&head);
    x = head.y;
  }
  free(h);
  free(c);
  free(y);
  free(head.y);
  fl_stream_free(stream);
  fl_model_free(model);
}

int main(int count, char** arguments) {
  fl_options options = FL_OPTIONS;
  const char *head_name = "fc", *decoder = NULL;
  long steps = 1;
  int is_wrong = count < 3 || count % 2 == 0;
  for (int i = 3; i + 1 < count; i += 2) {
    if (strcmp(arguments[i], "--prefix") == 0) {
      options.prefix = arguments[i + 1];
    } else if (strcmp(arguments[i], "--head") == 0) {
      head_name = arguments[i + 1];
    } else if (strcmp(arguments[i], "--decoder") == 0) {
      decoder = arguments[i + 1];
    } else if (strcmp(arguments[i], "--steps") == 0) {
      steps = strtol(arguments[i + 1], NULL, 10);
    } else {
      is_wrong = 1;
    }
  }
  if (is_wrong) {
    fail("arguments", "MODEL INPUT [--prefix P] [--head NAME] [--decoder P --steps N]");
  }
  fl_model* model;
  fl_stream* stream;
  check(fl_model_load(arguments[1], &options, &model));
  check(fl_stream_create(model, 1, &stream));
  const int64_t D = fl_model_input_size(model);
  Input input = open_input(arguments[2], D);
  if (fl_model_directions(model) == 2) {
    Head head = find_head(model, head_name, fl_model_output_size(model));
    run_sequence(model, stream, &input, &head);
    free(head.y);
  } else {
    float *const x = floats(D), *const h = floats(fl_model_output_size(model));
    Head head = {{NULL, 0, {0}}, {NULL, 0, {0}}, 0, NULL};
    if (!decoder) head = find_head(model, head_name, fl_model_output_size(model));
    run_steps(stream, &input, &head, x, h, !decoder);
    if (decoder) decode(arguments[1], decoder, head_name, steps, model, stream, x);
    free(head.y);
    free(h);
    free(x);
  }
  fclose(input.file);
  fl_stream_free(stream);
  fl_model_free(model);
  return 0;
}
