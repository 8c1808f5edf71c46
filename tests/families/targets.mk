.PHONY: families pictures-learnt

families: setup  ## every command on tiny models of many types, about an hour on two cores; rewrites docs/families.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/families/sweep.py; status=$$?; $(BIN)/python docs/pages families; exit $$status

pictures-learnt: setup  ## tiny models that write about pictures learn to see, a few minutes; rewrites a part of docs/families.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/families/pictures_learnt.py && $(BIN)/python docs/pages families
