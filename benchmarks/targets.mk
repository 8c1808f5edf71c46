# Every target rewrites its file under benchmarks/results/; `make bench-report` turns them into
# docs/performance.md. Ratios from a busy machine are noisier, not wrong: the load is written beside them.
.PHONY: bench-op bench-cpu bench-parts bench-narrow bench-io bench-commands bench-trl bench-evaluation bench-prefix bench-gpu bench-sm90 bench-one-process bench-report

bench-op: setup  ## back-ends of the sampled gradient by shape; also rewrites delta/backend_table.json
	$(BIN)/python benchmarks/op.py --write
	$(BIN)/python benchmarks/refold.py

bench-cpu: setup  ## a training step against its peers on the CPU, about 20 minutes on two cores
	$(BIN)/python benchmarks/cpu.py

bench-parts: setup  ## what folding takes of a step, and a forward pass without gradients over the plain model's
	$(BIN)/python benchmarks/parts.py

bench-narrow: setup  ## 16-bit models on this processor, as torch computes them and by way of fp32
	$(BIN)/python benchmarks/narrow.py

bench-io: setup  ## select against reading, merge against cp, attach and switch, on models of 1 and 8 GB made on the spot
	$(BIN)/python benchmarks/io.py

bench-commands: setup  ## what whole commands take of the processor before their work begins
	$(BIN)/python benchmarks/commands.py

bench-trl: setup  ## a whole training beside TRL's with LoRA r8 (needs trl)
	$(BIN)/python benchmarks/beside_trl.py

bench-evaluation: setup  ## eval's decoding against plain generate; the data sets lie in $$NEUROADA_DATA
	$(BIN)/python benchmarks/evaluation.py

bench-prefix: setup  ## what rows of a training batch share, counted and timed; the data sets lie in $$NEUROADA_DATA
	$(BIN)/python benchmarks/prefix.py

bench-gpu:  ## one CUDA GPU, under 9 minutes: kernels against the oracle, tuning, steps; uses $(PYTHON_GPU)
	$(or $(PYTHON_GPU),python3) benchmarks/gpu.py

bench-sm90: setup  ## the CUDA kernels compiled for an H100 without one: registers, spills, what they move on paper
	$(BIN)/python benchmarks/sm90.py

bench-one-process: setup  ## one-process runs by earlier commits and later ones: bits and step times; an hour where others work
	$(BIN)/python benchmarks/one_process.py

bench-report: setup  ## docs/performance.md from the result files
	$(BIN)/python docs/pages performance
