# docker build -t instruct-lit .                       CPU; the RUN lines are those of the README
# docker build -t instruct-lit:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu22.04 --build-arg TORCH=torch --build-arg CONSTRAINTS= .
# docker run --rm -it -v "$PWD/outputs:/app/outputs" instruct-lit instruct-lit train
# On a GPU: docker run --gpus all …. Loading data with processes (data.n_workers): add --shm-size=1g.
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN command -v python3.11 || (apt-get update && apt-get install -y --no-install-recommends python3.11 python3.11-venv && rm -rf /var/lib/apt/lists/*)
WORKDIR /app
COPY . .
ENV PATH=/app/.venv/bin:$PATH INSTRUCT_LIT_CACHE=/app/outputs/cache PIP_NO_CACHE_DIR=1
# A torch for a GPU (TORCH) is installed first; then the constraints, which pin the CPU's, are left out (CONSTRAINTS=).
ARG TORCH=
ARG CONSTRAINTS="-c constraints.txt"
RUN python3.11 -m venv .venv
RUN test -z "$TORCH" || pip install $TORCH
RUN pip install $CONSTRAINTS -e .
RUN pip install $CONSTRAINTS -e '.[hf,evaluate]'
CMD ["python", "-m", "instruct_lit.train"]
