// Asynchronous copies to shared memory. A copy takes place only when it is waited for, so that code
// that reads too early sees poison.
#pragma once

#include "simt.h"

inline void __pipeline_memcpy_async(void* destination, const void* source, size_t size,
                                    size_t zero_tail = 0) {
  simt::copy_async(destination, source, size, zero_tail);
}
inline void __pipeline_commit() { simt::commit_copies(); }
inline void __pipeline_wait_prior(unsigned newest) { simt::wait_copies(newest); }
