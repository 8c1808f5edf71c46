.PHONY: test-versions
ENDS ?= lowest newest
ENVIRONMENTS ?= .cache/versions

test-versions: setup  ## the default tests on both ends of the allowed versions, three times the time of `make test`
	OMP_NUM_THREADS=1 $(BIN)/python tests/versions/ends.py $(ENDS) --environments $(ENVIRONMENTS); status=$$?; \
	$(BIN)/python docs/pages versions; exit $$status
