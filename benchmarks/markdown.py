"""Tables in markdown."""


def markdown(lines: list[list[str]]) -> str:
    """Rows of cells, the header and its rule first, as a table with even columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
