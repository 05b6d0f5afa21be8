/* LSTMs on a CPU, without Python: trained nn.LSTM weights from a safetensors file, and streams that
 * own their state.
 *
 *   fl_model* model;
 *   fl_stream* stream;
 *   if (fl_model_load("model.safetensors", NULL, &model)) return fail(fl_last_error());
 *   if (fl_stream_create(model, 1, &stream)) return fail(fl_last_error());
 *   while (read(x)) {
 *     fl_step(stream, x, y);
 *     write(y);
 *   }
 *   fl_stream_free(stream);
 *   fl_model_free(model);
 *
 * Sizes   L layers, n directions (1 or 2), D input features, H hidden units, P features of h
 *         (a projection's, else H), B sequences of a stream, T steps.
 * Arrays  float32, dense, row-major: [B, D] is B rows of D floats.
 * Errors  Every function that can fail returns FL_OK, which is 0, or what went wrong; results are
 *         then left as they were. No C++ exception leaves the library.
 * Threads A model never changes: any number of threads and streams may share it. A stream is one
 *         thread's at a time. Calls compute on the calling thread and start no other.
 * Memory  fl_step allocates nothing and takes no lock.
 *
 * The environment variable FUSED_LSTM_CPU_ISA limits the instructions that are used, as in
 * fused_lstm for PyTorch; it is read when the first model is loaded. Then it is also measured how
 * gates are quickest, so that from process to process results may differ by float32's rounding. */
#ifndef FUSED_LSTM_H_
#define FUSED_LSTM_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FL_VERSION_MAJOR 0
#define FL_VERSION_MINOR 1
#define FL_VERSION_PATCH 0

#if defined(__GNUC__)
#define FL_API __attribute__((visibility("default")))
#else
#define FL_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum fl_status {
  FL_OK = 0,
  FL_INVALID_ARGUMENT = 1, /* an argument is not what its function asks for */
  FL_OUT_OF_MEMORY = 2,
  FL_IO_ERROR = 3,        /* the file cannot be read */
  FL_BAD_FILE = 4,        /* no safetensors file, or a damaged one */
  FL_BAD_MODEL = 5,       /* the file's tensors are no LSTM, or not all of one */
  FL_NOT_FINITE = 6,      /* a weight is NaN or infinite */
  FL_NOT_FOUND = 7,       /* the file has no such tensor */
  FL_BIDIRECTIONAL = 8,   /* the reverse direction needs the whole sequence: fl_sequence */
  FL_UNSUPPORTED_CPU = 9, /* FUSED_LSTM_CPU_ISA names what this processor lacks */
  FL_INTERNAL_ERROR = 10
} fl_status;

/* What weights are kept in. Inputs, outputs and states are float32 in each; sums are float32, of
 * int8 products int32. */
typedef enum fl_format {
  FL_AS_STORED = 0, /* bfloat16 or int8 if all weights are stored so, else float32 */
  FL_FLOAT32 = 1,
  FL_BFLOAT16 = 2, /* activations are rounded to bfloat16 too */
  FL_INT8 = 3      /* with a scale for each row; activations are quantised row by row */
} fl_format;

typedef struct fl_model fl_model;
typedef struct fl_stream fl_stream;

/* Set `size` to sizeof(fl_options), as FL_OPTIONS does. */
typedef struct fl_options {
  size_t size;
  int32_t format; /* an fl_format; int8 weights stay int8, others are rounded to it */
  /* What precedes nn.LSTM's names in the file, "encoder.lstm." say; "" if nothing does. NULL: what
   * the file has, if that is one LSTM. */
  const char* prefix;
  uint64_t max_bytes; /* a larger file is refused; 0: 4 GiB */
} fl_options;
#define FL_OPTIONS {sizeof(fl_options), FL_AS_STORED, NULL, 0}

/* "0.1.0" */
FL_API const char* fl_version(void);
/* The instructions of the kernels, "avx512vnni" say; NULL where FUSED_LSTM_CPU_ISA is wrong. */
FL_API const char* fl_instruction_set(void);
/* What an fl_status means, in one line; never NULL. */
FL_API const char* fl_error_text(int status);
/* What was wrong in the calling thread's last call that failed, in one line: which argument,
 * tensor or byte, what it is and what it must be. "" if none failed. Overwritten by the next one.
 */
FL_API const char* fl_last_error(void);

/* Loads an LSTM from a safetensors file, with nn.LSTM's names: weight_ih_l0 [4H, D], weight_hh_l0
 * [4H, P], weight_hr_l0 [P, H] with a projection, bias_ih_l0 and bias_hh_l0 [4H] unless there are
 * none, the same with _reverse of a second direction, and so on for l1, .. ; or with nn.LSTMCell's:
 * weight_ih, weight_hh, bias_ih, bias_hh, a layer. Weights are stored in
 * F64, F32, F16 or BF16, or in I8 beside NAME_scale [rows] in F32, where element times scale is the
 * weight. The file may hold other tensors. It is read once; files that someone else wrote may be
 * loaded. `options` may be NULL. */
FL_API fl_status fl_model_load(const char* path, const fl_options* options, fl_model** model);
/* The same from memory, which may be freed afterwards. */
FL_API fl_status fl_model_load_memory(const void* bytes, size_t size, const fl_options* options,
                                      fl_model** model);
/* Streams that were created from it go on; NULL is ignored. */
FL_API void fl_model_free(fl_model* model);

FL_API int64_t fl_model_layers(const fl_model* model);          /* L */
FL_API int64_t fl_model_directions(const fl_model* model);      /* n */
FL_API int64_t fl_model_input_size(const fl_model* model);      /* D */
FL_API int64_t fl_model_hidden_size(const fl_model* model);     /* H */
FL_API int64_t fl_model_projection_size(const fl_model* model); /* P */
FL_API int64_t fl_model_output_size(const fl_model* model);     /* n P */
FL_API fl_format fl_model_format(const fl_model* model);        /* never FL_AS_STORED */
FL_API size_t fl_model_bytes(const fl_model* model);            /* of the packed weights */

/* A tensor of the file that is no part of the LSTM, a linear layer's say, converted to float32. */
typedef struct fl_tensor {
  const float* data; /* as long as the model */
  int32_t dimensions;
  int64_t shape[8];
} fl_tensor;
/* Finds one by its whole name in the file: of those in F64, F32, F16 and BF16. */
FL_API fl_status fl_model_tensor(const fl_model* model, const char* name, fl_tensor* tensor);

/* A stream of B sequences, with a state of zeros. */
FL_API fl_status fl_stream_create(const fl_model* model, int64_t batch_size, fl_stream** stream);
/* A second stream that goes on from the same state, with memory of its own. */
FL_API fl_status fl_stream_fork(const fl_stream* stream, fl_stream** fork);
FL_API void fl_stream_free(fl_stream* stream); /* NULL is ignored */
FL_API int64_t fl_stream_batch_size(const fl_stream* stream);

/* One step. x [B, D], y [B, P]; y may be x. For models of one direction. */
FL_API fl_status fl_step(fl_stream* stream, const float* x, float* y);
/* T steps. x [T, B, D], y [T, B, n P], apart from x. With one direction it goes on from the
 * stream's state; the first call with T > 1 allocates, unless fl_stream_reserve has. With two it
 * starts from zeros, for x is the whole sequence, leaves the final states of both directions in the
 * stream, and allocates where T is larger than in any call before. */
FL_API fl_status fl_sequence(fl_stream* stream, const float* x, int64_t T, float* y);
/* Allocates what fl_sequence needs for as many steps, so that it does not. */
FL_API fl_status fl_stream_reserve(fl_stream* stream, int64_t T);

/* Sets the state to zeros, of those sequences where mask [B] is true; of all if it is NULL. */
FL_API fl_status fl_stream_reset(fl_stream* stream, const bool* mask);
/* The state: h [L n, B, P] and c [L n, B, H], as nn.LSTM's h_n and c_n: layer by layer, in each the
 * forward direction first. Either may be NULL. Only streams of one direction can be set. */
FL_API fl_status fl_state_get(const fl_stream* stream, float* h, float* c);
FL_API fl_status fl_state_set(fl_stream* stream, const float* h, const float* c);

#ifdef __cplusplus
}
#endif

#endif /* FUSED_LSTM_H_ */
