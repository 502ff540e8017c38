"""A store in a bucket of an S3-compatible object store, and the local folder that mirrors what is read of it."""
