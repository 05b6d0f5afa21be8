"""What a step of each persistent kernel costs, read from its machine code: `make sass`.

No GPU is needed. The kernels are compiled for compute capability 8.0, 9.0 and 12.0 and
disassembled. The host code runs as it is on the emulator, which records launches. One thread of the
kernel of each launch is then executed for all steps, and its path is timed.

    cubin.py     compiles, disassembles, names kernels
    sass.py      parses nvdisasm's output: instructions and their control codes
    launches.py  launches of real calls, by record.py on the emulator (emulator/recorder.cpp)
    execute.py   executes one thread: its path and its addresses
    timing.py    cycles of that path by stall counts and scoreboards; its constants
    step.py      one step in the path, and its counts; what the code has, executed or not
    shapes.py    the calls, and the limits of a step of each
    table.py     the table, and what in it is over a limit

Times are lower bounds: one warp alone, no cache misses, the clock at its boost. The method was
tried once on FlashRNN 1.0.8's forward kernel (H 768, B 16), for which it gave 2.7 to 3.1 us a step
where the author reports 4.76: a measured time may be 1 to 1.75 times what stands in the table.
"""
