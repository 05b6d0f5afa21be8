"""Writes the index of a folder's wheels: DIR/simple/torch2.13.cpu and so on, for --index-url.

One index a kind of torch: in one for all, pip would prefer the newest torch's wheel.
"""

import hashlib
import sys
from pathlib import Path
from urllib.parse import quote

folder = Path(sys.argv[1])
pages = {}
for wheel in sorted(folder.glob("fused_lstm-*+*.whl")):
    kind = wheel.name.split("-")[1].split("+")[1]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    link = f'<a href="../../../{quote(wheel.name)}#sha256={digest}">{wheel.name}</a><br>\n'
    pages.setdefault(kind, []).append(link)
for kind, links in pages.items():
    index = folder.resolve() / "simple" / kind
    (index / "fused-lstm").mkdir(parents=True, exist_ok=True)
    (index / "fused-lstm/index.html").write_text(f"<!DOCTYPE html>\n{''.join(links)}")
    (index / "index.html").write_text('<!DOCTYPE html>\n<a href="fused-lstm/">fused-lstm</a>\n')
    print(f"pip install --index-url {index.as_uri()} fused_lstm")
