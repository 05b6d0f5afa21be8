/* Threads that share a model and load others, a stream each: threads MODEL. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fused_lstm.h"

enum { kThreads = 4, kSteps = 300 };

static const char* path;
static fl_model* shared;
static float expected[kSteps * 64];
static int64_t D, P;

static void run(const fl_model* model, float* y) {
  fl_stream* stream;
  float x[64];
  if (fl_stream_create(model, 1, &stream)) abort();
  for (int t = 0; t < kSteps; ++t) {
    for (int64_t i = 0; i < D; ++i) x[i] = (float)((t + i) % 7) / 4 - 1;
    if (fl_step(stream, x, y + t * P)) abort();
  }
  fl_stream_free(stream);
}

static void* work(void* failed) {
  fl_model* own;
  float y[kSteps * 64];
  /* Each thread has its own last error. */
  if (fl_model_load("/no/such/file", NULL, &own) != FL_IO_ERROR) *(int*)failed = 1;
  if (fl_model_load(path, NULL, &own)) abort();
  run(shared, y);
  if (memcmp(y, expected, (size_t)(kSteps * P) * sizeof(float)) != 0) *(int*)failed = 2;
  run(own, y);
  if (memcmp(y, expected, (size_t)(kSteps * P) * sizeof(float)) != 0) *(int*)failed = 3;
  if (!strstr(fl_last_error(), "/no/such/file")) *(int*)failed = 4;
  fl_model_free(own);
  return NULL;
}

int main(int count, char** arguments) {
  pthread_t threads[kThreads];
  int failed[kThreads] = {0};
  if (count != 2) return 2;
  path = arguments[1];
  if (fl_model_load(path, NULL, &shared)) return 3;
  D = fl_model_input_size(shared);
  P = fl_model_output_size(shared);
  if (D > 64 || P > 64) return 4;
  run(shared, expected);
  for (int i = 0; i < kThreads; ++i) pthread_create(&threads[i], NULL, work, &failed[i]);
  for (int i = 0; i < kThreads; ++i) pthread_join(threads[i], NULL);
  if (fl_last_error()[0] != 0) return 5;
  for (int i = 0; i < kThreads; ++i) {
    if (failed[i]) return 10 + failed[i];
  }
  fl_model_free(shared);
  printf("the same on every thread\n");
  return 0;
}
