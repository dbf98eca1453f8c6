"""Fuzzing by coverage: `make fuzz MINUTES=10`.

It lives among the tests because its targets are tests: `test_targets` runs each over its seeds and over what fuzzing
has found, in every test run and without a fuzzer.
"""
