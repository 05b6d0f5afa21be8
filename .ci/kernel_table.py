"""Reads what `nvcc -Xptxas=-v` printed and prints a table: registers and spills of each kernel.

Fails if a kernel spills more than SPILLED allows.
"""

import re
import subprocess
import sys

# Bytes of stores and loads together. A few are set aside before the loop over time, which make sass
# looks at.
SPILLED = 96

NAME = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")

rows = []
for line in sys.stdin:
    if found := NAME.search(line):
        name, arch = found.groups()
        spills = 0
    elif found := SPILLS.search(line):
        spills = sum(map(int, found.groups()))
    elif found := REGISTERS.search(line):
        rows.append((name, arch, int(found[1]), spills))
if not rows:
    sys.exit("no kernel in the build's output")

names = "\n".join(row[0] for row in rows)
filt = ["c++filt", "--no-params"]
plain = subprocess.run(filt, input=names, capture_output=True, text=True, check=True).stdout
print("  sm  registers  spilled bytes  kernel")
for name, (_, arch, registers, spills) in sorted(zip(plain.splitlines(), rows, strict=True)):
    print(f"{arch:>4} {registers:>10} {spills:>14}  {name.replace('(anonymous namespace)::', '')}")

spilling = [name for name, _, _, spills in rows if spills > SPILLED]
if spilling:
    sys.exit(f"{len(spilling)} of {len(rows)} kernels spill more registers than they may")
