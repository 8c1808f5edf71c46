.PHONY: reliability

reliability: setup  ## the full counts of docs/reliability.md, a quarter of an hour on two CPU cores
	rm -f docs/results/reliability.json
	NEUROADA_RELIABILITY=docs/results/reliability.json OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults
	$(BIN)/python docs/pages reliability
