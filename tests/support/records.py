"""Read records of a file to their end."""

from tokenuq_ml.data.sources.records import TruncatedFile


def read(rows):
    """Return the values read, and how the file ended: None if it is complete."""
    values = []
    try:
        for record in rows:
            assert record.index == len(values)
            values.append(record.value)
    except TruncatedFile as cut:
        return values, cut
    return values, None
