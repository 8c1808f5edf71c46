.PHONY: mutants

mutants: setup  ## every fourth of the faults in tests/mutants/, each against the tests that should notice it
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/run.py --every 4; status=$$?; \
	$(BIN)/python docs/pages mutants; exit $$status
