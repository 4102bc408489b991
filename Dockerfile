# The worker of one sample:
#   docker build --build-arg SAMPLE=04_single_agent_orchestration_chaining -t worker .
# It is told by the environment where scheduler and model are, as everywhere; nothing of a .env gets in.

FROM python:3.12-slim

ARG SAMPLE=01_single_agent
WORKDIR /app

# The dependencies have a layer of their own, so that a change in the code does not install them again.
COPY constraints.txt ${SAMPLE}/requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore \
        -c constraints.txt -r requirements.txt

COPY ${SAMPLE}/ ./

# The worker owns nothing but the folder that 06 and 07 write to. Workers that share the work share it too: a volume.
RUN useradd --uid 10001 --no-create-home worker && install -d -o worker /data
ENV EMAIL_DIRECTORY=/data CONTENT_DIRECTORY=/data
USER 10001

# Without a shell in between, SIGTERM reaches the worker: it hands its work back and ends with code 0 within 10 seconds.
# There is no HEALTHCHECK: a worker listens on no port, and one that loses its scheduler connects again by itself.
CMD ["python", "worker.py"]
