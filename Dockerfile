# The worker of one sample:
#   docker build --build-arg SAMPLE=04_single_agent_orchestration_chaining -t worker .
# The environment says where scheduler and model are. The image contains no .env.

# To use an image that nobody can exchange, put the digest behind it that this prints:
#   docker buildx imagetools inspect python:3.12.13-slim
FROM python:3.12.13-slim

ARG SAMPLE=01_single_agent
WORKDIR /app

# The dependencies are a separate layer, so that a change in the code does not install them again.
COPY constraints.txt ${SAMPLE}/requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore \
        -c constraints.txt -r requirements.txt

COPY ${SAMPLE}/ ./

# The worker can only write to the folder that 06 and 07 use. Workers of one sample must share this folder: a volume.
RUN useradd --uid 10001 --no-create-home worker && install -d -o worker /data
ENV EMAIL_DIRECTORY=/data CONTENT_DIRECTORY=/data RESERVATIONS_DIRECTORY=/data
USER 10001

# Without a shell in between, SIGTERM reaches the worker: it gives its work back and ends with code 0 within 10 seconds.
# There is no HEALTHCHECK: a worker listens on no port, and reconnects by itself when it loses the scheduler.
CMD ["python", "worker.py"]
