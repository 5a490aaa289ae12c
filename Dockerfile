# A node, and the gateway where PORT is set; with neither PULSAR_URL nor PORT all in one, as the demo. It holds no model and no
# model server: NODE_TYPE=remote or demo. The environment: README.md.
FROM python:3.11-slim
WORKDIR /app
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# Before the code, so that a change of code installs nothing anew.
COPY requirement.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore -r requirement.txt

# What the embedded broker keeps: mount a volume here to keep it beyond the container. A volume by name takes over its owner.
ENV HOST=0.0.0.0 STATE_DIR=/var/lib/workernode
RUN install -d -o 10001 -g 10001 "$STATE_DIR"

# .dockerignore names what comes along. Compiled here, as every child would else compile it anew at its start.
COPY . ./
RUN python -m compileall -q .

USER 10001:10001
EXPOSE 8081
# No shell between: SIGTERM reaches the supervisor, which drains within DRAIN_TIMEOUT_S, below the 10 s of `docker stop`.
ENTRYPOINT ["python", "supervisor.py"]
