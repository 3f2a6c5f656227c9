# docker build -t instruct-lit .                       the RUN lines are those of the README; for a small image without
#   CUDA's libraries add --build-arg TORCH="torch==<that of constraints.txt> --index-url <the CPU's, see pytorch.org>"
# docker build -t instruct-lit:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu22.04 --build-arg TORCH=torch --build-arg CONSTRAINTS= .
# docker run --rm -it -v "$PWD/outputs:/app/outputs" instruct-lit instruct-lit train
# docker run --rm -p 8000:8000 -v "$PWD/outputs:/app/outputs" -e INSTRUCT_LIT_API_KEY=<key> instruct-lit instruct-lit serve run=outputs/train/<date>/<time> host=0.0.0.0
# On a GPU: docker run --gpus all …. Loading data with processes (data.n_workers): add --shm-size=1g.
ARG BASE=python:3.11-slim
FROM ${BASE}
# The compiler and the headers are for compile=true.
RUN command -v python3.11 || (apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3.11 python3.11-venv python3.11-dev gcc && rm -rf /var/lib/apt/lists/*)
WORKDIR /app
COPY . .
ENV PATH=/app/.venv/bin:$PATH INSTRUCT_LIT_CACHE=/app/outputs/cache PIP_NO_CACHE_DIR=1
# TORCH, if given, is installed first; where it is another version than that of the constraints, leave them out (CONSTRAINTS=).
ARG TORCH=
ARG CONSTRAINTS="-c constraints.txt"
RUN python3.11 -m venv .venv
RUN test -z "$TORCH" || pip install $TORCH
RUN pip install $CONSTRAINTS -e .
RUN pip install $CONSTRAINTS -e '.[hf,evaluate]'
CMD ["python", "-m", "instruct_lit.train"]
