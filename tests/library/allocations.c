/* Counts the allocations and locks of the library's calls: allocations MODEL. Prints a line for
 * each kind of call, with the number of allocations and of locks.
 *
 * The definitions below take the place of libc's for everything that this process loads. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fused_lstm.h"

static long allocations, locks;

extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t count, size_t size);
extern void* __libc_realloc(void* memory, size_t size);
extern void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  ++allocations;
  return __libc_calloc(count, size);
}
void* realloc(void* memory, size_t size) {
  ++allocations;
  return __libc_realloc(memory, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, size_t alignment, size_t size) {
  ++allocations;
  *memory = __libc_memalign(alignment, size);
  return *memory ? 0 : ENOMEM;
}
void* mmap(void* address, size_t length, int protection, int flags, int file, off_t offset) {
  static void* (*next)(void*, size_t, int, int, int, off_t);
  if (!next) *(void**)&next = dlsym(RTLD_NEXT, "mmap");
  ++allocations;
  return next(address, length, protection, flags, file, offset);
}
int pthread_mutex_lock(pthread_mutex_t* mutex) {
  static int (*next)(pthread_mutex_t*);
  if (!next) *(void**)&next = dlsym(RTLD_NEXT, "pthread_mutex_lock");
  ++locks;
  return next(mutex);
}

static float *x, *y;

static void report(const char* name) {
  const long counted = allocations, locked = locks;
  printf("%s %ld %ld\n", name, counted, locked);
  allocations = locks = 0;
}

int main(int count, char** arguments) {
  static const fl_format formats[] = {FL_FLOAT32, FL_BFLOAT16, FL_INT8};
  if (count != 2) return 2;
  printf("warm up: stdout has its buffer\n");
  for (int i = 0; i < 3; ++i) {
    fl_options options = FL_OPTIONS;
    fl_model* model;
    fl_stream* stream;
    const int64_t B = 2, T = 100;
    options.format = formats[i];
    allocations = locks = 0;
    if (fl_model_load(arguments[1], &options, &model)) return 3;
    report("load");
    x = calloc((size_t)(T * B * fl_model_input_size(model)), sizeof(float));
    y = calloc((size_t)(T * B * fl_model_output_size(model)), sizeof(float));
    allocations = locks = 0;
    if (fl_stream_create(model, B, &stream)) return 4;
    report("create");
    for (int step = 0; step < 1000; ++step) {
      if (fl_step(stream, x, y)) return 5;
    }
    report("step");
    if (fl_step(stream, NULL, y) != FL_INVALID_ARGUMENT) return 6;
    report("refused");
    if (fl_sequence(stream, x, T, y)) return 7;
    report("sequence");
    if (fl_sequence(stream, x, T, y) || fl_stream_reset(stream, NULL)) return 8;
    report("again");
    fl_stream_free(stream);
    fl_stream_create(model, B, &stream);
    fl_stream_reserve(stream, T);
    allocations = locks = 0;
    if (fl_sequence(stream, x, T, y)) return 9;
    report("reserved");
    fl_stream_free(stream);
    fl_model_free(model);
    free(x);
    free(y);
  }
  return 0;
}
