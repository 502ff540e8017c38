"""Durations and sizes in words."""


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are at least two."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def disk(size: float) -> str:
    """Return a size in decimal units, as disks are sold."""
    unit, length = next(
        ((unit, length) for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if size >= length), ("kB", 1e3)
    )
    return f"{size / length:,.1f} {unit}"


def memory(size: float) -> str:
    """Return a size in GiB."""
    return f"{size / 2**30:,.1f} GiB"
