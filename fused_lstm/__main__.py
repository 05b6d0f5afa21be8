"""The command line: `python -m fused_lstm demo` and `python -m fused_lstm info`."""

from __future__ import annotations

import sys

USAGE = """usage: python -m fused_lstm {demo,info} [options]

  demo   train three task models on FusedLSTM and on nn.LSTM, side by side (--help for options)
  info   print the build, the devices and the kernels"""


def main(argv: list[str]) -> int:
    """Runs the command that argv names; returns the exit status."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not argv or argv[0] not in ("demo", "info"):
        given = f"unknown command {argv[0]!r}" if argv else "no command"
        print(f"fused_lstm: {given}, must be demo or info (--help for more)", file=sys.stderr)
        return 2
    if argv[0] == "demo":
        from fused_lstm import demo

        return demo.main(argv[1:])
    from fused_lstm import info

    return info.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
