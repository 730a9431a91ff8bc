"""Tables as GitHub markdown."""

from collections.abc import Sequence


def markdown(columns: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A markdown table: first column left, the others right aligned; `|` and newlines escaped."""
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row {list(row)} has {len(row)} cells for {len(columns)} columns")

    def line(cells):
        cells = (str(c).replace("|", "\\|").replace("\n", " ") for c in cells)
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join(["---"] + ["---:"] * (len(columns) - 1)) + "|"
    return "\n".join([line(columns), rule, *map(line, rows)])


def with_interval(value, low=None, high=None, digits: int = 2) -> str:
    """`0.87 [0.82, 0.91]`; a dash where the value is undefined (None or NaN)."""
    if value is None or value != value:
        return "–"

    def text(v):
        return f"{round(v, digits) + 0.0:.{digits}f}"  # + 0.0: never "-0.00"

    if low is None or high is None or low != low or high != high:
        return text(value)
    return f"{text(value)} [{text(low)}, {text(high)}]"
