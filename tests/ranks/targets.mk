.PHONY: killed-ranks

killed-ranks: setup  ## one of two processes killed at 50 random moments, 20 minutes on two cores; rewrites docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/ranks/killed.py 50 --write docs/results/killed_ranks.json
	$(BIN)/python docs/pages reliability
