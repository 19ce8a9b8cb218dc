"""Does a map of uncertainty predict true errors? Every method on the same renders, against exact truth."""
