# docker build -t post-training .                        CPU
# docker build -t post-training --build-arg BUILD=cuda . CUDA 13, from wheels; start it with --gpus all --ipc=host
# docker run --rm post-training                          the demo
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" -w /work post-training --configfile my.yaml --cores 8
#                                                        your own files and results
FROM python:3.11-slim-bookworm
ARG BUILD=cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make ninja-build && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/post-training
COPY envs/lock-${BUILD}.txt envs/
# PyPI's torch brings CUDA's libraries along: 7 GB in place of 3. PyTorch's own index has a build without them.
RUN pip install --no-cache-dir --upgrade pip setuptools wheel && if [ "$BUILD" = cpu ]; then \
    pip install --no-cache-dir --no-deps --extra-index-url https://download.pytorch.org/whl/cpu "$(grep ^torch== envs/lock-cpu.txt)"; fi
RUN DS_BUILD_OPS=0 pip install --no-cache-dir -r envs/lock-${BUILD}.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
# For a --user that the image does not know: a place for caches, and a name.
ENV HOME=/tmp USER=post-training PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1 BUILD=${BUILD}
ENTRYPOINT ["snakemake", "-s", "/opt/post-training/Snakefile"]
CMD ["--config", "method=dpo"]
