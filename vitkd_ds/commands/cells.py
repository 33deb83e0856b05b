"""Cells of CSV that a spreadsheet shows as text and does not compute."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(value: object) -> object:
    """Return the value, or a text that a spreadsheet would take for a formula behind an apostrophe. Numbers stay."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
