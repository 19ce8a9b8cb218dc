"""What files may do to us: mutants of every format, pickles that attack, paths that escape, kills during saves."""
