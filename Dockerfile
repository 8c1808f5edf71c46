# For a GPU box: docker build -t neuroada . && docker run --gpus all -v "$PWD:/work" neuroada train my.yaml
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
# the CPU kernels and Triton compile what they need with the machine's compiler
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/neuroada
COPY pyproject.toml README.md LICENSE ./
COPY neuroada_cli neuroada_cli
COPY recipes recipes
# torch is the image's own; everything else is resolved around it
RUN pip install --no-cache-dir '.[glue,strict,peft]'
WORKDIR /work
ENTRYPOINT ["neuroada"]
