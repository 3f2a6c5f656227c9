# docker build -t instruct-lit .                       CPU; the RUN lines are those of the README
# docker build -t instruct-lit:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu22.04 --build-arg TORCH="torch" .
# docker run --rm -it -v "$PWD/outputs:/app/outputs" instruct-lit instruct-lit train
# On a GPU: docker run --gpus all …. Loading data with processes (data.n_workers): add --shm-size=1g.
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN command -v python3.11 || (apt-get update && apt-get install -y --no-install-recommends python3.11 python3.11-venv && rm -rf /var/lib/apt/lists/*)
WORKDIR /app
COPY . .
ENV PATH=/app/.venv/bin:$PATH INSTRUCT_LIT_CACHE=/app/outputs/cache
RUN python3.11 -m venv .venv
# A torch of its own, for a GPU: it is installed first, and then the constraints, which pin the CPU's, are left out.
ARG TORCH=""
RUN if [ -n "$TORCH" ]; then pip install $TORCH; fi
RUN if [ -n "$TORCH" ]; then pip install -e '.[hf,evaluate]'; else pip install -c constraints.txt -e '.[hf,evaluate]'; fi
CMD ["python", "-m", "instruct_lit.train"]
