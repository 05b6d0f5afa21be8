// std::shared_ptr asks glibc whether the process has one thread, by a variable of glibc 2.32. Its
// reference here, which says no, lets a wheel load from glibc 2.28 on; it costs an atomic
// instruction where a reference is counted.
#include <cstddef>  // defines __GLIBC__

#ifdef __GLIBC__
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
