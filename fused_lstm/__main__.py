"""The command line: `python -m fused_lstm demo`, `info` and `check`."""

from __future__ import annotations

import errno
import os
import sys

USAGE = """usage: python -m fused_lstm {demo,info,check} [options]

  demo       train three task models on FusedLSTM and on nn.LSTM, side by side (--help for options)
  info       print the build, the devices and the kernels
  check      run every kernel that this machine can run against the reference, and time it
  --version  print the version"""


def main(argv: list[str]) -> int:
    """Runs a command.

    Args:
        argv: The command and its options.

    Returns:
        The exit status.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv and argv[0] in ("-V", "--version"):
        from fused_lstm import __version__

        print(f"fused_lstm {__version__}")
        return 0
    if not argv or argv[0] not in ("demo", "info", "check"):
        given = f"unknown command {argv[0]!r}" if argv else "no command"
        must = "must be demo, info or check (--help for more)"
        print(f"fused_lstm: {given}, {must}", file=sys.stderr)
        return 2
    from fused_lstm import _C

    try:
        _C.cpu_instruction_set()
    except RuntimeError as error:  # FUSED_LSTM_CPU_ISA
        print(f"fused_lstm: {error}", file=sys.stderr)
        return 2
    if argv[0] == "demo":
        from fused_lstm import demo

        return demo.main(argv[1:])
    if argv[0] == "check":
        from fused_lstm import check

        return check.main(argv[1:])
    from fused_lstm import info

    return info.main(argv[1:])


def run(argv: list[str]) -> int:
    """``main``, then flushes; a closed pipe or a full disk is no traceback."""
    try:
        try:
            return main(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Python flushes the rest of the buffer when it exits, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 141  # 128 + SIGPIPE, as a shell reports it
        print(f"fused_lstm: standard output: {error.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
