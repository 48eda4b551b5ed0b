"""The tests: claims about the program, each able to fail."""
