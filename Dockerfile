# A node, and the gateway where PORT is set; with neither PULSAR_URL nor PORT all in one, as the demo. docs/operating.md.
#   docker build -t workernode .                            for an API, or the demo
#   docker build -t workernode --build-arg ENGINE=cpu .     with llama.cpp for models of its own; weights are mounted
#   docker build -t workernode --build-arg ENGINE=cuda --build-arg ENGINE_INDEX=ADDRESS .     the same for NVIDIA's GPUs
# To build the same image another day, name the base by its digest: --build-arg PYTHON=python:3.11-slim@sha256:…
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS build
ARG ENGINE=none
ARG ENGINE_INDEX=
RUN apt-get update -q && apt-get install -yq --no-install-recommends tini libgomp1
WORKDIR /app
# Before the code, so that a change of code installs nothing anew.
COPY requirement.txt requirement-local.txt requirement-cuda.txt ./
# Left out: what nothing of ours imports, 68 MB of it. CUDA's libraries go where the loader looks.
RUN set -eu; \
    pip() { python -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --prefix /install "$@"; }; \
    case "$ENGINE" in \
      none) pip -r requirement.txt ;; \
      cpu) pip -r requirement.txt -r requirement-local.txt ;; \
      cuda) \
        [ -n "$ENGINE_INDEX" ] || { echo "ENGINE=cuda needs ENGINE_INDEX: where xllamacpp's wheels for CUDA 12.8 are, see its README" >&2; exit 1; }; \
        grep -v '^xllamacpp' requirement-local.txt >/tmp/beside.txt; \
        pip -r requirement.txt -r requirement-cuda.txt -r /tmp/beside.txt; \
        pip --no-deps --index-url "$ENGINE_INDEX" "$(grep '^xllamacpp' requirement-local.txt)"; \
        for library in /install/lib/python3*/site-packages/nvidia/*/lib/*.so.*; do \
          ln -s "/usr/local/${library#/install/}" "/install/lib/${library##*/}"; \
        done ;; \
      *) echo "ENGINE should be none, cpu or cuda (it is '$ENGINE')" >&2; exit 1 ;; \
    esac; \
    [ "$ENGINE" = none ] || cp -L /usr/lib/*-linux-gnu/libgomp.so.1 /install/lib/; \
    rm -rf /install/lib/python3*/site-packages/kubernetes/aio
# .dockerignore names what comes along. Compiled here, as every child would else compile it anew at its start.
COPY . ./
RUN python -m compileall -q .

FROM ${PYTHON}
# An init: nobody else reaps what a killed model server leaves behind, and Kubernetes brings none along.
COPY --from=build /usr/bin/tini /usr/local/bin/tini
COPY --from=build /install /usr/local
# Python's image comes without its library compiled, which nobody but root could do later: each child would, at each start.
RUN ldconfig && install -d -o 10001 -g 10001 /var/lib/workernode && \
    python -m compileall -q -x '/(site-packages|idlelib|lib2to3|tkinter|turtledemo|ensurepip|test|tests)/' /usr/local/lib/python3*
WORKDIR /app
COPY --from=build /app ./
# STATE_DIR: mount a volume there to keep it beyond the container; a volume by name takes over its owner.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOST=0.0.0.0 STATE_DIR=/var/lib/workernode STATUS_PORT=9464
USER 10001:10001
EXPOSE 8081
# Not healthy: it takes no requests, and `docker inspect` says why. A second node on the host's network needs a STATUS_PORT
# of its own.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s CMD ["python", "-m", "supervision.healthcheck"]
# No shell between: SIGTERM reaches the supervisor, which drains within DRAIN_TIMEOUT_S, below the 10 s of `docker stop`.
ENTRYPOINT ["tini", "--", "python", "supervisor.py"]
