// What a block stores to global memory, or to another block's shared memory, reaches others late:
// each place at a random time, all of them when the block releases. The block itself sees it at
// once. EMULATOR_DELAY=1, with kernels compiled by instrument.py.
//
// Memory has what the block whose thread runs sees. What it has stored and others may not see yet
// is exchanged for what they see when a thread of another block is next.
#pragma once

#include <cstddef>
#include <random>

namespace emulator {

struct Block;

namespace delays {

bool on();
void enter(Block& block, std::mt19937& random);    // its thread is next
void leave_all();                                  // none is
void store(Block& block, void* to, size_t bytes);  // is about to be stored
void release(Block& block);
bool release_all();  // whether there was any
// Its memory goes; whether stores are on their way to it.
bool forget(const Block& block);

}  // namespace delays
}  // namespace emulator
