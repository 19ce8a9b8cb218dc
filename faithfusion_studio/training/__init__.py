"""Training of our own networks on procedural streets, from nothing."""
