"""From a row of the matrix to a kernel on disk: resolve, fetch, verify, unpack."""
