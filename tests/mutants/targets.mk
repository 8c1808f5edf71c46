.PHONY: mutants

mutants: setup  ## the faults in tests/mutants/, each against the tests that should notice it, for 40 minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/mutation.py --minutes 40 --go-on; status=$$?; \
	$(BIN)/python docs/pages mutants; exit $$status
