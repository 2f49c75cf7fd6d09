"""The ways in, each as a client that asks the same and tells in the same words what it was told."""
