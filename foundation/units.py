"""Amounts in words, for people: bytes, times.

Logs, tables and files for programs have plain numbers.
"""


def size(count: float) -> str:
    """Return a number of bytes for people: 12.3 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def clock(seconds: float) -> str:
    """Return a time that is left for people: 0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(round(min(seconds, 10**9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Return a time for people: 7.3 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"
