.PHONY: test-versions

test-versions: setup  ## the default tests on both ends of the allowed versions, twice the time of `make test`
	OMP_NUM_THREADS=1 $(BIN)/python tests/versions/ends.py lowest newest
	$(BIN)/python docs/pages versions
